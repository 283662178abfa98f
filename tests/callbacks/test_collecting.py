"""Collecting callbacks read validation's own passes only where these show what they seem to show."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lit_viz.callbacks import Embeddings, MaxActivatingPatches
from tests.conformance.harness import Blobs, Recorder, TinyModule, fit, loaders, trainer

VAL = 14


def collected(module: TinyModule, data: Any = None, **kwargs: Any) -> dict[str, Tensor]:
    """Everything that both callbacks hold after a validation pass."""
    patches = MaxActivatingPatches(k=4, channels="all", on_error="raise", **kwargs)
    embeddings = Embeddings(methods="pca", projector=False, on_error="raise", **kwargs)
    data = data or DataLoader(Blobs(VAL, 2), 6)
    trainer([patches, embeddings], logger=Recorder()).validate(module, data, verbose=False)
    assert embeddings.features is not None
    out = {f: getattr(embeddings.features, f) for f in ("values", "labels", "samples", "thumbnails")}
    for layer, result in patches.results.items():
        out |= {f"{layer} {f}": getattr(result.top, f) for f in ("values", "samples", "places")}
        out |= {f"{layer} images": result.images}
    return out


def seeded(make: Callable[[], TinyModule]) -> TinyModule:
    torch.manual_seed(0)
    return make()


class InPlace(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        batch[0].mul_(0).add_(7)


class Shrunk(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((F.interpolate(batch[0], scale_factor=0.5), batch[1]), batch_idx)


class Flipped(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch[0].flip(3), batch[1]), batch_idx)


class Reordered(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch[0].flip(0), batch[1].flip(0)), batch_idx)


class TwoViews(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((torch.cat([batch[0], -batch[0]]), batch[1].repeat(2)), batch_idx)


class NoForward(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class InTrainingMode(TinyModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net.norm1.train()
        super().validation_step(batch, batch_idx)
        self.net.norm1.eval()


@pytest.mark.parametrize("make", [InPlace, Shrunk, Flipped, Reordered, TwoViews, NoForward])
def test_whatever_the_validation_step_does_with_its_batch(make: type[TinyModule]) -> None:
    expected, found = collected(seeded(TinyModule)), collected(seeded(make))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_step_that_runs_the_network_in_training_mode() -> None:
    """The pictures are of the network as it is used, not of batch statistics."""
    module = seeded(InTrainingMode)
    torch.nn.init.constant_(module.net.norm1.running_mean, 0.5)
    patches = MaxActivatingPatches(k=1, on_error="raise")
    data = DataLoader(Blobs(6, 2), 6)
    trainer([patches], logger=Recorder()).validate(module, data, verbose=False)
    assert patches.shareable is False


def test_an_ordinary_step_is_shared() -> None:
    patches = MaxActivatingPatches(k=1, on_error="raise")
    trainer([patches], logger=Recorder()).validate(TinyModule(), loaders()[1], verbose=False)
    assert patches.shareable is True


def test_maps_in_channels_last_layout_count_their_channels() -> None:
    class Permuted(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net.as_rows = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            maps = self.net.conv2(self.net.conv1(images))
            return self.net.as_rows(maps.permute(0, 2, 3, 1))[..., :3].mean((1, 2))

    callback = Embeddings("as_rows", methods="pca", on_error="raise")
    trainer([callback], logger=Recorder()).validate(Permuted(), loaders()[1], verbose=False)
    assert callback.features is not None and callback.features.values.shape == (VAL, 6)


@pytest.mark.parametrize("run", [{"limit_val_batches": 4}, {"limit_val_batches": 1.0}])
def test_samples_are_spread_over_what_validation_goes_through(run: dict[str, Any]) -> None:
    callback = Embeddings(methods="pca", max_samples=10, on_error="raise")
    data = DataLoader(Blobs(60, 2), 6)
    trainer([callback], logger=Recorder(), **run).validate(TinyModule(), data, verbose=False)
    seen = 24 if run["limit_val_batches"] == 4 else 60
    assert callback.features is not None
    samples = callback.features.samples
    assert len(samples) == 10 and samples.max() < seen and samples.max() - samples.min() > seen / 2
    again = Embeddings(methods="pca", max_samples=10, on_error="raise")
    trainer([again], logger=Recorder(), **run).validate(TinyModule(), data, verbose=False)
    assert again.features is not None and torch.equal(again.features.samples, samples)


def test_classes_that_come_in_turn_are_all_among_the_samples() -> None:
    class InTurn(Blobs):
        def __init__(self) -> None:
            super().__init__(600, 2)
            self.labels = torch.arange(600) % 3

    callback = Embeddings(methods="pca", max_samples=200, on_error="raise")
    trainer([callback], logger=Recorder()).validate(TinyModule(), DataLoader(InTurn(), 60), verbose=False)
    assert callback.features is not None
    assert callback.features.labels.bincount().tolist() == pytest.approx([67] * 3, abs=20)


def test_samples_of_an_unknown_order_are_spread_as_well() -> None:
    callback = Embeddings(methods="pca", max_samples=10, on_error="raise")
    order = [[i, i + 1] for i in range(0, 60, 2)]
    data = DataLoader(Blobs(60, 2), batch_sampler=order)
    trainer([callback], logger=Recorder()).validate(TinyModule(), data, verbose=False)
    assert callback.features is not None
    samples = callback.features.samples
    assert len(samples) == 10 and samples.max() - samples.min() > 30


def test_default_layers_are_those_that_run_once() -> None:
    class TwoNets(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.generator = nn.Conv2d(3, 3, 1)
            self.twice = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(self.twice(self.twice(images)))

    callback = MaxActivatingPatches(on_error="raise")
    trainer([callback], logger=Recorder()).validate(TwoNets(), loaders()[1], verbose=False)
    assert set(callback.results) == {"net.conv1", "net.conv2"}


@pytest.mark.parametrize("make", [MaxActivatingPatches, lambda **k: Embeddings(methods="pca", **k)])
def test_no_scores_are_needed(make: Any) -> None:
    class Autoencoder(TinyModule):
        def forward(self, images: Tensor) -> Any:
            return {"reconstruction": self.net.conv2(self.net.conv1(images))}

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

    recorder = Recorder()
    callback = make(**{"layers" if make is MaxActivatingPatches else "layer": "conv1"}, on_error="raise")
    trainer([callback], logger=recorder).validate(Autoencoder(), loaders()[1], verbose=False)
    assert recorder.images


@pytest.mark.parametrize("make", [MaxActivatingPatches, lambda **k: Embeddings(methods="pca", **k)])
def test_a_finished_callback_can_be_copied_and_pickled(make: Any) -> None:
    callback = make(on_error="raise")
    fit("fp32", [callback], logger=Recorder())
    copy.deepcopy(callback)
    again = pickle.loads(pickle.dumps(callback))
    fit("fp32", [again], logger=Recorder())


def test_after_a_failed_preparation_there_is_nothing_more_to_say() -> None:
    class Pair(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(3, 16, 20), torch.zeros(4), 1

    class Needs(TinyModule):
        def forward(self, images: Tensor, more: Tensor) -> Tensor:
            return super().forward(images)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0], batch[1]).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0], batch[1])

    data = DataLoader(Pair(), 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([Embeddings(), MaxActivatingPatches()], logger=Recorder()).fit(Needs(), data, data)
    told = [str(w.message) for w in caught if "could not" in str(w.message)]
    assert len(told) == 2 and all("missing 1 required positional argument: 'more'" in t for t in told)

    recorder = Recorder()
    run = lambda module, images: module(images, torch.zeros(len(images), 4))  # noqa: E731
    callbacks = [Embeddings(methods="pca", forward=run, on_error="raise")]
    callbacks += [MaxActivatingPatches(forward=run, on_error="raise")]
    trainer(callbacks, logger=recorder).fit(Needs(), data, data)
    assert {tag.split("/")[0] for tag in recorder.tags} == {"embeddings", "patches"}
