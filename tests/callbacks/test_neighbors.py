"""The neighbours that the callback shows, against a loop over the data set."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, random_split

from lit_viz import draw
from lit_viz.callbacks import NearestNeighbors
from lit_viz.errors import UsageError
from lit_viz.functional import recall_at_k
from lit_viz.probing import scattered
from tests.conformance.harness import Blobs, Recorder, StatefulBlobs, TinyModule, fit, loaders, trainer

COUNT = 20


@pytest.fixture
def module() -> TinyModule:
    torch.manual_seed(0)
    return TinyModule()


def validated(callback: NearestNeighbors, module: TinyModule, data: Any = None) -> Recorder:
    recorder = Recorder()
    data = DataLoader(Blobs(COUNT, 3), 6) if data is None else data
    trainer([callback], logger=recorder).validate(module, data, verbose=False)
    return recorder


def head_input(module: TinyModule, images: Tensor) -> Tensor:
    features: list[Tensor] = []
    handle = module.net.head.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    module.eval()(images)
    handle.remove()
    return features[0].detach()


def colors(images: Tensor) -> Tensor:
    """8 bits for each colour, as the pictures have them."""
    return ((images * 0.5 + 0.4).clamp(0, 1) * 255).round()


def by_hand(vectors: Tensor, probes: list[int], k: int, metric: str) -> list[list[int]]:
    rows = []
    for i in probes:
        others = [j for j in range(len(vectors)) if j != i]
        if metric == "l2":
            distance = {j: float((vectors[i] - vectors[j]).double().norm()) for j in others}
        else:
            distance = {j: 1 - float(F.cosine_similarity(vectors[i], vectors[j], dim=0)) for j in others}
        rows.append(sorted(others, key=distance.__getitem__)[:k])
    return rows


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_neighbours_in_both_spaces_equal_a_loop(metric: Any, module: TinyModule) -> None:
    callback = NearestNeighbors(k=4, metric=metric, num_images=3, mean=0.4, std=0.5, on_error="raise")
    recorder = validated(callback, module)
    data, probes = Blobs(COUNT, 3), scattered(COUNT, 3).tolist()
    features = head_input(module, data.images)
    assert callback.found["net.head"].indices.tolist() == by_hand(features, probes, 4, metric)
    assert callback.found["pixels"].indices.tolist() == by_hand(colors(data.images).flatten(1), probes, 4, "l2")
    assert recorder.tags == {"neighbors/net.head"}
    numbers = {tag: value for tag, _, value in recorder.metrics if tag.startswith("neighbors/")}
    assert numbers == {
        "neighbors/net.head/recall@4": pytest.approx(recall_at_k(features, data.labels, 4, metric=metric)),
        "neighbors/pixels/recall@4": pytest.approx(
            recall_at_k(colors(data.images).flatten(1), data.labels, 4, metric="l2")
        ),
    }


def test_large_images_are_compared_at_32_px(module: TinyModule) -> None:
    data = [(F.interpolate(i[None], size=(96, 80), mode="nearest")[0], y) for i, y in Blobs(COUNT, 3)]
    callback = NearestNeighbors(k=3, num_images=2, thumbnail_size=48, mean=0.4, std=0.5, on_error="raise")
    validated(callback, module, DataLoader(data, 6))
    assert callback.features is not None and callback.features.thumbnails.shape[2:] == (48, 40)
    small = F.interpolate(torch.stack([i for i, _ in data]), size=(48, 40), mode="area")
    reduced = F.interpolate(colors(small) / 255, size=(32, 27), mode="area").flatten(1)
    assert callback.found["pixels"].indices.tolist() == by_hand(reduced, scattered(COUNT, 2).tolist(), 3, "l2")


def rows_of(monkeypatch: pytest.MonkeyPatch) -> list[draw.NeighborRow]:
    seen: list[draw.NeighborRow] = []
    original = draw.neighbor_sheet
    monkeypatch.setattr(draw, "neighbor_sheet", lambda rows, *a, **k: (seen.extend(rows), original(rows, *a, **k))[1])
    return seen


def test_what_is_said_below_the_pictures(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, data = rows_of(monkeypatch), Blobs(COUNT, 3)
    callback = NearestNeighbors(k=3, num_images=2, mean=0.4, std=0.5, on_error="raise")
    validated(callback, module)
    for row, probe in zip(seen, scattered(COUNT, 2).tolist(), strict=True):
        assert row.query.caption == data.classes[data.labels[probe]]
        for space, group in zip(("net.head", "pixels"), row.groups, strict=True):
            found = callback.found[space].indices[0 if probe == 0 else 1].tolist()
            assert [t.caption for t in group] == [data.classes[data.labels[j]] for j in found]
            assert [t.correct for t in group] == [bool(data.labels[j] == data.labels[probe]) for j in found]
            for one, j in zip(group, found, strict=True):
                assert torch.equal(torch.from_numpy(one.image).movedim(-1, 0), colors(data.images[j]).byte())


class Twice(Blobs):
    """The first two images are the same."""

    def __init__(self) -> None:
        super().__init__(COUNT, 3)
        self.images[1] = self.images[0]


def test_a_copy_of_the_probe_is_a_neighbour_but_not_itself(module: TinyModule) -> None:
    callback = NearestNeighbors(k=2, num_images=1, on_error="raise")
    validated(callback, module, DataLoader(Twice(), 6))
    for found in callback.found.values():
        assert found.indices[0, 0] == 1 and found.distances[0, 0] == pytest.approx(0, abs=1e-6)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Blobs(COUNT, 3))


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(Stream(), 6),
        DataLoader(Blobs(COUNT, 3), batch_sampler=[list(range(i, i + 5)) for i in (5, 0, 15, 10)]),
    ],
    ids=["stream", "own batches"],
)
def test_where_indices_are_unknown_the_probe_is_known_by_its_pixels(data: Any, module: TinyModule) -> None:
    callback = NearestNeighbors(k=3, num_images=4, on_error="raise")
    recorder = validated(callback, module, data)
    assert recorder.tags == {"neighbors/net.head"}
    assert callback.indices is not None and not callback.indices.exact
    for found in callback.found.values():
        assert not (found.indices == torch.arange(4)[:, None]).any()  # those of the first batch
        assert (found.distances > 1e-4).all()


class Noisy(Blobs):
    """So that pixels tell little."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.images += 2 * torch.randn(self.images.shape, generator=torch.Generator().manual_seed(5))


