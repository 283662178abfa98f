"""Embeddings shown with the images themselves: thumbnails at their places, or moved onto a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lit_viz.draw.arrays import as_labels, as_points, as_rgb_stack
from lit_viz.draw.canvas import SHADE, Canvas, Page
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.scatter import ClassColors, class_colors, legend_picture, placed
from lit_viz.errors import UsageError

_BORDER = 2.5


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
    """Thumbnails at their places in the plane.

    Where they would hide each other, only the first in the order of the input is shown, and a grey dot marks
    the place of every other.

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
        # The area of all thumbnails is about that of the map, within what can be seen.
        side = int(np.clip(np.sqrt(width * height / len(places)), px(30), px(64)))
        tile = fitted_size(*pictures.shape[1:3], side, side)
        where = placed(places, width, height, side // 2 + px(10))
        kept = _thin(where, 0.88 * max(tile))
        dot = px(4)
        for x, y in where[~kept]:
            canvas.fill(x - dot / 2, y - dot / 2, dot, dot, (186, 191, 198))
        for i in np.flatnonzero(kept):
            x, y = round(where[i, 0] - tile[1] / 2), round(where[i, 1] - tile[0] / 2)
            _paste(canvas, page, pictures[i], tile, x, y, classes, key, int(i))
    if legend:
        canvas.paste(legend, 0, height + px(16))
    return page.finish(canvas.image)


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
    """Thumbnails moved onto a grid, about square, as near to their places in the plane as possible in total.

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
    columns = int(np.clip(np.ceil(np.sqrt(len(places))), 1, max_cells))
    rows = int(np.clip(-(-len(places) // columns), 1, max_cells))
    chosen = np.round(np.linspace(0, len(places) - 1, min(len(places), rows * columns))).astype(int)
    gap = px(2) + (2 * px(_BORDER) if key else 0)
    side = max(2, min(px(160), (width + gap) // columns - gap, (height - below + gap) // rows - gap))
    tile = fitted_size(*pictures.shape[1:3], side, side) if len(places) else (side, side)
    pitch = tile[0] + gap, tile[1] + gap
    inset = px(_BORDER) if key else 0
    grid = columns * pitch[1] - gap + 2 * inset, rows * pitch[0] - gap + 2 * inset
    canvas = Canvas(max(grid[0], width if legend else 0), grid[1] + below)
    if len(chosen):
        cell = assign_to_grid(places[chosen], rows, columns)
        for i, at in zip(chosen, cell, strict=True):
            x, y = inset + (at % columns) * pitch[1], inset + (at // columns) * pitch[0]
            _paste(canvas, page, pictures[i], tile, int(x), int(y), classes, key, int(i))
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


def _thin(where: NDArray[np.float64], distance: float) -> NDArray[np.bool_]:
    """Keeps points, in their order, that are `distance` away from all kept before, along x or y."""
    kept = np.zeros(len(where), dtype=bool)
    cells: dict[tuple[int, int], list[int]] = {}
    for i, (x, y) in enumerate(where):
        column, row = int(x // distance), int(y // distance)
        near = (j for dx in (-1, 0, 1) for dy in (-1, 0, 1) for j in cells.get((column + dx, row + dy), ()))
        if all(max(abs(where[j, 0] - x), abs(where[j, 1] - y)) >= distance for j in near):
            kept[i] = True
            cells.setdefault((column, row), []).append(i)
    return kept


def _paste(
    canvas: Canvas,
    page: Page,
    pixels: NDArray[np.uint8],
    tile: tuple[int, int],
    x: int,
    y: int,
    labels: NDArray[np.int64] | None,
    key: ClassColors | None,
    index: int,
) -> None:
    picture: Image.Image = resized(pixels, *tile)
    canvas.paste(picture, x, y)
    if labels is not None and key is not None:
        edge = page.px(_BORDER)
        color = key.color(int(labels[index]))
        canvas.frame(x - edge, y - edge, tile[1] + 2 * edge, tile[0] + 2 * edge, color, edge)
