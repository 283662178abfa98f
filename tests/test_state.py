"""Accumulators against brute force, on one rank and on several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_viz.functional import TopResponses, cut, strongest
from lit_viz.state import FeatureBank, Features, Kept, Patches, TopK

COUNT, CHANNELS, K = 40, 5, 6
SHOWN = torch.tensor([3, 0, 4])

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method")  # before the first `update`


def data(*, ties: bool = False, count: int = COUNT) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 10, 8) and maps (N, C, 5, 4), one place per 2×2 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, 3, 10, 8), generator=generator, dtype=torch.uint8)
    maps = torch.randn(count, CHANNELS, 5, 4, generator=generator)
    return images, (maps * 2).round() if ties else maps


def box(images: Tensor, which: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """5×5 pixels around a place of the map; reaches beyond the image at the borders."""
    origins = torch.stack([place // 4 * 2 - 1, place % 4 * 2 - 1], dim=1)
    return cut(images, which, origins, (5, 5))


def top_k() -> TopK:
    """Two layers, the second of which sees the first one's opposite."""
    return TopK({"a": Kept(CHANNELS, SHOWN, (3, 5, 5)), "b": Kept(2, torch.tensor([1]), (1, 1, 1))}, K)


def collect(
    images: Tensor, maps: Tensor, order: Tensor, batch: int, *, floor: bool = True, metric: TopK | None = None
) -> TopK:
    metric = metric or top_k()
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        metric.update(
            {
                "a": strongest(maps[rows], rows, metric.floor("a") if floor else None, k=K),
                "b": strongest(-maps[rows, :2], rows, metric.floor("b") if floor else None, k=K),
            }
        )

    def cut_own(layer: str, channels: Tensor, samples: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        if layer == "b":
            return torch.full((len(samples), 1, 1, 1), 7, dtype=torch.uint8), torch.ones(len(samples), 1, 1).bool()
        assert set(channels.tolist()) <= set(SHOWN.tolist())
        assert set(samples.tolist()) <= set(order.tolist())  # a rank has its own images only
        return box(images, samples, places)

    metric.fill(cut_own)
    return metric


def expected(images: Tensor, maps: Tensor) -> Patches:
    """All at once: a stable sort over the whole data set."""
    k = min(K, len(maps))
    peaks, places = maps.flatten(2).max(2)
    values, samples = peaks.T.sort(dim=1, descending=True, stable=True)
    values, samples = values[:, :k], samples[:, :k]
    places = maps.flatten(2).argmax(2).T.gather(1, samples)
    cuts = [box(images, samples[channel], places[channel]) for channel in SHOWN]
    return Patches(
        TopResponses(values, samples, places),
        SHOWN,
        torch.stack([patch for patch, _ in cuts]),
        torch.stack([inside for _, inside in cuts]),
    )


def equal(layers: dict[str, Patches], wanted: Patches) -> bool:
    found, k = layers["a"], wanted.top.values.shape[1]
    assert (found.top.samples[:, k:] == -1).all()
    pairs = [
        (found.top.values[:, :k], wanted.top.values),
        (found.top.samples[:, :k], wanted.top.samples),
        (found.top.places[:, :k], wanted.top.places),
        (found.images[:, :k], wanted.images),
        (found.inside[:, :k], wanted.inside),
        (found.shown, wanted.shown),
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def gathered(metric: Metric, ranks: Sequence[Metric]) -> None:
    """What a sync does with states that are not reduced: stack them."""
    for name in metric._defaults:
        setattr(metric, name, torch.stack([getattr(rank, name) for rank in ranks]))


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("floor", [False, True])
def test_streaming_equals_all_at_once(batch: int, ties: bool, floor: bool) -> None:
    images, maps = data(ties=ties)
    metric = collect(images, maps, torch.arange(COUNT), batch, floor=floor)
    assert equal(metric.result(), expected(images, maps))
    assert metric.compute() == (CHANNELS + 2) * K


def test_order_of_the_data_does_not_matter() -> None:
    images, maps = data()
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
    order = shuffled.reshape(8, 5).sort(dim=1).values.flatten()  # within a batch samples increase
    assert equal(collect(images, maps, order, 5).result(), expected(images, maps))


def test_fewer_samples_than_k() -> None:
    images, maps = data(count=4)
    metric = collect(images, maps, torch.arange(4), 3)
    assert equal(metric.result(), expected(images, maps)) and metric.compute() == (CHANNELS + 2) * 4


def test_floor_is_the_weakest_kept() -> None:
    images, maps = data()
    metric = top_k()
    assert (metric.floor("a") == -torch.inf).all()
    collect(images, maps, torch.arange(COUNT), 8, metric=metric)
    assert torch.equal(metric.floor("a"), maps.amax((2, 3)).sort(0, descending=True).values[K - 1])
    assert torch.equal(metric.floor("b"), (-maps[:, :2]).amax((2, 3)).sort(0, descending=True).values[K - 1])


def fails(*_: Any) -> tuple[Tensor, Tensor]:
    raise AssertionError("nothing to cut")


def test_a_batch_with_nothing_new_changes_nothing() -> None:
    images, maps = data()
    metric = collect(images, maps, torch.arange(COUNT), 8)
    late = torch.arange(COUNT) + COUNT
    low = {name: strongest(maps[:, :c] - 100, late, metric.floor(name), k=K) for name, c in (("a", CHANNELS), ("b", 2))}
    metric.update(low)
    assert not any(len(part.values) for part in low.values())
    assert equal(metric.result(), expected(images, maps))


def test_nothing_seen() -> None:
    metric = top_k()
    metric.fill(fails)
    found = metric.result()["a"]
    assert (found.top.samples == -1).all() and not found.images.any() and not found.inside.any()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_equal_one(ranks: int, ties: bool) -> None:
    images, maps = data(ties=ties)
    # As DistributedSampler splits: in turn, the first samples again until all ranks have as many.
    padded = [*range(COUNT), *range(-COUNT % ranks)]
    parts = [collect(images, maps, torch.tensor(padded[rank::ranks]), 4) for rank in range(ranks)]
    metric = top_k()
    gathered(metric, parts)
    assert equal(metric._merged(), expected(images, maps))


def test_a_rank_without_data() -> None:
    images, maps = data()
    full, empty = collect(images, maps, torch.arange(COUNT), 8), top_k()
    for parts in ((full, empty), (empty, full)):
        metric = top_k()
        gathered(metric, parts)
        assert equal(metric._merged(), expected(images, maps))


def test_samples_on_both_ranks_count_once() -> None:
    images, maps = data(ties=True)
    whole = collect(images, maps, torch.arange(COUNT), 8)
    metric = top_k()
    gathered(metric, [whole, whole])
    assert equal(metric._merged(), expected(images, maps))


def test_reset_starts_anew() -> None:
    images, maps = data()
    metric = collect(images, maps, torch.arange(COUNT), 8)
    metric.reset()
    assert metric.compute() == 0 and (metric.floor("a") == -torch.inf).all() and not metric.images_0.any()
    collect(images, maps, torch.arange(COUNT), 8, metric=metric)
    assert equal(metric.result(), expected(images, maps))


def test_memory_does_not_grow_with_the_data() -> None:
    images, maps = data()

    def size(metric: Metric) -> int:
        return sum(getattr(metric, name).nbytes for name in metric._defaults)

    metric = top_k()
    before = size(metric)
    assert size(collect(images, maps, torch.arange(COUNT), 8, metric=metric)) == before


# --- FeatureBank ---


def features(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(count, 7, generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
        torch.randint(0, 256, (count, 3, 5, 4), generator=generator, dtype=torch.uint8),
    )


def fill(order: Sequence[int], batch: int, capacity: int, count: int = 30) -> FeatureBank:
    values, labels, thumbnails = features(count)
    bank = FeatureBank(capacity, 7, (3, 5, 4))
    for start in range(0, len(order), batch):
        rows = torch.tensor(order[start : start + batch])
        bank.update(values[rows], labels[rows], rows, thumbnails[rows])
    return bank


def holds(found: Features, samples: Sequence[int], count: int = 30) -> bool:
    values, labels, thumbnails = features(count)
    rows = torch.tensor(samples, dtype=torch.int64)
    return (
        torch.equal(found.samples, rows)
        and torch.equal(found.values, values[rows])
        and torch.equal(found.labels, labels[rows])
        and torch.equal(found.thumbnails, thumbnails[rows])
    )


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_bank_keeps_all_in_the_order_of_the_data(batch: int) -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2)).tolist()
    bank = fill(order, batch, capacity=64)
    assert holds(bank.result(), range(30)) and bank.compute() == 30


@pytest.mark.parametrize("batch", [1, 4, 30])
def test_bank_ignores_what_is_beyond_its_capacity(batch: int) -> None:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2)).tolist()
    bank = fill(order, batch, capacity=11)
    assert holds(bank.result(), sorted(order[:11])) and bank.compute() == 11


