"""Classical texture synthesis: against plain loops, and what it promises of each pixel."""

from __future__ import annotations

import importlib
import itertools
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional import Texture, efros_leung, image_quilting
from lit_viz.functional.texture import minimum_error_cut, patch_error

sampling = importlib.import_module("lit_viz.functional.texture.efros_leung")
quilting = importlib.import_module("lit_viz.functional.texture.quilting")


def photograph(name: str, height: int, width: int, top: int = 0, left: int = 0) -> Tensor:
    pixels = getattr(data, name)()[top : top + height, left : left + width]
    return torch.from_numpy(pixels.reshape(height, width, -1).copy()).permute(2, 0, 1)


def noise(*shape: int, values: int = 256, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, values, shape) * (255 // (values - 1))).byte()


def reference(
    source: Tensor,
    positions: NDArray[np.int64],
    window: int,
    *,
    hole: bool = False,
    tolerance: float = 0.1,
    copies: bool = True,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Efros and Leung's algorithm in plain loops and double precision, from positions that are -1 where unknown."""
    generator, half = np.random.default_rng((seed, 1)), window // 2
    colors, positions = source.numpy() / 255, positions.copy()
    height, width = positions.shape[1:]
    centers = [
        (row, column)
        for row in range(half, colors.shape[1] - half)
        for column in range(half, colors.shape[2] - half)
        if not hole or (positions[0, row - half : row + half + 1, column - half : column + half + 1] >= 0).all()
    ]
    largest = 0.3
    while (positions[0] < 0).any():
        known = {(y, x) for y, x in np.argwhere(positions[0] >= 0).tolist()}
        counts = {
            (y, x): sum((y + dy, x + dx) in known for dy in (-1, 0, 1) for dx in (-1, 0, 1))
            for y, x in np.argwhere(positions[0] < 0).tolist()
        }
        layer = generator.permutation(np.array([place for place, count in counts.items() if count])).tolist()
        layer = sorted(layer, key=lambda place: -counts[tuple(place)])
        taken = False
        for draw, (y, x) in zip(generator.random(len(layer)), layer, strict=True):
            distances = np.zeros(len(centers))
            weights = 0.0
            for dy, dx in itertools.product(range(-half, half + 1), repeat=2):
                if 0 <= y + dy < height and 0 <= x + dx < width and positions[0, y + dy, x + dx] >= 0:
                    weight = np.exp(-(dy**2 + dx**2) / (2 * (window / 6.4) ** 2))
                    row, column = positions[:, y + dy, x + dx]
                    there = np.array([colors[:, r + dy, c + dx] for r, c in centers])
                    distances += weight * np.square(there - colors[:, row, column]).mean(axis=1)
                    weights += weight
            distances /= weights
            if distances.min() < largest:
                best = distances.min() if copies or not distances.any() else distances[distances > 0].min()
                candidates = np.flatnonzero(distances <= (1 + tolerance) * best)
                positions[:, y, x] = centers[candidates[int(draw * len(candidates))]]
                taken = True
        if not taken:
            largest *= 1.1
    return positions


def started(source: Tensor, height: int, width: int, seed: int = 0) -> NDArray[np.int64]:
    """Positions with a random 3×3 px of the source in the middle."""
    top, left = np.random.default_rng((seed, 0)).integers(0, (source.shape[1] - 2, source.shape[2] - 2))
    positions = np.full((2, height, width), -1)
    y, x = (height - 3) // 2, (width - 3) // 2
    positions[:, y : y + 3, x : x + 3] = np.mgrid[top : top + 3, left : left + 3]
    return positions


@pytest.mark.parametrize(
    ("source", "size", "settings"),
    [
        (photograph("brick", 19, 24, 100, 100), (15, 18), {"window": 7}),
        (photograph("brick", 16, 16, 100, 100), (17, 12), {"window": 5, "copies": False, "seed": 4}),
        (photograph("coffee", 17, 15, 100, 300), (14, 13), {"window": 5, "tolerance": 0.5}),
        (noise(1, 12, 12, values=2), (12, 12), {"window": 3}),  # many windows equal
        (noise(1, 12, 12, values=2), (12, 12), {"window": 3, "copies": False}),
        (noise(2, 8, 8), (9, 11), {"window": 3, "seed": 1}),
        (noise(1, 9, 9, values=2), (7, 7), {"window": 9}),  # one window, and pixels that wait as it fits so badly
        (torch.full((3, 8, 9), 77, dtype=torch.uint8), (9, 9), {"window": 7, "copies": False}),
    ],
)
def test_as_if_one_pixel_were_made_after_the_other(source: Tensor, size: Any, settings: dict[str, Any]) -> None:
    expected = reference(source, started(source, *size, seed=settings.get("seed", 0)), **settings)
    np.testing.assert_array_equal(efros_leung(source, size=size, **settings).positions, expected)


def test_grown_around_the_whole_source() -> None:
    source = photograph("gravel", 13, 14, 50, 50)
    positions = np.full((2, 20, 19), -1)
    positions[:, 3:16, 2:16] = np.mgrid[:13, :14]
    made = efros_leung(source, size=(20, 19), keep_source=True, window=5)
    np.testing.assert_array_equal(made.positions, reference(source, positions, 5))
    assert torch.equal(made.image[:, 3:16, 2:16], source)


def test_a_hole_is_filled_from_what_is_known() -> None:
    source = photograph("coffee", 22, 20, 100, 300)
    hole = torch.zeros(22, 20, dtype=torch.bool)
    hole[9:14, 7:12] = hole[0, 0:3] = True
    positions = np.where(hole.numpy(), -1, np.mgrid[:22, :20])
    expected = reference(source, positions, 5, hole=True, seed=2)
    made = efros_leung(source, hole=hole, window=5, seed=2)
    np.testing.assert_array_equal(made.positions, expected)
    rows, columns = made.positions[:, hole]
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        assert not hole[row - 2 : row + 3, column - 2 : column + 3].any()
    nowhere = source / 255
    nowhere[:, hole] = torch.nan  # what is there doesn't matter
    assert torch.equal(efros_leung(nowhere, hole=hole, window=5, seed=2).positions, made.positions)


def ways(source: Tensor, **kwargs: Any) -> list[Texture]:
    return [efros_leung(source, window=5, **kwargs), image_quilting(source, **kwargs)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 17, 8), (4, 31, 16)])
