"""Running top-k against a full sort, cutting against a loop."""

from __future__ import annotations

from operator import itemgetter

import pytest
import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional import Responses, TopResponses, cut, merge, strongest


def maps_of(count: int, *, ties: bool = False, channels: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, channels, 4, 3, generator=generator)
    return (maps * 2).round() / 2 if ties else maps


Table = tuple[list[list[float]], list[list[int]], list[list[int]]]


def brute_force(maps: Tensor, samples: Tensor, k: int) -> Table:
    """Values, samples and places by sorting everything in Python."""
    out: Table = ([], [], [])
    for channel in range(maps.shape[1]):
        rows = {}
        for n, sample in enumerate(samples.tolist()):
            flat = maps[n, channel].flatten().tolist()
            if all(value == value for value in flat):
                rows[sample] = (-max(flat), sample, flat.index(max(flat)))
        best = sorted(rows.values())[:k]
        fill = k - len(best)
        out[0].append([-value for value, _, _ in best] + [-torch.inf] * fill)
        out[1].append([sample for _, sample, _ in best] + [-1] * fill)
        out[2].append([place for _, _, place in best] + [0] * fill)
    return out


def equal(found: TopResponses, expected: Table) -> bool:
    places = found.places.masked_fill(found.samples < 0, 0)
    return (found.values.tolist(), found.samples.tolist(), places.tolist()) == expected


def stream(maps: Tensor, samples: Tensor, k: int, batch: int, *, floor: bool = True) -> TopResponses:
    kept = TopResponses.empty(maps.shape[1], k)
    for start in range(0, len(maps), batch):
        part = slice(start, start + batch)
        new = strongest(maps[part], samples[part], kept.values[:, -1] if floor else None, k=k)
        kept = merged(kept, new, k)
    return kept


def merged(kept: TopResponses, new: Responses, k: int) -> TopResponses:
    """As `TopK` does with the channels that have something new."""
    rows, found = new.rows()
    part, _ = merge(kept.map(itemgetter(rows)), found, k=k)
    for name in ("values", "samples", "places"):
        getattr(kept, name)[rows] = getattr(part, name)
    return kept


def table(new: Responses, channels: int, k: int) -> TopResponses:
    """All of them, strongest first."""
    return merged(TopResponses.empty(channels, k), new, k)


@pytest.mark.parametrize("batch", [1, 3, 7, 64])
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("floor", [False, True])
def test_streaming_equals_a_full_sort(batch: int, k: int, ties: bool, floor: bool) -> None:
    maps, samples = maps_of(50, ties=ties), torch.arange(50) * 3 + 1
    assert equal(stream(maps, samples, k, batch, floor=floor), brute_force(maps, samples, k))


@pytest.mark.parametrize("batch", [2, 5])
def test_after_a_relu_many_tie_at_zero(batch: int) -> None:
    maps, samples = maps_of(20).sub(1.8).relu(), torch.arange(20)
    maps[:, 0] = 0
    found = stream(maps, samples, 9, batch)
    assert equal(found, brute_force(maps, samples, 9)) and found.samples[0].tolist() == list(range(9))


@pytest.mark.parametrize("batch", [1, 4])
def test_order_of_the_data_does_not_matter(batch: int) -> None:
    maps, samples = maps_of(30), torch.arange(30)
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    expected = brute_force(maps, samples, 6)
    kept = TopResponses.empty(5, 6)
    for start in range(0, 30, batch):
        rows = shuffled[start : start + batch].sort().values  # within a batch samples increase
        kept = merged(kept, strongest(maps[rows], rows, kept.values[:, -1], k=6), 6)
    assert equal(kept, expected)


@pytest.mark.parametrize("batch", [1, 2, 10])
def test_fewer_samples_than_k(batch: int) -> None:
    maps, samples = maps_of(4), torch.arange(4)
    found = stream(maps, samples, 6, batch)
    assert equal(found, brute_force(maps, samples, 6))
    assert (found.samples[:, 4:] == -1).all() and found.values[:, 4:].isinf().all()


@pytest.mark.parametrize("batch", [1, 4, 20])
def test_samples_with_nan_are_left_out(batch: int) -> None:
    maps, samples = maps_of(20), torch.arange(20)
    maps[3, 0, 1, 1] = torch.nan
    maps[:, 1] = torch.nan
    maps[5:, 2, 0] = torch.nan
    found = stream(maps, samples, 9, batch)
    assert equal(found, brute_force(maps, samples, 9))
    assert 3 not in found.samples[0] and (found.samples[1] == -1).all()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("floor", [False, True])
def test_samples_that_come_twice_count_once(batch: int, floor: bool) -> None:
    maps, samples = maps_of(16, ties=True), torch.arange(16)
    again = torch.cat([maps, maps[:4], maps[2:6]])
    repeated = torch.cat([samples, samples[:4], samples[2:6]])
    assert equal(stream(again, repeated, 9, batch, floor=floor), brute_force(maps, samples, 9))


