"""Embeddings shown with the images themselves: thumbnails at their places, or moved onto a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lit_viz.draw.arrays import as_labels, as_points, as_rgb_stack
from lit_viz.draw.canvas import SHADE, Canvas, Color, Page
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.scatter import class_colors, legend_picture, placed
from lit_viz.errors import UsageError

_BORDER = 2.5
# Sides of thumbnails on a map, px on a page of 1000 px, and the share of images that should be seen.
_SIDES = (96, 84, 72, 62, 54, 47, 41, 36, 32, 29, 26, 24, 22)
_ENOUGH = 0.9
_REACH = 4.0
# Of the area; on a fuller map clusters would grow together.
_FILL = 0.6
# More would not fit on a map at any size.
_MOST = 2500


def thumbnail_map(
    points: Any,
    thumbnails: Any,
    *,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Thumbnails about at their places in the plane, moved apart so that none hides another.

    The map is laid out in cells of the size of a thumbnail, and each image is moved to a free one nearby: by less than
    a cell where there is room, by at most four where images crowd, such that the sum of squared distances is least.
    Clusters so become patches, larger than the clusters are, with their images in order. Thumbnails are as large as
    leaves nine in ten images visible, down to a size that can still be seen. A grey dot marks the place of an image
    without a free cell.

    Args:
        points: (n, 2); points that aren't finite are left out.
        thumbnails: uint8 (n, h, w, 3).
        labels: (n,) class indices for thin borders in the colour of the class, or None.
        class_names: One name per class; None shows the indices.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    places, pictures, classes = _inputs(points, thumbnails, labels)
    key = None if classes is None else class_colors(classes, class_names, None)
    page = Page(title, subtitle, None, max_size)
    px, (width, height) = page.px, page.room
    legend = legend_picture(page, key, width, most_lines=2)
    below = legend.height + px(16) if legend else 0
    height -= below
    canvas = Canvas(width, height + below)
    canvas.fill(0, 0, width, height, SHADE)
    if len(places):
        where, moved, tile, edge = _arranged(page, places, pictures.shape[1:3], width, height, key is not None)
        hidden = np.isnan(moved).any(axis=1)
        dot = px(4)
        for x, y in where[hidden]:
            canvas.fill(x - dot / 2, y - dot / 2, dot, dot, (186, 191, 198))
        for i in np.flatnonzero(~hidden):
            x, y = round(moved[i, 0] - tile[1] / 2), round(moved[i, 1] - tile[0] / 2)
            color = None if classes is None or key is None else key.color(int(classes[i]))
            _paste(canvas, pictures[i], tile, x, y, color, edge)
    if legend:
        canvas.paste(legend, 0, height + px(16))
    return page.finish(canvas.image)


def _arranged(
    page: Page, places: NDArray[np.float64], shape: tuple[int, ...], width: int, height: int, bordered: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int], int]:
    """Places on the map, where they are moved to, the size of the tiles (height, width), and their border."""
    px = page.px

    def attempt(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int], int]:
        tile = fitted_size(*shape[:2], px(side), px(side))
        edge = _border(page, px(side)) if bordered else 0
        gap = 2 * edge + (px(1) if bordered else px(2))
        where = placed(places, width, height, max(tile) // 2 + px(8))
        return where, spread_out(where, width, height, (tile[0] + gap, tile[1] + gap), _REACH), tile, edge

    # The smaller they are, the more are visible.
    largest = np.sqrt(_FILL * width * height / len(places)) / px(1000) * 1000
    low, high = min(sum(side > largest for side in _SIDES), len(_SIDES) - 1), len(_SIDES) - 1
    while low < high:
        middle = (low + high) // 2
        if np.isfinite(attempt(_SIDES[middle])[1][:, 0]).mean() >= _ENOUGH:
            high = middle
        else:
            low = middle + 1
    return attempt(_SIDES[low])


def _border(page: Page, side: float) -> int:
    """Thinner around small thumbnails."""
    return int(np.clip(side / 18, page.px(1.5), page.px(_BORDER)))


def spread_out(
    where: NDArray[np.float64], width: int, height: int, pitch: tuple[int, int], reach: float
) -> NDArray[np.float64]:
    """Moves points to the cells of a grid, each to one of its own, with the least sum of squared distances.

    Args:
        where: (n, 2) px, finite; of more than 2500 an even share is taken.
        width: Of the map, which the grid fills, centred.
        height: Of the map.
        pitch: Height and width of a cell.
        reach: How far a point may be moved, in cells, at least 1.

    Returns:
        (n, 2) centres of cells; NaN where no cell is free within reach.
    """
    cell = np.array(pitch[::-1])
    columns, rows = np.maximum(1, np.array([width, height]) // cell)
    first = (np.array([width, height]) - [columns, rows] * cell) / 2 + cell / 2
    centers = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2) * cell + first
    chosen = np.round(np.linspace(0, len(where) - 1, min(len(where), _MOST))).astype(int)
    distance = cdist(where[chosen] / cell, centers / cell, "sqeuclidean")
    near = distance.min(axis=0) <= reach**2
    # Leaving out an image costs more than moving one, but not a whole chain of them.
    cost = np.where(distance[:, near] <= reach**2, distance[:, near], 4 * reach**2)
    point, target = linear_sum_assignment(cost)
    ok = cost[point, target] <= reach**2
    out = np.full(where.shape, np.nan)
    out[chosen[point[ok]]] = centers[near][target[ok]]
    return out


def thumbnail_grid(
    points: Any,
    thumbnails: Any,
    *,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    max_cells: int = 30,
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Thumbnails moved onto a grid that fills the page, as near to their places in the plane as possible in total.

    Args:
        points: (n, 2); points that aren't finite are left out.
        thumbnails: uint8 (n, h, w, 3).
        labels: (n,) class indices for thin borders in the colour of the class, or None.
        class_names: One name per class; None shows the indices.
        max_cells: Bound on the cells along each side, at most 30; of more images an even share is taken.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    if not 1 <= max_cells <= 30:
        raise UsageError(f"max_cells must lie in 1 to 30, got {max_cells}.")
    places, pictures, classes = _inputs(points, thumbnails, labels)
    key = None if classes is None else class_colors(classes, class_names, None)
    page = Page(title, subtitle, None, max_size)
    px, (width, height) = page.px, page.room
    legend = legend_picture(page, key, width, most_lines=2)
    below = legend.height + px(16) if legend else 0
    columns = int(np.clip(np.ceil(np.sqrt(len(places) * width / (height - below))), 1, max_cells))
    rows = int(np.clip(-(-len(places) // columns), 1, max_cells))
    chosen = np.round(np.linspace(0, len(places) - 1, min(len(places), rows * columns))).astype(int)
    inset = _border(page, min(width / columns, (height - below) / rows)) if key else 0
    gap = 2 * inset + px(1 if key else 2)
    side = max(2, min(px(160), (width + gap) // columns - gap, (height - below + gap) // rows - gap))
    tile = fitted_size(*pictures.shape[1:3], side, side) if len(places) else (side, side)
    pitch = tile[0] + gap, tile[1] + gap
    grid = columns * pitch[1] - gap + 2 * inset, rows * pitch[0] - gap + 2 * inset
    canvas = Canvas(max(grid[0], width if legend else 0), grid[1] + below)
    if len(chosen):
        cell = assign_to_grid(places[chosen], rows, columns)
        for i, at in zip(chosen, cell, strict=True):
            x, y = inset + (at % columns) * pitch[1], inset + (at // columns) * pitch[0]
            color = None if classes is None or key is None else key.color(int(classes[i]))
            _paste(canvas, pictures[i], tile, int(x), int(y), color, inset)
    if legend:
        canvas.paste(legend, 0, canvas.image.height - legend.height)
    return page.finish(canvas.image)


def assign_to_grid(points: Any, rows: int, columns: int) -> NDArray[np.int64]:
    """Gives each point a cell of its own, with the least sum of squared distances.

    Args:
        points: (n, 2), finite, n at most rows * columns; stretched over the grid in both directions.
        rows: Rows, the first at the largest y.
        columns: Columns, the first at the smallest x.

    Returns:
        (n,) cell indices, row * columns + column, all different.
    """
    places = as_points(points)
    if len(places) > rows * columns:
        raise UsageError(f"{len(places)} points don't fit on a grid of {rows} x {columns} cells.")
    if not np.isfinite(places).all():
        raise UsageError("Only finite points can be assigned to a grid.")
    low, span = places.min(axis=0), np.ptp(places, axis=0)
    unit = (places - low) / np.where(span > 0, span, 1.0)
    unit[:, span == 0] = 0.5
    position = unit * [columns - 1, rows - 1]
    position[:, 1] = rows - 1 - position[:, 1]
    row, column = np.divmod(np.arange(rows * columns), columns)
    cost = cdist(position, np.stack([column, row], axis=1), "sqeuclidean")
    return linear_sum_assignment(cost)[1].astype(np.int64)


def _inputs(
    points: Any, thumbnails: Any, labels: Any
) -> tuple[NDArray[np.float64], NDArray[np.uint8], NDArray[np.int64] | None]:
    places, pictures = as_points(points), as_rgb_stack(thumbnails, "thumbnails")
    if len(places) != len(pictures):
        raise UsageError(f"There are {len(places)} points but {len(pictures)} thumbnails.")
    classes = as_labels(labels, len(places))
    finite = np.isfinite(places).all(axis=1)
    return places[finite], pictures[finite], None if classes is None else classes[finite]


def _paste(
    canvas: Canvas, pixels: NDArray[np.uint8], tile: tuple[int, int], x: int, y: int, color: Color | None, edge: int
) -> None:
    """A thumbnail with its upper left corner at (x, y), and a border of its class around it."""
    if color is not None:
        canvas.fill(x - edge, y - edge, tile[1] + 2 * edge, tile[0] + 2 * edge, color)
    canvas.paste(resized(pixels, *tile), x, y)