def test_shuffled_data_count_as_unknown(module: TinyModule) -> None:
    callback = NearestNeighbors(k=1, num_images=4, on_error="raise")
    recorder = validated(callback, module, DataLoader(Blobs(COUNT, 3), 6, shuffle=True))
    assert (callback.found["pixels"].distances > 1e-4).all()
    again = validated(callback, module, DataLoader(Noisy(COUNT, 4), 6))
    first, last = ({tag: v for tag, _, v in r.metrics}["neighbors/pixels/recall@1"] for r in (recorder, again))
    assert first > last  # nothing is left of the data before


def test_probes_that_are_not_searched_exclude_nobody(module: TinyModule) -> None:
    callback = NearestNeighbors(k=3, num_images=8, max_samples=7, on_error="raise")
    validated(callback, module)
    assert callback.features is not None and len(callback.features.samples) == 7
    probes = scattered(COUNT, 8)
    for found in callback.found.values():
        assert not (callback.features.samples[found.indices] == probes[:, None]).any()


def test_without_labels_there_is_no_recall(module: TinyModule, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlabelled(TinyModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch)

    seen = rows_of(monkeypatch)
    callback = NearestNeighbors(k=3, on_error="raise")
    recorder = validated(callback, Unlabelled(), DataLoader(list(Blobs(COUNT, 3).images), 6))
    assert recorder.tags == {"neighbors/net.head"} and not [tag for tag, *_ in recorder.metrics if "recall" in tag]
    assert {t.correct for row in seen for group in row.groups for t in group} == {None}


def test_a_named_layer_and_few_images(module: TinyModule) -> None:
    callback = NearestNeighbors("conv2", k=9, num_images=2, on_error="raise")
    recorder = validated(callback, module, DataLoader(Blobs(5, 3), 6))
    assert recorder.tags == {"neighbors/net.conv2"}
    assert callback.found["net.conv2"].indices.shape == (2, 4)
    with pytest.raises(UsageError, match="no other image"):
        validated(NearestNeighbors(on_error="raise"), module, DataLoader(Blobs(1, 3), 6))


def test_training_lets_the_recall_of_features_rise_over_that_of_pixels() -> None:
    torch.manual_seed(0)
    recorder = Recorder()
    train, val = loaders(160, 90, data=Noisy)
    callback, module = NearestNeighbors(k=1, on_error="raise"), TinyModule()
    trainer([callback], logger=recorder).validate(module, val, verbose=False)
    trainer([callback], logger=recorder, max_epochs=6).fit(module, train, val)
    features, pixels = (
        [v for tag, _, v in recorder.metrics if tag == f"neighbors/{space}/recall@1"]
        for space in ("net.head", "pixels")
    )
    assert len(features) == len(pixels) == 7 and len(set(pixels)) == 1
    assert features[-1] > features[0] + 0.1 and features[-1] > pixels[0]


def test_features_that_are_nan_are_said_once_and_the_run_goes_on() -> None:
    class Broken(TinyModule):
        def on_train_start(self) -> None:
            with torch.no_grad():
                self.net.conv1.weight.fill_(torch.nan)

    recorder = Recorder()
    with pytest.warns(UserWarning, match="hold NaN or infinite values"):
        trainer([NearestNeighbors()], logger=recorder).fit(Broken(), *loaders())
    assert not recorder.tags


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k must be a whole number, at least 1"),
        ({"metric": "l1"}, "metric is 'cosine' or 'l2'"),
        ({"layer": ["a", "b"]}, "layer is the dotted name of a layer"),
        ({"max_samples": 2}, "max_samples must be a whole number, at least 5"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        NearestNeighbors(**options)


def test_a_reference_set_is_searched_instead() -> None:
    """Neighbours among other images, against distances by hand; training goes on as if nobody looked."""
    torch.manual_seed(0)
    module, reference = TinyModule(), Blobs(30, 9)
    callback = NearestNeighbors(k=4, reference=reference, num_images=3, mean=[0.5], std=[1.0], on_error="raise")
    recorder = Recorder()
    trainer([callback], logger=recorder).validate(module, DataLoader(Blobs(20, 3), 6), verbose=False)
    kept: list[Tensor] = []
    handle = module.net.head.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    module.eval()(Blobs(20, 3).images[scattered(20, 3)]), module(reference.images)
    handle.remove()
    queries, found = kept
    similar = torch.nn.functional.cosine_similarity(queries[:, None], found[None], dim=2)
    assert torch.equal(callback.found["net.head"].indices, similar.topk(4, dim=1).indices)
    assert recorder.tags == {"neighbors/net.head"}


def test_a_reference_leaves_training_alone() -> None:
    shuffled = DataLoader(Blobs(30, 9), 8, shuffle=True)
    seen = fit("fp32", [NearestNeighbors(reference=shuffled, max_samples=20, on_error="raise")], logger=Recorder())
    alone = fit("fp32")
    assert all(torch.equal(v, alone.weights[k]) for k, v in seen.weights.items())
    assert seen.rng == alone.rng


def test_a_bad_reference() -> None:
    with pytest.raises(UsageError, match="data set, a loader or a data module"):
        NearestNeighbors(reference=[1, 2])
    callback = NearestNeighbors(reference=Wrong(), on_error="raise")
    with pytest.raises(UsageError, match="prepare them in the same way"):
        trainer([callback], logger=Recorder()).validate(TinyModule(), DataLoader(Blobs(20, 3), 6), verbose=False)


class Wrong(torch.utils.data.Dataset[Any]):
    """Images of another size."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 8, 8), 0


def test_a_reference_that_changes_as_it_is_read_leaves_training_alone() -> None:
    def weights(*callbacks: Callback) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = TinyModule()
        trainer(callbacks, logger=Recorder()).fit(module, DataLoader(data, 8), DataLoader(Blobs(12, 3), 6))
        return module.state_dict()

    data = StatefulBlobs(30, 1)
    alone = weights()
    data = StatefulBlobs(30, 1)
    seen = weights(NearestNeighbors(reference=data, on_error="raise"))
    assert all(torch.equal(value, alone[name]) for name, value in seen.items())


def test_a_data_set_that_can_not_be_copied_is_a_reference_too() -> None:
    data = Blobs(30, 1)
    data.lock = threading.Lock()  # type: ignore[attr-defined]
    callback = NearestNeighbors(reference=data, on_error="raise")
    assert validated(callback, TinyModule()).tags == {"neighbors/net.head"}


def test_the_data_module_of_the_run_is_not_set_up_again() -> None:
    class Splits(LightningDataModule):
        count = 0

        def setup(self, stage: str) -> None:
            self.count += 1
            self.parts = random_split(Blobs(30, 1), [20, 10])

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.parts[0], 8)

        def val_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.parts[1], 8)

    data = Splits()
    callback = NearestNeighbors(reference=data, k=2, on_error="raise")
    trainer([callback], logger=Recorder()).fit(TinyModule(), datamodule=data)
    assert callback.found and data.count == 1
