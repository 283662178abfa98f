"""What activation maps and attention rollout say and draw, on networks small enough to know the answer."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_viz import draw, functional
from lit_viz.callbacks import Activations, AttentionRollout
from lit_viz.errors import UsageError
from tests.conformance.harness import Blobs, Recorder, TinyModule, assert_no_hooks, fit, trainer


def validated(callback: Any, module: Any, count: int = 12) -> Recorder:
    recorder = Recorder()
    trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(count, 3), 6), verbose=False)
    return recorder


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[draw.MapBlock], dict[str, Any]]]:
    """The blocks of each activation sheet and what else it is told."""
    sheets: list[tuple[list[draw.MapBlock], dict[str, Any]]] = []
    original = draw.activation_sheet

    def record(blocks: Any, **kwargs: Any) -> np.ndarray:
        sheets.append((blocks, kwargs))
        return original(blocks, **kwargs)

    monkeypatch.setattr(draw, "activation_sheet", record)
    return sheets


def test_each_image_has_its_strongest_channels_first(module: TinyModule, drawn: Any) -> None:
    callback = Activations("relu1", channels=4, num_images=3, on_error="raise")
    validated(callback, module)
    images = callback._probe.images
    module.eval()
    with torch.no_grad():
        maps = module.net.norm1(module.net.conv1(images)).relu()
    ((blocks, told),) = drawn
    assert len(blocks) == 3 and told["signed"] is False
    for block, values in zip(blocks, maps, strict=True):
        order = sorted(range(6), key=lambda c: -float(values[c].max()))[:4]
        assert list(block.labels) == [str(c) for c in order]
        np.testing.assert_array_equal(block.maps, values[order].numpy())


def test_by_index_the_same_channels_for_all(module: TinyModule, drawn: Any) -> None:
    validated(Activations("conv1", channels=3, order="index", num_images=2, on_error="raise"), module)
    ((blocks, told),) = drawn
    assert [list(block.labels) for block in blocks] == [["0", "2", "5"]] * 2 and told["signed"] is True
    drawn.clear()
    validated(Activations("conv1", channels=[4, 1], order="index", num_images=1, on_error="raise"), module)
    assert list(drawn[0][0][0].labels) == ["1", "4"]


def test_dead_and_broken_channels_are_said(module: TinyModule, drawn: Any) -> None:
    with torch.no_grad():
        module.net.norm1.bias[2], module.net.norm1.weight[2] = -1.0, 0.0
        module.net.norm1.weight[4] = torch.nan
    validated(Activations("relu1", channels="all", on_error="raise"), module)
    blocks, told = drawn[0]
    assert "1 of 6 is zero on all of these images." in told["subtitle"]
    assert "1 of 6 holds NaN" in told["subtitle"]
    assert [list(block.labels)[-1] for block in blocks] == ["4"] * 4  # what is broken comes last


def test_which_call(module: TinyModule, drawn: Any) -> None:
    class Reused(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) + self.net.relu1(-images).mean()

    with pytest.raises(UsageError, match="called 2 times"):
        validated(Activations("relu1", on_error="raise"), Reused())
    callback = Activations("relu1", call=1, num_images=2, order="index", on_error="raise")
    validated(callback, Reused())
    np.testing.assert_array_equal(drawn[0][0][1].maps, (-callback._probe.images[1]).relu().numpy())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"channels": 0}, "at least 1"),
        ({"channels": "some"}, "channels is"),
        ({"order": "random"}, "order is"),
        ({"scale": "shared"}, "scale is"),
        ({"layers": []}, "dotted names"),
    ],
)
def test_what_it_does_not_take(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Activations(**arguments)


def test_channels_and_layers_that_there_are_not(module: TinyModule) -> None:
    with pytest.raises(UsageError, match="channels 0 to 5"):
        validated(Activations("conv1", channels=[6]), module)
    with pytest.raises(UsageError, match="no layer 'conv3'"):
        validated(Activations("conv3"), module)


class TinyViT(L.LightningModule):
    """Two layers of attention over 4 × 5 patches and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return self.head(self.encoder(torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1))[:, 0])

    training_step = TinyModule.training_step
    validation_step = TinyModule.validation_step
    configure_optimizers = TinyModule.configure_optimizers
    freeze_norm = False


def test_tokens_on_their_places_and_the_class_token_in_words(drawn: Any) -> None:
    torch.manual_seed(0)
    module, callback = TinyViT(), Activations(num_images=2, channels=8, order="index", on_error="raise")
    recorder = validated(callback, module)
    assert recorder.tags == {"activations/encoder.layers.0", "activations/encoder.layers.1"}
    blocks, _ = drawn[0]
    assert blocks[0].maps.shape == (8, 4, 5)
    token = functional.layer_maps(module, callback._probe.images, ["encoder.layers.0"])["encoder.layers.0"].extra
    strongest = sorted(range(8), key=lambda feature: -float(token[1, 0, feature].abs()))[:5]
    assert blocks[1].detail == f"strongest features of the class token: {', '.join(map(str, strongest))}"


def test_rollout_draws_what_the_function_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_viz.callbacks import rollout as file

    seen: dict[str, Any] = {}
    original = file.attribution_sheet
    monkeypatch.setattr(
        file,
        "attribution_sheet",
        lambda look, maps, **k: (seen.update(look=look, maps=maps, **k), original(look, maps, **k))[1],
    )
    torch.manual_seed(0)
    module = TinyViT()
    callback = AttentionRollout(num_images=5, head_fusion="max", discard=0.2, on_error="raise")
    assert validated(callback, module).tags == {"rollout/probe"}
    expected = functional.attention_rollout(module, seen["look"].images, head_fusion="max", discard=0.2)
    assert expected.shape == (5, 4, 5)
    torch.testing.assert_close(seen["maps"], expected)
    assert "the same for every class" in seen["subtitle"]


@pytest.mark.parametrize("mode", ["fp32", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", [AttentionRollout, Activations])
def test_training_a_transformer_goes_on_as_without(make: Any, mode: str) -> None:
    from tests.conformance.harness import MODES, Mode, assert_untouched

    way = Mode(MODES[mode].trainer, module=TinyViT)
    recorder = Recorder()
    seen = fit(way, [make(every_n_steps=1, on_error="raise")], logger=recorder)
    assert_untouched(seen, fit(way))
    assert len({step for _, step, _ in recorder.images}) == seen.trainer.global_step + 1
    assert_no_hooks(seen.module)


def test_rollout_of_a_convolutional_network_stops_before_training(module: TinyModule) -> None:
    with pytest.raises(UsageError, match="no attention between tokens"):
        validated(AttentionRollout(), module)
    for arguments in ({"discard": 1.0}, {"head_fusion": "sum"}, {"token": "last"}, {"start_layer": -1}):
        with pytest.raises(UsageError):
            AttentionRollout(**arguments)
