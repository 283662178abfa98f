"""What the callback draws and tells, against what the function gives."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_viz import draw, functional
from lit_viz.callbacks import ActivationMaximization
from lit_viz.callbacks.ascent import ascent_sheet
from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace
from tests.conformance.harness import Recorder, TinyModule, loaders, trainer

SPACE = PixelSpace(0.5, 0.25)


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[draw.Card], dict[str, Any]]]:
    seen: list[tuple[list[draw.Card], dict[str, Any]]] = []
    original = draw.sheet
    monkeypatch.setattr(draw, "sheet", lambda cards, **k: seen.append((cards, k)) or original(cards, **k))
    return seen


def validated(module: Any, **given: Any) -> Recorder:
    recorder = Recorder()
    callback = ActivationMaximization(on_error="raise", mean=0.5, std=0.25, **given)
    trainer([callback], logger=recorder).validate(module, loaders()[1], verbose=False)
    return recorder


def same(cards: list[draw.Card], images: Tensor) -> None:
    for card, picture in zip(cards, draw.to_uint8(SPACE.to_color(images)), strict=True):
        assert (card.images[0] == picture).all()


def test_classes(module: TinyModule, sheets: list[Any]) -> None:
    recorder = validated(module, classes=["cat", 0], steps=4, seed=3)
    ((cards, told),) = sheets
    found = functional.activation_maximization(module, [2, 0], shape=(3, 16, 20), steps=4, seed=3, pixels=SPACE)
    same(cards, found.images)
    p = found.scores.softmax(dim=1)[[0, 1], [2, 0]]
    assert [card.caption for card in cards] == [f"cat  {p[0]:.2f}", f"ant  {p[1]:.2f}"]
    assert told["title"] == "What excites each class · validate"
    numbers = {tag: value for tag, _, value in recorder.metrics}
    assert numbers["ascent/probability"] == pytest.approx(float(p.mean()), abs=1e-5)
    assert recorder.tags == {"ascent/classes"}
    validated(module, steps=1)
    assert [card.caption.split()[0] for card in sheets[1][0]] == ["ant", "bee", "cat"]


@pytest.mark.parametrize("unit", ["channel", "center"])
def test_channels_and_their_units(module: TinyModule, sheets: list[Any], unit: Any) -> None:
    recorder = validated(module, layer="conv2", channels=[4, 1], unit=unit, steps=4)
    kind = functional.Channel if unit == "channel" else functional.Unit
    found = functional.activation_maximization(module, kind("conv2", [4, 1]), shape=(3, 16, 20), steps=4, pixels=SPACE)
    same(sheets[0][0], found.images)
    assert sheets[0][0][0].caption == f"ch 4  {float(found.objective[0]):.3g}"
    assert ("unit in the middle" in sheets[0][1]["subtitle"]) == (unit == "center")
    numbers = {tag: value for tag, _, value in recorder.metrics}
    assert numbers["ascent/net.conv2/response"] == pytest.approx(float(found.objective.mean()), abs=1e-5)


def test_a_number_of_channels_is_spread(module: TinyModule, sheets: list[Any]) -> None:
    validated(module, layer="conv2", channels=3, steps=1)
    validated(module, layer="conv2", channels=50, steps=1)
    assert [card.caption.split()[1] for card in sheets[0][0]] == ["0", "2", "5"]
    assert len(sheets[1][0]) == 6


def test_a_layer_needs_no_classes(sheets: list[Any]) -> None:
    class Encoder(TinyModule):
        def forward(self, images: Tensor) -> Any:
            return {"code": self.net.conv2(self.net.conv1(images))}

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    validated(Encoder(), layer="conv1", channels=2, steps=1)
    assert len(sheets[0][0]) == 2


def test_features_are_seen_forming(module: TinyModule, sheets: list[Any]) -> None:
    """The same units from the same start at each look: what changes is the network."""
    callback = ActivationMaximization(
        classes=2, steps=2, every_n_epochs=1, every_n_steps=None, on_error="raise", mean=0.5, std=0.25
    )
    recorder = Recorder()
    trainer([callback], logger=recorder, max_epochs=2).fit(module, *loaders())
    assert [step for _, step, _ in recorder.images] == [0, 4, 8] and len(sheets) == 3
    first, last = (sheets[i][0][0].images[0].astype(float) for i in (0, 2))
    assert (first != last).any()
    again = functional.activation_maximization(module, [0, 1], shape=(3, 16, 20), steps=2, pixels=SPACE)
    same(sheets[2][0], again.images)


def test_it_is_modest_by_default() -> None:
    callback = ActivationMaximization()
    assert callback.every_n_epochs == 5 and callback.classes == 8
    passes = 0

    class Counted(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            nonlocal passes
            passes += torch.is_grad_enabled()
            return super().forward(images)

    validated(Counted())
    assert passes <= 64 + 1 + 2


def test_what_went_wrong_is_on_the_card(module: TinyModule, sheets: list[Any]) -> None:
    with torch.no_grad():
        module.net.conv2.weight[1] = 0.0
        module.net.conv2.bias[1] = -1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*treespec.*")
        validated(module, layer="relu2", channels=[0, 1], steps=4)
    dead = sheets[0][0][1]
    assert dead.detail.startswith("no gradient reaches the image") and "start from noise" not in dead.detail


def test_who_else_is_more_likely_is_said(sheets: list[Any]) -> None:
    made = functional.activation_maximization(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), [0, 1], shape=(3, 2, 2), recipe="plain", steps=0
    )
    from dataclasses import replace

    made = replace(made, scores=torch.tensor([[2.0, 0.0, 0.0], [5.0, 0.0, 0.0]]))
    ascent_sheet(made, [0, 1], class_name="abc".__getitem__, pixels=SPACE, title="t")
    assert [card.detail for card in sheets[0][0]] == ["", "taken for a 0.99"]


def test_a_decoder(module: TinyModule, sheets: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz.callbacks import ascent as file
    from lit_viz.functional.synthesis import Code

    class Flat(nn.Module):
        def forward(self, codes: Tensor) -> Tensor:
            return codes.sigmoid()[:, :, None, None].expand(-1, 3, 16, 20)

    def load(path: Any, space: PixelSpace) -> Code:
        assert (path, space.std) == ("some.ckpt", (0.25,))
        return Code(Flat(), mean=torch.zeros(3), std=torch.ones(3), nonnegative=False, space=space)

    monkeypatch.setattr(file, "load_decoder", load)
    validated(module, classes=[1], decoder="some.ckpt")
    expected = functional.activation_maximization(module, [1], decoder=load("some.ckpt", SPACE), pixels=SPACE)
    same(sheets[0][0], expected.images)
    assert len(expected.history) == functional.RECIPES["dgn-am"].steps


def test_a_decoders_checkpoint_that_is_none(module: TinyModule, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no decoder at"):
        validated(module, decoder=str(tmp_path / "none.ckpt"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"classes": []}, "classes are a list"),
        ({"classes": "ant"}, "classes are a list"),
        ({"channels": 0}, r"channels must be.*give a list, \[0\]"),
        ({"recipe": "plein"}, "no recipe 'plein'; did you mean 'plain'"),
        ({"recipe": "dgn-am"}, "give decoder="),
        ({"steps": 0}, "steps must be"),
        ({"unit": "middle"}, "unit is"),
        ({"layer": 3}, "layer is the dotted name"),
    ],
)
def test_arguments_are_checked(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        ActivationMaximization(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"classes": ["dog"]}, "no class 'dog'"),
        ({"classes": [3]}, "out of range"),
        ({"layer": "conv9"}, "no layer 'conv9'"),
        ({"layer": "conv2", "channels": [6]}, "channels 0 to 5"),
    ],
)
def test_what_the_network_lacks_is_told_before_training(module: TinyModule, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        trainer([ActivationMaximization(**wrong)], logger=Recorder()).fit(module, *loaders())
    assert module.trainer.global_step == 0
