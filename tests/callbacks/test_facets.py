"""Which images the callback takes for a class, and what it draws of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_viz import functional
from lit_viz.callbacks import Facets
from lit_viz.errors import UsageError
from lit_viz.functional import Facets as Found
from lit_viz.functional import facet_images, find_facets, head_features
from lit_viz.pixels import PixelSpace
from tests.conformance.harness import Blobs, Recorder, TinyModule, fit, loaders, trainer

COUNT = 40
SPACE = PixelSpace((0.4,), (0.5,))


@pytest.fixture(scope="module")
def module() -> TinyModule:
    """Trained, so that its classes mean something."""
    return fit("fp32", max_epochs=6).module


def validated(module: TinyModule, data: Any = None, **kwargs: Any) -> tuple[Facets, Recorder]:
    defaults = {"facets": 2, "steps": 4, "mean": 0.4, "std": 0.5, "on_error": "raise"}
    callback, recorder = Facets(**{**defaults, **kwargs}), Recorder()
    data = DataLoader(Blobs(COUNT, 3), 6) if data is None else data
    trainer([callback], logger=recorder).validate(module, data, verbose=False)
    return callback, recorder


def colors(images: Tensor) -> Tensor:
    """8 bits for each colour, as they are kept."""
    return ((images * 0.5 + 0.4).clamp(0, 1) * 255).round() / 255


def test_facets_of_the_images_with_the_label(module: TinyModule) -> None:
    callback, recorder = validated(module, target="cat")
    data = Blobs(COUNT, 3)
    own = data.images[data.labels == 2]
    features, _ = head_features(module, own)
    expected = find_facets(features, colors(own), count=2)
    found, made = callback.found["cat"], callback.made["cat"]
    assert [m.tolist() for m in found.members] == [m.tolist() for m in expected.members]
    starts = SPACE.from_color(expected.means)
    torch.testing.assert_close(found.means, starts, rtol=1e-4, atol=1e-4)
    by_hand = facet_images(module, found.means, 2, steps=4, center_biased=True, pixels=SPACE)
    torch.testing.assert_close(made.images, by_hand.images)
    assert recorder.tags == {"facets/cat"}
    numbers = {tag: value for tag, _, value in recorder.metrics if tag.startswith("facets/")}
    probability = float(by_hand.scores.softmax(dim=1)[:, 2].mean())
    assert numbers == {"facets/cat/probability": pytest.approx(probability, rel=1e-4)}


def test_numbers_stay_with_the_kinds(module: TinyModule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Facets that come in another order at the second epoch; in one run, and in one that goes on from a checkpoint."""
    first: list[Found] = []

    def find(*args: Any, **kwargs: Any) -> Found:
        if not first:
            first.append(find_facets(*args, **kwargs))
            return first[0]
        one = first[0]
        return replace(one, means=one.means.flip(0), members=one.members[::-1], centroids=one.centroids.flip(0))

    monkeypatch.setattr(functional, "find_facets", find)
    data = DataLoader(Blobs(COUNT, 3), 6)

    def run(epochs: int, checkpoint: Path | None = None) -> tuple[Facets, Trainer]:
        callback = Facets("cat", facets=2, steps=2, mean=0.4, std=0.5, on_error="raise")
        made = trainer([callback], max_epochs=epochs)
        made.fit(TinyModule(), data, data, ckpt_path=checkpoint, weights_only=True)
        return callback, made

    whole, _ = run(2)
    kinds = [m.tolist() for m in first[0].members]
    assert [m.tolist() for m in whole.found["cat"].members] == kinds and kinds[0] != kinds[1]
    first.clear()
    _, half = run(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(2, tmp_path / "half.ckpt")
    assert [m.tolist() for m in resumed.found["cat"].members] == [m.tolist() for m in first[0].members]
    fresh, _ = run(1)
    assert [m.tolist() for m in fresh.found["cat"].members] == [m.tolist() for m in first[0].members[::-1]]


class Unlabelled(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.images[index],)


def test_without_labels_by_prediction(module: TinyModule) -> None:
    images = Blobs(COUNT, 3).images

    class Looks(TinyModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    looks = Looks()
    looks.load_state_dict(module.state_dict())
    callback, recorder = validated(looks, DataLoader(Unlabelled(images), 6), target=1)
    predicted = head_features(module, images)[1].argmax(dim=1)
    assert sum(callback.found["class 1"].sizes) == int((predicted == 1).sum()) > 0
    assert recorder.tags == {"facets/class 1"}


def test_no_more_images_than_wanted_are_kept(module: TinyModule) -> None:
    callback, _ = validated(module, target=["ant", "cat"], max_images=5, layer="conv2")
    data = Blobs(COUNT, 3)
    for index in (0, 2):
        kept = callback._of[index]
        assert kept.samples.tolist() == (data.labels == index).nonzero()[:5, 0].tolist()
        assert kept.values.shape == (5, 6)
        assert torch.equal(kept.thumbnails, (colors(data.images[kept.samples]) * 255).round().to(torch.uint8))


def test_a_class_that_is_missing_is_told_and_the_others_are_drawn(module: TinyModule) -> None:
    blobs = Blobs(COUNT, 3)
    keep = [i for i in range(COUNT) if blobs.labels[i] != 1]
    data = torch.utils.data.Subset(blobs, keep)
    with pytest.warns(UserWarning, match="no image of the validation pass is bee"):
        _, recorder = validated(module, DataLoader(data, 6), target=["bee", "cat"], class_names=["ant", "bee", "cat"])
    assert recorder.tags == {"facets/cat"}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"target": "dog"}, "no class 'dog'"),
        ({"target": 3}, "3 classes, 0 to 2"),
        ({"target": 0, "layer": "nowhere"}, "no layer 'nowhere'"),
    ],
)
def test_what_can_t_work_is_told_before_training(kwargs: Any, words: str) -> None:
    with warnings.catch_warnings(), pytest.raises(UsageError, match=words):
        warnings.simplefilter("ignore")
        trainer([Facets(**kwargs)], logger=Recorder()).fit(TinyModule(), *loaders())


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"target": []}, "target"),
        ({"target": 1.5}, "target"),
        ({"target": 0, "layer": ["a", "b"]}, "layer"),
        ({"target": 0, "facets": 0}, "facets"),
        ({"target": 0, "steps": 0}, "steps"),
    ],
)
def test_arguments_are_checked(kwargs: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Facets(**kwargs)