@pytest.mark.parametrize("size", [8, (21, 10)])
def test_every_pixel_is_one_of_the_source(dtype: torch.dtype, shape: tuple[int, ...], size: Any) -> None:
    source = noise(*shape) if dtype == torch.uint8 else (noise(*shape) / 255).to(dtype)
    for made in ways(source, size=size):
        assert made.image.dtype == dtype and made.positions.dtype == torch.int64 and not made.interrupted
        assert made.image.shape[1:] == made.positions.shape[1:] == ((size, size) if isinstance(size, int) else size)
        assert torch.equal(made.image, source[:, made.positions[0], made.positions[1]])


def test_bytes_floats_and_grey_in_three_channels_are_the_same() -> None:
    source = photograph("grass", 20, 20)
    for one, two, three in zip(
        ways(source, size=24), ways(source / 255, size=24), ways(source.expand(3, -1, -1), size=24), strict=True
    ):
        assert torch.equal(one.positions, two.positions) and torch.equal(one.positions, three.positions)


def test_the_same_seed_gives_the_same_texture_and_leaves_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source = photograph("grass", 24, 24)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    for one, two, other in zip(*(ways(source, size=26, seed=seed) for seed in (3, 3, 4)), strict=True):
        assert torch.equal(one.image, two.image) and not torch.equal(one.image, other.image)
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    threads, alone = torch.get_num_threads(), ways(source, size=26, seed=3)[0].image
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(ways(source, size=26, seed=3)[0].image, alone)
        assert torch.get_num_threads() == threads + 1
        monkeypatch.setattr(sampling, "_SMALL", 0)
        assert torch.equal(ways(source, size=26, seed=3)[0].image, alone)
    finally:
        torch.set_num_threads(threads)


def test_distances_are_exact_where_differences_are_largest() -> None:
    window, channels = 15, sampling.MOST_CHANNELS
    colors = np.full((channels, 16, 17), float(sampling.LEVELS))
    windows = sampling._Windows(colors, window, None)
    templates = np.random.default_rng(0).integers(0, 3, (3, channels, window, window)).astype(float)
    known = np.ones((3, window, window), bool)
    sums, same, _ = windows.distances(templates, known)
    weights = [[int(w) for w in row] for row in windows.weights]
    for template, total in zip(templates.astype(int).tolist(), sums[:, 0] + same, strict=True):
        expected = sum(
            weights[y][x] * (sampling.LEVELS - plane[y][x]) ** 2
            for plane in template
            for y, x in itertools.product(range(window), repeat=2)
        )
        assert int(total) == expected
    assert (sums == sums[:, :1]).all()


def test_pixels_made_at_once_do_not_see_each_other() -> None:
    pixels = np.random.default_rng(0).permutation(np.argwhere(np.ones((14, 17), bool)))[:120]
    for window in (3, 7):
        groups = sampling.independent(pixels, window, most=9)
        assert sorted(np.concatenate(groups).tolist()) == list(range(120)) and max(map(len, groups)) <= 9
        turn = np.empty(120, int)
        for i, group in enumerate(groups):
            turn[group] = i
        near = np.abs(pixels[:, None] - pixels).max(axis=2) <= window // 2
        for i, j in itertools.combinations(range(120), 2):
            assert not near[i, j] or turn[i] < turn[j]


