"""Where the names of classes go in a cloud of points: near their points, hiding none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Lengths are px on a page of 1000 px.
_CELL = 5
_JOINED = 24  # points closer than this are one cluster
_REACH = 150
_LEADER = 15
# A class that is not a quarter of what lies at its densest place is not named, unless it has few points.
_SCATTERED, _FEW = 0.25, 5
# What places cost, in px of distance from the cluster that a name belongs to.
_HIDDEN, _BESIDE, _FROM_MIDDLE, _TOO_BAD = 24.0, 2.0, 0.12, 240.0

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Place:
    """Where a name goes; px.

    Attributes:
        x: Its middle.
        y: Its middle.
        leader: A line from the name to the nearest of its points, (x, y, x, y), where it lies away from them.
    """

    x: float
    y: float
    leader: Box | None = None


def place_names(
    sizes: Sequence[tuple[float, float]],
    members: Sequence[NDArray[np.float64]],
    rest: NDArray[np.float64],
    width: int,
    height: int,
    *,
    radius: float,
    unit: float = 1.0,
) -> list[Place | None]:
    """Finds a place for each name, next to the largest cluster of its class.

    A name hides as few points as possible, and of a class with few points none; it lies inside the panel, on no other
    name and on no leader. Small classes choose first, since they have the fewest places.

    Args:
        sizes: Width and height of each name.
        members: (n, 2) places of the points of each class.
        rest: (n, 2) places of all other points.
        width: Of the panel.
        height: Of the panel.
        radius: Of a point.
        unit: px of this page to one px of a page of 1000 px.

    Returns:
        One place for each name; None where there are only bad ones, or where the class is scattered among others.
    """
    cell = max(2, round(_CELL * unit))
    shape = -(-height // cell), -(-width // cell)
    own = [_counts(points, shape, cell) for points in members]
    load = 0.5 * _counts(rest, shape, cell)
    for counts, points in zip(own, members, strict=True):
        load += counts * max(1.0, 8 / max(1, len(points)))
    crowd = ndimage.gaussian_filter(sum(own, _counts(rest, shape, cell)), _JOINED * unit / cell, mode="constant")
    taken = np.zeros(shape)
    y, x = (np.arange(n) * cell + cell / 2 for n in shape)
    out: list[Place | None] = [None] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: (len(members[i]), i)):
        half_width, half_height = sizes[i][0] / 2, sizes[i][1] / 2
        if not len(members[i]) or 2 * half_width + 4 > width or 2 * half_height + 4 > height:
            continue
        cluster, (middle_y, middle_x), density = _largest_cluster(own[i], _JOINED * unit / cell)
        if len(members[i]) > _FEW and density < _SCATTERED * crowd[middle_y, middle_x]:
            continue

        def boxes(grid: NDArray[np.float64], more: float, w: float = half_width, h: float = half_height) -> NDArray:
            return _box_sums(grid, int(np.ceil((h + more) / cell)), int(np.ceil((w + more) / cell)))

        apart = cell * ndimage.distance_transform_edt(boxes(cluster.astype(float), 0.0) < 0.5)
        off_middle = np.hypot(y[:, None] - (middle_y + 0.5) * cell, x - (middle_x + 0.5) * cell)
        cost = apart + _FROM_MIDDLE * off_middle
        cost += unit * (_HIDDEN * boxes(load, radius) + _BESIDE * boxes(load - own[i], radius + 12 * unit))
        cost[boxes(taken, 2 * unit) > 0.5] = np.inf
        cost[apart > _REACH * unit] = np.inf
        cost[(y < half_height + 2) | (y > height - half_height - 2)] = np.inf
        cost[:, (x < half_width + 2) | (x > width - half_width - 2)] = np.inf
        points = members[i][cluster[_cells(members[i], shape, cell)]]
        for at in np.argsort(cost, axis=None, kind="stable")[:200]:
            row, column = np.unravel_index(at, shape)
            if cost[row, column] > _TOO_BAD * unit:
                break
            box = x[column] - half_width, y[row] - half_height, x[column] + half_width, y[row] + half_height
            leader = _leader(box, points, radius, _LEADER * unit)
            track = _cells(_along(leader, cell), shape, cell) if leader else None
            if track is None or not taken[track].any():
                out[i] = Place(float(x[column]), float(y[row]), leader)
                taken[_cells(_filled(box, cell), shape, cell)] = 1.0
                if track is not None:
                    taken[track] = 1.0
                break
    return out


def _cells(points: NDArray[np.float64], shape: tuple[int, int], cell: int) -> tuple[NDArray, NDArray]:
    index = np.floor(points / cell).astype(int)
    return index[:, 1].clip(0, shape[0] - 1), index[:, 0].clip(0, shape[1] - 1)


def _counts(points: NDArray[np.float64], shape: tuple[int, int], cell: int) -> NDArray[np.float64]:
    row, column = _cells(points, shape, cell)
    return np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape).astype(float)


def _box_sums(grid: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """Sums over the box around each cell that reaches so many rows and columns to either side."""
    padded = np.pad(grid, ((rows + 1, rows), (columns + 1, columns)))
    table = padded.cumsum(axis=0).cumsum(axis=1)
    h, w = 2 * rows + 1, 2 * columns + 1
    return np.maximum(0.0, table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w])


def _largest_cluster(counts: NDArray[np.float64], reach: float) -> tuple[NDArray[np.bool_], tuple[int, int], float]:
    """The cells of the cluster around the densest place, that place, and how dense it is."""
    density = ndimage.gaussian_filter(counts, reach, mode="constant")
    joined, _ = ndimage.label(_box_sums(counts, int(reach // 2), int(reach // 2)) > 0.5)
    row, column = np.unravel_index(np.argmax(np.where(joined > 0, density, -1.0)), counts.shape)
    cluster = (joined == joined[row, column]) & (counts > 0)
    return cluster, (int(row), int(column)), float(density[row, column])


def _leader(box: Box, points: NDArray[np.float64], radius: float, least: float) -> Box | None:
    low, high = np.array(box[:2]), np.array(box[2:])
    nearest = points.clip(low, high)
    gaps = np.hypot(*(points - nearest).T)
    i = int(np.argmin(gaps))
    if gaps[i] - radius < least:
        return None
    end = points[i] + (nearest[i] - points[i]) * (radius / gaps[i])
    return float(nearest[i, 0]), float(nearest[i, 1]), float(end[0]), float(end[1])


def _along(line: Box, step: float) -> NDArray[np.float64]:
    start, end = np.array(line[:2]), np.array(line[2:])
    # Not the start, which is the edge of its own name.
    count = max(2, int(np.hypot(*(end - start)) / step) + 1)
    return start + (end - start) * np.linspace(0, 1, count + 1)[1:, None]


def _filled(box: Box, step: float) -> NDArray[np.float64]:
    across, down = np.arange(box[0], box[2] + step, step), np.arange(box[1], box[3] + step, step)
    grid = np.stack(np.meshgrid(across.clip(None, box[2]), down.clip(None, box[3])), axis=-1)
    return grid.reshape(-1, 2)