def test_bank_counts_repeated_samples_once() -> None:
    assert holds(fill([4, 2, 9, 2, 4, 4], 2, capacity=8).result(), [2, 4, 9])


def test_empty_bank() -> None:
    bank = FeatureBank(8, 7, (3, 5, 4))
    found = bank.result()
    assert found.values.shape == (0, 7) and found.thumbnails.shape == (0, 3, 5, 4) and bank.compute() == 0


@pytest.mark.parametrize("ranks", [2, 3])
def test_banks_of_ranks_together_equal_one(ranks: int) -> None:
    padded = [*range(29), *range(-29 % ranks)]
    bank = FeatureBank(20, 7, (3, 5, 4))
    gathered(bank, [fill(padded[rank::ranks], 4, capacity=20) for rank in range(ranks)])
    assert holds(bank._merged(), range(29))
    assert bank.compute() == len(padded)


def test_bank_takes_half_precision_and_resets() -> None:
    bank = FeatureBank(4, 7, (3, 5, 4))
    values, labels, thumbnails = features(3)
    for _ in range(2):
        bank.update(values.bfloat16(), labels, torch.arange(3), thumbnails)
        found = bank.result()
        assert found.values.dtype == torch.float32 and torch.equal(found.values, values.bfloat16().float())
        bank.reset()
        assert bank.compute() == 0 and len(bank.result().samples) == 0