@pytest.mark.parametrize("name", ["brick", "grass", "gravel"])
def test_patches_are_nearer_to_the_source_than_those_of_more_of_the_real_texture(name: str) -> None:
    source, held_out = photograph(name, 48, 48, 100, 100), photograph(name, 48, 48, 300, 300)
    real = patch_error(held_out, source)
    for copies in (True, False):
        assert patch_error(efros_leung(source, size=40, window=9, copies=copies).image, source) < real
    assert patch_error(image_quilting(source, size=60).image, source) < real


def test_patch_error_is_that_of_a_plain_loop() -> None:
    image, source = photograph("coffee", 9, 8, 10, 10), photograph("coffee", 10, 11, 200, 200)

    def patches(one: Tensor) -> list[Tensor]:
        h, w = one.shape[1] - 2, one.shape[2] - 2
        return [one[:, y : y + 3, x : x + 3].double() / 255 for y, x in itertools.product(range(h), range(w))]

    expected = np.mean([min(float((p - q).square().mean().sqrt()) for q in patches(source)) for p in patches(image)])
    assert patch_error(image, source, patch=3) == pytest.approx(expected)
    assert patch_error(image / 255, source / 255, patch=3) == pytest.approx(expected)
    assert patch_error(source[:, 2:, 1:8], source, patch=3) == 0
    with pytest.raises(UsageError, match="at least 9 px"):
        patch_error(image, source, patch=9)
    with pytest.raises(UsageError, match="channels"):
        patch_error(image, source[:1])


def least_path(errors: NDArray[np.float64]) -> list[int]:
    """By trying all paths."""
    rows, columns = errors.shape
    paths = [
        (start, *itertools.accumulate(steps, initial=start))[1:]
        for start in range(columns)
        for steps in itertools.product((-1, 0, 1), repeat=rows - 1)
    ]
    inside = [path for path in paths if min(path) >= 0 and max(path) < columns]
    return list(min(inside, key=lambda path: sum(errors[i, j] for i, j in enumerate(path))))


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 1), (6, 2), (7, 4), (5, 5)])
def test_the_cut_is_the_best_of_all_paths(rows: int, columns: int) -> None:
    for seed in range(5):
        errors = np.random.default_rng(seed).random((rows, columns))
        assert minimum_error_cut(errors).tolist() == least_path(errors)


def quilted(
    source: Tensor, rows: int, columns: int, block: int, overlap: int, tolerance: float, seed: int
) -> NDArray[np.int64]:
    """Image quilting in plain loops."""
    generator, colors = np.random.default_rng(seed), source.numpy().astype(int)
    side = block - overlap
    positions = np.full((2, rows * side + overlap, columns * side + overlap), -1)
    starts = list(itertools.product(*(range(length - block + 1) for length in colors.shape[1:])))
    for row, column in itertools.product(range(rows), range(columns)):
        region = positions[:, row * side : row * side + block, column * side : column * side + block]
        there = colors[:, region[0], region[1]]
        overlapped = np.array(
            [[(row and y < overlap) or (column and x < overlap) for x in range(block)] for y in range(block)]
        )
        if row or column:
            errors = np.array(
                [
                    (np.square(colors[:, y : y + block, x : x + block] - there).sum(axis=0) * overlapped).sum()
                    for y, x in starts
                ]
            )
            limit = (1 + tolerance) * min(errors[errors > 0], default=0)
            fitting = [start for start, error in zip(starts, errors, strict=True) if error <= limit]
            top, left = fitting[generator.integers(len(fitting))]
        else:
            top, left = generator.integers(0, [length - block + 1 for length in colors.shape[1:]])
        difference = np.square(colors[:, top : top + block, left : left + block] - there).sum(axis=0)
        beside = least_path(difference[:, :overlap]) if column else [0] * block
        above = least_path(difference[:overlap].T) if row else [0] * block
        for y, x in itertools.product(range(block), repeat=2):
            if x >= beside[y] and y >= above[x]:
                region[:, y, x] = top + y, left + x
    return positions


@pytest.mark.parametrize(
    ("source", "overlap", "tolerance"),
    [
        (photograph("coffee", 20, 23, 100, 300), 2, 0.1),
        (photograph("gravel", 15, 16), 3, 0.3),
        (noise(2, 9, 8), 1, 0.0),
        (torch.full((1, 8, 8), 200, dtype=torch.uint8), 2, 0.1),
    ],
)
def test_quilts_are_those_of_plain_loops(source: Tensor, overlap: int, tolerance: float) -> None:
    expected = quilted(source, 3, 4, 6, overlap, tolerance, seed=5)
    height, width = expected.shape[1] - 1, expected.shape[2] - 2
    made = image_quilting(source, size=(height, width), block=6, overlap=overlap, tolerance=tolerance, seed=5)
    np.testing.assert_array_equal(made.positions, expected[:, :height, :width])


