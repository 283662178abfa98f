"""DeepDream while a network trains: the pictures are those of the function, at the layers that were meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import lit_viz
from lit_viz import draw, functional
from lit_viz.callbacks import DeepDream
from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace
from tests.conformance.harness import Blobs, Recorder, TinyModule, loaders, trainer

TINY: dict[str, Any] = {"num_images": 2, "octaves": 2, "steps": 2, "on_error": "raise", "mean": 0.5, "std": 0.5}


def validated(callback: DeepDream, module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> tuple[Recorder, list[Any]]:
    recorder, sheets = Recorder(), []
    original = draw.sheet
    monkeypatch.setattr(draw, "sheet", lambda cards, **k: sheets.append((cards, k)) or original(cards, **k))
    trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(6, 4), 6), verbose=False)
    return recorder, sheets


def tiny() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule().eval()


def test_the_pictures_are_those_of_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny()
    callback = DeepDream(["conv2", "relu1"], seed=3, **TINY)
    recorder, sheets = validated(callback, module, monkeypatch)
    assert recorder.tags == {"dream/net.conv2", "dream/net.relu1"}
    assert callback._probe is not None
    images = callback._probe.images
    numbers = {tag: value for tag, _, value in recorder.metrics}
    space = PixelSpace(0.5, 0.5)
    for layer, (cards, _) in zip(("conv2", "relu1"), sheets, strict=True):
        dream = functional.deep_dream(module, images, layer, octaves=2, steps=2, seed=3, pixels=space)
        for i, card in enumerate(cards):
            np.testing.assert_array_equal(card.images[0], draw.to_uint8(space.to_color(images))[i])
            np.testing.assert_array_equal(card.images[1], draw.to_uint8(space.to_color(dream.images))[i])
            assert card.caption in ("ant", "bee", "cat")
            before = functional.activations(module, images[i : i + 1], layer).square().mean() / 2
            assert card.detail.endswith(f"energy {before:.3g} → {float(dream.octaves[-1].objective[i]):.3g}")
        assert numbers[f"dream/net.{layer}/objective"] == pytest.approx(float(dream.octaves[-1].objective.mean()))


def test_a_silent_layer_is_told_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny()
    torch.nn.init.constant_(module.net.norm1.bias, -100.0)
    _, sheets = validated(DeepDream("relu1", **TINY), module, monkeypatch)
    assert all("no gradient reaches the image" in card.detail for card in sheets[0][0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": "conv9"}, "no layer 'conv9'"),
        ({"layers": "conv2", "channels": [6]}, "channels 0 to 5"),
    ],
)
def test_what_cannot_work_is_told_before_training(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        trainer([DeepDream(num_images=1, **arguments)], logger=Recorder()).fit(TinyModule(), *loaders())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"octaves": 0}, "octaves"),
        ({"octave_scale": 1}, "octave_scale"),
        ({"lr": 0}, "lr"),
        ({"channels": []}, "channels"),
        ({"channels": 3}, "channels"),
        ({"layers": []}, "layers"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DeepDream(**arguments)


def test_the_configuration_has_the_defaults() -> None:
    path = Path(lit_viz.__file__).parents[1] / "configs" / "callbacks" / "dream.yaml"
    (entry,) = yaml.safe_load(path.read_text())["trainer"]["callbacks+"]
    written, default = DeepDream(**entry["init_args"]), DeepDream()
    assert entry["class_path"] == "DeepDream"
    assert all(getattr(written, name) == getattr(default, name) for name in entry["init_args"])