def test_merging_two_ranks_equals_one() -> None:
    maps, samples = maps_of(21, ties=True), torch.arange(21)
    # What DistributedSampler gives to two ranks: every other sample, the first one again at the end.
    ranks = [torch.tensor([*range(0, 21, 2)]), torch.tensor([*range(1, 21, 2), 0])]
    parts = [stream(maps[rows], rows, 9, 4) for rows in ranks]
    for first, second in (parts, parts[::-1]):
        both, _ = merge(first, second, k=9)
        assert equal(both, brute_force(maps, samples, 9))


def test_merge_says_where_each_came_from() -> None:
    maps = maps_of(12)
    early = table(strongest(maps[:6], torch.arange(6), k=4), 5, 4)
    late = table(strongest(maps[6:], torch.arange(6, 12), k=4), 5, 4)
    for first, second in ((early, late), (late, early)):
        strong, order = merge(first, second, k=5)
        for name in ("values", "samples", "places"):
            both = torch.cat([getattr(first, name), getattr(second, name)], dim=1)
            assert torch.equal(both.gather(1, order), getattr(strong, name))


def test_what_does_not_pass_the_floor_is_not_reported() -> None:
    maps, samples = maps_of(6), torch.arange(6)
    peaks = maps.amax((2, 3))
    floor = peaks.median(0).values
    floor[0] = torch.inf
    found = strongest(maps, samples, floor, k=6)
    for channel in range(5):
        kept = found.samples[found.channels == channel]
        assert kept.tolist() == (peaks[:, channel] > floor[channel]).nonzero()[:, 0].tolist()
    assert (found.channels != 0).all() and len(found.channels)


@pytest.mark.parametrize("k", [1, 3])
def test_a_large_batch_reports_few(k: int) -> None:
    maps = maps_of(200)
    found = strongest(maps, torch.arange(200), k=k)
    assert len(found.values) == 5 * k
    assert equal(table(found, 5, k), brute_force(maps, torch.arange(200), k))


def test_rows_side_by_side() -> None:
    channels = torch.tensor([1, 1, 4])
    found = Responses(channels, torch.tensor([5.0, 7.0, 6.0]), torch.tensor([10, 11, 12]), torch.tensor([2, 1, 0]))
    rows, together = found.rows()
    assert rows.tolist() == [1, 4]
    assert together.values.tolist() == [[5, 7], [6, -torch.inf]]
    assert together.samples.tolist() == [[10, 11], [12, -1]]
    assert together.places.tolist() == [[2, 1], [0, 0]]


def test_maps_of_a_single_place() -> None:
    maps = maps_of(12)[:, :, :1, :1]
    maps[2, 0] = torch.nan
    assert equal(stream(maps, torch.arange(12), 4, 5), brute_force(maps, torch.arange(12), 4))


def test_half_precision_maps() -> None:
    maps, samples = maps_of(10).bfloat16(), torch.arange(10)
    found = strongest(maps, samples, k=3)
    assert found.values.dtype == torch.float32
    assert equal(table(found, 5, 3), brute_force(maps.float(), samples, 3))


def test_k_must_be_positive() -> None:
    with pytest.raises(UsageError, match="k must be at least 1"):
        TopResponses.empty(3, 0)


def test_cut_equals_a_loop() -> None:
    images = torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    origins = torch.tensor([[0, 0], [2, 3], [-2, -1], [5, 7], [-9, 0], [3, 40], [-1, 6]])
    which = torch.tensor([0, 1, 2, 0, 1, 2, 1])
    boxes, inside = cut(images, which, origins, (4, 5))
    assert boxes.shape == (7, 2, 4, 5) and inside.shape == (7, 4, 5) and inside.dtype == torch.bool
    for m, (top, left) in enumerate(origins.tolist()):
        for i in range(4):
            for j in range(5):
                y, x = top + i, left + j
                within = 0 <= y < 7 and 0 <= x < 9
                expected = images[which[m], :, y, x] if within else torch.zeros(2)
                assert inside[m, i, j] == within and torch.equal(boxes[m, :, i, j], expected)


def test_cut_keeps_bytes_and_takes_boxes_larger_than_the_image() -> None:
    images = torch.arange(1, 7, dtype=torch.uint8).reshape(1, 1, 2, 3)
    boxes, inside = cut(images, torch.tensor([0]), torch.tensor([[-1, -1]]), (4, 5))
    assert boxes.dtype == torch.uint8
    expected = torch.zeros(4, 5, dtype=torch.uint8)
    expected[1:3, 1:4] = images[0, 0]
    assert torch.equal(boxes[0, 0], expected) and torch.equal(inside[0], expected > 0)


def test_cut_of_broken_images_is_zero_outside() -> None:
    boxes, _ = cut(torch.full((1, 1, 2, 2), torch.nan), torch.tensor([0]), torch.tensor([[1, 1]]), (2, 2))
    assert boxes[0, 0, 0, 0].isnan() and (boxes.flatten()[1:] == 0).all()