def test_a_quilt_is_not_a_copy() -> None:
    source = photograph("gravel", 60, 60)
    rows, columns = image_quilting(source, size=55, block=20).positions
    offsets = set(
        zip(
            (rows - torch.arange(55)[:, None]).ravel().tolist(),
            (columns - torch.arange(55)).ravel().tolist(),
            strict=True,
        )
    )
    assert len(offsets) > 6


@pytest.mark.parametrize("way", ["efros_leung", "image_quilting"])
def test_ctrl_c_keeps_what_there_is(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sampling if way == "efros_leung" else quilting

    class Bar(module.tqdm):  # type: ignore[misc,name-defined]
        calls = 0

        def update(self, n: float | None = 1) -> bool | None:
            type(self).calls += 1
            if self.calls == 4:
                signal.raise_signal(signal.SIGINT)
            return super().update(n)

    source = noise(3, 16, 16)
    whole = getattr(module, way)(source, size=40)
    monkeypatch.setattr(module, "tqdm", Bar)
    made = getattr(module, way)(source, size=40)
    there = made.positions[0] >= 0
    assert made.interrupted and there.any() and not there.all()
    settled = there.clone()
    if way == "image_quilting":  # later blocks cover a part of these
        settled[3:] = settled[:, 12:] = False
    assert settled.any() and torch.equal(made.positions[:, settled], whole.positions[:, settled])
    assert torch.equal(made.image, torch.where(there, source[:, made.positions[0], made.positions[1]], 0))
    Bar.calls = 0
    with pytest.raises(KeyboardInterrupt):
        getattr(module, way)(source, size=40, interruptible=False)


GREY = noise(1, 12, 10)
HOLE = torch.zeros(12, 10, dtype=torch.bool)


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        (GREY, {}, "size of the texture, or the hole"),
        (GREY, {"size": 20, "hole": HOLE}, "one of them"),
        (GREY, {"size": 20, "window": 11}, "at most 9"),
        (GREY, {"size": 20, "window": 6}, "must be odd"),
        (GREY, {"size": 20, "window": 1}, "at least 3"),
        (GREY, {"size": 20, "window": 5.0}, "whole number"),
        (GREY, {"size": 20, "window": 5, "tolerance": -0.1}, "tolerance"),
        (GREY, {"size": 20, "window": 5, "tolerance": float("nan")}, "tolerance"),
        (GREY, {"size": 2, "window": 5}, "at least 3"),
        (GREY, {"size": (20, 20, 3), "window": 5}, "height and width"),
        (GREY, {"size": (11, 20), "window": 5, "keep_source": True}, "height of size .* at least 12"),
        (GREY, {"hole": HOLE, "window": 5}, "hole is empty"),
        (GREY, {"hole": ~HOLE, "window": 5}, "covers the whole"),
        (GREY, {"hole": HOLE.float(), "window": 5}, "mask, a bool tensor"),
        (GREY, {"hole": HOLE[1:], "window": 5}, "mask, a bool tensor"),
        (GREY, {"hole": HOLE.numpy(), "window": 5}, "ndarray"),
        (GREY, {"hole": HOLE, "keep_source": True}, "goes with a size"),
        (GREY, {"hole": torch.eye(12, 10).bool(), "window": 9}, "wholly in the known part"),
        (GREY.float(), {"size": 20}, "floats from 0 to 1"),
        (GREY.int(), {"size": 20}, "floats from 0 to 1"),
        (GREY / 255 * torch.nan, {"size": 20}, "NaN"),
        (GREY[0], {"size": 20}, "one image"),
        (noise(17, 8, 8), {"size": 20}, "16 channels"),
        (GREY[:, :2], {"size": 20}, "too small"),
        (GREY.numpy(), {"size": 20}, "ndarray"),
    ],
)
def test_mistakes_are_told_early(source: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        efros_leung(source, **settings)


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        (GREY, {"block": 11}, "don't fit"),
        (GREY, {"block": 1}, "at least 2"),
        (GREY, {"block": 6, "overlap": 4}, "at most half"),
        (GREY, {"block": 6, "overlap": 0}, "at least 1"),
        (GREY, {"size": 0}, "at least 1"),
        (GREY, {"tolerance": float("inf")}, "tolerance"),
        (GREY / 255 * torch.nan, {}, "NaN"),
        (GREY / 10 - 1, {}, "floats from 0 to 1"),
        (GREY[None], {}, "one image"),
    ],
)
def test_mistakes_in_quilts_are_told_early(source: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        image_quilting(source, **({"size": 20} | settings))
