"""Scatter plots and thumbnails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations

import numpy as np
import pytest
import torch

from lit_viz import draw
from lit_viz.draw.names import place_names
from lit_viz.draw.thumbnails import spread_out
from lit_viz.errors import UsageError


def cloud(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return rng.uniform(-9, 9, (classes, 2))[labels] + rng.standard_normal((count, 2)), labels


@pytest.mark.parametrize("classes", [1, 3, 10, 17, 20, 100])
@pytest.mark.parametrize("named", [True, False])
def test_scatter_fits(classes: int, named: bool) -> None:
    points, labels = cloud(300, classes)
    names = [f"a rather long class name {i} " * 2 for i in range(classes)] if named else None
    page = draw.scatter(torch.from_numpy(points), labels, names, title="t-SNE", subtitle="300 images.")
    assert page.dtype == np.uint8 and max(page.shape[:2]) <= 1000
    assert (page[:30] == 255).all() and (page[:, -30:] == 255).all()


def has(page: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((page == color).all(-1).any())


def test_every_class_has_its_color_and_others_are_grey() -> None:
    points, labels = cloud(400, 10)
    page = draw.scatter(points, labels)
    assert all(has(page, color) for color in draw.CVD_SAFE_10)
    page = draw.scatter(points, np.where(labels == 0, 0, -1))
    assert has(page, draw.CVD_SAFE_10[0]) and not has(page, draw.CVD_SAFE_10[1]) and has(page, (196, 200, 206))
    page = draw.scatter(points, labels, highlight=[7])
    assert has(page, draw.CVD_SAFE_10[0]) and not has(page, draw.CVD_SAFE_10[1])


def test_scatter_scales_both_directions_equally() -> None:
    square = np.array([[0, 0], [0, 1], [2, 0], [2, 1]], float)
    rows, columns = np.nonzero((draw.scatter(square) == (63, 144, 218)).all(-1))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(
    "points",
    [
        [[1.0, 2.0]],
        [[1.0, 2.0]] * 5,
        [[0.0, 0.0], [1.0, 0.0]],
        [[0.0, 0.0], [0.0, 1e300]],
        [[np.nan, 0.0], [1.0, np.inf]],
        [[np.nan, 0.0], [1.0, 2.0], [3.0, 1.0]],
        [[1e-320, 0.0], [0.0, 0.0]],
    ],
)
def test_degenerate_points_are_drawn(points: list[list[float]]) -> None:
    count = len(points)
    thumbs = np.zeros((count, 8, 8, 3), np.uint8)
    for page in (
        draw.scatter(points, [0] * count, ["one"]),
        draw.scatter(points),
        draw.thumbnail_map(points, thumbs),
        draw.thumbnail_grid(points, thumbs, labels=range(count)),
    ):
        assert max(page.shape[:2]) <= 1000


def test_a_name_never_hides_the_only_point_of_its_class() -> None:
    points, labels = cloud(400, 6)
    labels[17] = 6
    page = draw.scatter(points, labels, [f"a long class name {i}" for i in range(7)], max_size=500)
    assert has(page, draw.CVD_SAFE_10[6])


@pytest.mark.parametrize(("spread", "named", "hidden"), [(9.0, 9, 0), (3.0, 7, 12)])
def test_names_hide_few_points_and_not_each_other(spread: float, named: int, hidden: int) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, 1000)
    points = rng.uniform(-spread, spread, (10, 2))[labels] + rng.standard_normal((1000, 2))
    where = (points - points.min(0)) / np.ptp(points, axis=0).max() * 390 + 30
    sizes = [(70.0 + 9 * i, 22.0) for i in range(10)]
    places = place_names(sizes, [where[labels == i] for i in range(10)], where[:0], 450, 450, radius=4)
    boxes = [(p.x - w / 2, p.y - h / 2, p.x + w / 2, p.y + h / 2) for (w, h), p in zip(sizes, places, strict=True) if p]
    assert len(boxes) >= named
    covered = sum(((where > b[:2]) & (where < b[2:])).all(1).sum() for b in np.array(boxes))
    assert covered <= hidden
    for a, b in permutations(boxes, 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    assert np.min(boxes) >= 0 and np.max(boxes) <= 450


def test_classes_that_lie_all_over_the_place_are_left_to_the_legend() -> None:
    where = np.random.default_rng(2).normal(200, 50, (1000, 2))
    members = [where[i::10] for i in range(10)]
    assert place_names([(60, 20)] * 10, members, where[:0], 400, 400, radius=4) == [None] * 10


def test_names_lie_at_the_largest_cluster_and_have_leaders_when_away() -> None:
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(60, 8, (30, 2)), rng.normal(300, 8, (80, 2))])
    near = place_names([(60, 20)], [two], two[:0], 400, 400, radius=4)[0]
    assert near is not None and near.leader is None and np.hypot(near.x - 300, near.y - 300) < 80
    # Others all around leave no place nearby.
    x, y = np.meshgrid(np.arange(100, 601, 8.0), np.arange(100, 601, 8.0))
    one, crowd = np.array([[200.0, 120.0]]), np.stack([x.ravel(), y.ravel()], 1)
    away = place_names([(60, 20)], [one], crowd, 700, 700, radius=4)[0]
    assert away is not None and away.leader is not None and away.y < 95
    np.testing.assert_allclose(np.hypot(*(one[0] - away.leader[2:])), 4)
    # Too far away from anywhere.
    lost = place_names([(60, 20)], [one + 200.0], crowd, 700, 700, radius=4)[0]
    assert lost is None


@pytest.mark.parametrize("panels", [1, 2, 3, 4])
def test_panels(panels: int) -> None:
    points, labels = cloud(200, 5)
    page = draw.scatter_panels([draw.Panel(points, f"view {i}") for i in range(panels)], labels, title="t")
    assert max(page.shape[:2]) <= 1000


def test_scatter_refuses_bad_input() -> None:
    points, labels = cloud(20, 3)
    for call in (
        lambda: draw.scatter(points[:, :1]),
        lambda: draw.scatter(points[:0]),
        lambda: draw.scatter(points, labels[:-1]),
        lambda: draw.scatter(points, labels + 0.5),
        lambda: draw.scatter(points, labels, ["only one"]),
        lambda: draw.scatter(points, labels, highlight=range(30)),
        lambda: draw.scatter_panels([]),
        lambda: draw.scatter_panels([draw.Panel(points), draw.Panel(points[:5])]),
        lambda: draw.thumbnail_map(points, np.zeros((19, 8, 8, 3), np.uint8)),
        lambda: draw.thumbnail_map(points, np.zeros((20, 8, 8, 3))),
        lambda: draw.thumbnail_grid(points, np.zeros((20, 8, 8, 3), np.uint8), max_cells=31),
        lambda: draw.assign_to_grid(points, 4, 4),
        lambda: draw.assign_to_grid([[np.nan, 0.0]], 4, 4),
    ):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (9, 3, 3), (50, 6, 9), (144, 12, 12)])
def test_grid_assignment_gives_each_point_its_own_cell(count: int, rows: int, columns: int) -> None:
    cells = draw.assign_to_grid(np.random.default_rng(1).standard_normal((count, 2)), rows, columns)
    assert len(set(cells.tolist())) == count and cells.min() >= 0 and cells.max() < rows * columns


def test_grid_assignment_is_as_good_as_trying_everything() -> None:
    points = np.random.default_rng(3).uniform(size=(6, 2))
    unit = (points - points.min(0)) / np.ptp(points, axis=0)
    at = np.stack([unit[:, 0] * 2, 1 - unit[:, 1]], axis=1)
    centers = np.array([(c, r) for r in range(2) for c in range(3)], float)

    def cost(cells: tuple[int, ...]) -> float:
        return float(((at - centers[list(cells)]) ** 2).sum())

    best = min(cost(cells) for cells in permutations(range(6)))
    assert cost(tuple(draw.assign_to_grid(points, 2, 3))) == pytest.approx(best)


def test_points_on_a_grid_stay_where_they_are() -> None:
    rows, columns = np.divmod(np.arange(20), 5)
    points = np.stack([columns, -rows], axis=1)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(draw.assign_to_grid(points[order], 4, 5), order)


@pytest.mark.parametrize("count", [1, 2, 20, 300, 1100])
@pytest.mark.parametrize("shape", [(28, 28), (64, 48)])
def test_thumbnails_fit(count: int, shape: tuple[int, int]) -> None:
    points, labels = cloud(count, 4)
    thumbs = np.random.default_rng(0).integers(0, 256, (count, *shape, 3), dtype=np.uint8)
    for page in (
        draw.thumbnail_map(points, thumbs, labels=labels, title="t-SNE"),
        draw.thumbnail_grid(points, thumbs, labels=labels, max_cells=12, title="Grid"),
        draw.thumbnail_grid(points, thumbs, max_cells=5, max_size=500),
    ):
        assert page.dtype == np.uint8 and max(page.shape[:2]) <= 1000
        assert (page[:20] == 255).all() and (page[:, -20:] == 255).all()


def test_thumbnail_grid_shows_every_image_once() -> None:
    values = np.arange(16, dtype=np.uint8) * 10
    thumbs = np.broadcast_to(values[:, None, None, None], (16, 8, 8, 3))
    page = draw.thumbnail_grid(np.random.default_rng(0).standard_normal((16, 2)), thumbs)
    areas = [(page == v).all(-1).sum() for v in values]
    assert min(areas) == max(areas) >= 64


def test_spread_out_points_share_no_cell_and_keep_to_their_bound() -> None:
    where = np.clip(np.random.default_rng(0).normal(300, 90, (500, 2)), 20, 580)
    moved = spread_out(where, 600, 600, (20, 24), 4.0)
    shown = np.isfinite(moved[:, 0])
    assert shown.sum() > 300
    apart = np.abs(moved[shown][:, None] - moved[shown][None]) / [24, 20] + np.eye(shown.sum())[..., None] * 9
    assert apart.max(-1).min() > 0.999
    assert np.hypot(*((moved - where)[shown] / [24, 20]).T).max() <= 4
    assert (moved[shown] >= [12, 10]).all() and (moved[shown] <= [588, 590]).all()


def test_points_with_room_hardly_move_and_keep_their_order() -> None:
    rng = np.random.default_rng(1)
    x, y = np.meshgrid(np.arange(50, 900, 100.0), np.arange(50, 700, 100.0))
    where = np.stack([x.ravel(), y.ravel()], 1) + rng.uniform(-20, 20, (x.size, 2))
    moved = spread_out(where, 900, 700, (50, 50), 4.0)
    assert np.abs(moved - where).max() < 50
    for axis in (0, 1):
        further = np.subtract.outer(where[:, axis], where[:, axis]) > 50
        assert (np.subtract.outer(moved[:, axis], moved[:, axis])[further] > 0).all()


def test_a_map_shows_most_images_without_hiding_any() -> None:
    points, labels = cloud(300, 8)
    values = (np.arange(300) % 200).astype(np.uint8)
    page = draw.thumbnail_map(points, np.broadcast_to(values[:, None, None, None], (300, 9, 9, 3)), labels=labels)
    areas = [(page == v).all(-1).sum() for v in range(200)]
    side = np.sqrt(np.median(areas[100:]))
    assert side == pytest.approx(round(side)) and side >= 22
    assert sum(area >= side**2 for area in areas) > 150


def test_pictures_are_the_same_from_any_thread() -> None:
    points, labels = cloud(300, 5)
    thumbs = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)

    def pages(_: int) -> list[np.ndarray]:
        return [draw.scatter(points, labels, list("abcde"), title="x"), draw.thumbnail_map(points, thumbs)]

    first = pages(0)
    with ThreadPoolExecutor(4) as pool:
        for others in pool.map(pages, range(8)):
            for one, other in zip(first, others, strict=True):
                np.testing.assert_array_equal(one, other)


def test_axes_are_written_below_their_panel_and_not_over_points() -> None:
    points = np.random.default_rng(0).normal(size=(50, 2))
    plain = draw.scatter_panels([draw.Panel(points, "a"), draw.Panel(points, "b")])
    named = draw.scatter_panels([draw.Panel(points, "a", ("PC 1 · 40 %", "PC 2 · 9 %")), draw.Panel(points, "b")])
    assert max(named.shape) <= 1000 and named.shape[0] == plain.shape[0] + 28
    same = (named[: plain.shape[0] - 40] == plain[:-40]).all()
    assert same  # panels themselves are as they were
    assert (named[-68:, :480] < 255).any() and (named[-68:, 520:] == 255).all()


@pytest.mark.parametrize("count", [3, 4])
def test_a_legend_that_is_wider_than_the_panels_is_not_cut(count: int) -> None:
    points, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 12
    wide = draw.scatter_panels([draw.Panel(points, "a")] * count, labels, [f"class number {i}" for i in range(12)])
    one = draw.scatter_panels([draw.Panel(points, "a")], labels, [f"class number {i}" for i in range(12)])
    assert np.array_equal(wide[-116:-40], one[-116:-40]) and (wide[-116:-40] < 250).any()
