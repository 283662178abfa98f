"""Inversion in a run: the numbers are those of the function, and what is dead is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_viz.callbacks import Inversion
from lit_viz.callbacks import inversion as under_test
from lit_viz.errors import UsageError
from lit_viz.functional import invert_features
from tests.conformance.harness import Recorder, TinyModule, fit, loaders, trainer


def validate(callback: Inversion, module: TinyModule) -> Recorder:
    recorder = Recorder()
    trainer([callback], logger=recorder).validate(module, loaders()[1], verbose=False)
    return recorder


def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The cards of every sheet that is drawn."""
    seen: list[Any] = []
    original = under_test.inversion_sheet
    monkeypatch.setattr(
        under_test, "inversion_sheet", lambda cards, *a, **k: seen.append(cards) or original(cards, *a, **k)
    )
    return seen


def test_numbers_are_those_of_the_function(shown: list[Any]) -> None:
    net, callback = module(), Inversion(["conv1", "relu2"], steps=2, on_error="raise", mean=0.5, std=0.25)
    recorder = validate(callback, net)
    assert callback._probe is not None
    found = invert_features(net, callback._probe.images, ["conv1", "relu2"], steps=2, pixels=callback.pixels)
    numbers = {tag: value for tag, _, value in recorder.metrics}
    for name in ("net.conv1", "net.relu2"):
        assert numbers[f"inversion/{name}/error"] == pytest.approx(float(found.errors[name].mean()), rel=1e-3)
        assert numbers[f"inversion/{name}/psnr"] == pytest.approx(float(found.psnr[name].mean()), rel=1e-3)
    (cards,) = shown
    assert len(cards) == 2 and all(len(card.images) == 3 for card in cards)
    psnr, error = ([float(values[name][0, 1]) for name in found.psnr] for values in (found.psnr, found.errors))
    assert cards[1].detail == (
        f"PSNR {psnr[0]:.1f}, {psnr[1]:.1f} dB · feature error {100 * error[0]:.1f}, {100 * error[1]:.1f} %"
    )


def test_layers_are_chosen_over_the_depth_once(shown: list[Any]) -> None:
    recorder, callback = Recorder(), Inversion(steps=1, num_images=1, on_error="raise")
    fit("fp32", [callback], logger=recorder)
    layers = {tag.split("/")[1] for tag, _, _ in recorder.metrics if tag.startswith("inversion/")}
    assert {"net.relu1", "net.relu2"} <= layers <= set(dict(TinyModule().named_modules()))
    assert len({len(cards[0].images) for cards in shown}) == 1 and len(shown) == 3


def test_a_dead_layer_is_told_and_the_others_are_shown(shown: list[Any]) -> None:
    net = module()
    with torch.no_grad():
        net.net.conv2.weight.zero_()
        net.net.conv2.bias.fill_(-1.0)
    recorder = validate(Inversion(["relu2", "conv1"], steps=1, on_error="raise"), net)
    assert {tag for tag, _, _ in recorder.metrics if tag.startswith("inversion/")} == {
        "inversion/net.conv1/error",
        "inversion/net.conv1/psnr",
    }
    (cards,) = shown
    for card in cards:
        assert card.detail.startswith("PSNR –, ")
        assert card.detail.endswith(" · net.relu2: dead, all its features are zero")
        assert (card.images[1] == 128).all() and card.images[2].std() > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"optimizer": "sgd"}, "optimizer is"),
        ({"tv": -1.0}, "the weight tv"),
        ({"layers": []}, "layers are given by"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Inversion(**arguments)


def test_an_unknown_layer_is_told_before_the_first_step() -> None:
    with pytest.raises(UsageError, match="no layer 'conv9'; did you mean"):
        fit("fp32", [Inversion("conv9")], logger=Recorder())
