"""Pictures of convolution weights: RGB tiles, rows of grey kernels, or a matrix for 1 x 1 kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_viz.draw.arrays import to_numpy
from lit_viz.draw.canvas import MUTED, PAPER, RULE, SMALL, Canvas, Color, ColorBar, Page
from lit_viz.draw.colormaps import colorize, hatch
from lit_viz.draw.text import measure
from lit_viz.errors import UsageError

_SCALES = ("each", "shared")
_LARGEST_TILE = 200
_LEAST_TILE = 10
_LEAST_KERNEL = 26
_MOST_INPUTS = 32
_ROW_GAP = 9
# Between tiles: no weight looks like that.
_BESIDE_GREY: Color = (176, 203, 232)
_BESIDE_CHANGE: Color = (150, 154, 160)


def filter_tiles(weight: Any, *, scale: str = "each") -> NDArray[np.uint8]:
    """Weights as pixels.

    Args:
        weight: (K, C, h, w).
        scale: `each` stretches every output filter from its own smallest weight (0) to its largest (255), all
            its input channels together; one without any contrast becomes mid-grey. `shared` maps [-m, m] to
            [0, 255] with m the largest magnitude of all, so that zero is mid-grey.

    Returns:
        (K, C, h, w) uint8; NaN is 0.
    """
    values = _checked(weight)
    if scale not in _SCALES:
        raise UsageError(f"scale must be 'each' or 'shared', got {scale!r}.")
    return _stretched(values, _magnitude(values) if scale == "shared" else None)


def _magnitude(values: NDArray[np.float64]) -> float:
    return float(np.abs(values).max(initial=0.0, where=np.isfinite(values)))


def _stretched(values: NDArray[np.float64], bound: float | None) -> NDArray[np.uint8]:
    """Weights as pixels, over [-bound, bound] or, without a bound, each filter over its own range."""
    finite = np.isfinite(values)
    clean = np.where(finite, values, 0.0)
    if bound is None:
        low = np.where(finite, values, np.inf).min(axis=(1, 2, 3), keepdims=True)
        high = np.where(finite, values, -np.inf).max(axis=(1, 2, 3), keepdims=True)
    else:
        high = np.full((1, 1, 1, 1), bound)
        low = -high
    span = high - low
    flat = ~(span > 0) | ~np.isfinite(span)
    unit = np.where(flat, 0.5, (clean - np.where(flat, 0.0, low)) / np.where(flat, 1.0, span))
    return np.where(finite, np.round(np.clip(unit, 0, 1) * 255), 0).astype(np.uint8)


def filter_grid(
    weight: Any,
    *,
    previous: Any = None,
    scale: str = "each",
    numbers: bool = False,
    title: str = "",
    subtitle: str = "",
    max_filters: int | None = None,
    max_inputs: int | None = None,
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Draws the filters of a layer.

    Three input channels give RGB tiles, one gives grey tiles. Any other number gives one row per output
    filter with its kernels for the input channels side by side. 1 x 1 kernels, and linear layers, give a
    matrix in diverging colours. Where not all fits, the first ones are shown and a line under the title says
    so; another one counts filters with weights that are NaN or infinite, which are hatched.

    Args:
        weight: (K, C, h, w), or (K, C).
        previous: Weights of the same shape at an earlier time. The picture then shows `weight - previous` on
            one symmetrical scale: RGB tiles with mid-grey for no change, diverging colours for the others.
        scale: `each` or `shared`, see `filter_tiles`; without effect on a matrix or a change.
        numbers: Whether to write the index above every tile that is wide enough.
        title: One line.
        subtitle: How to read the picture.
        max_filters: Bound on the output filters shown; None shows as many as fit.
        max_inputs: Bound on the input channels shown; None shows as many as fit, at most 32.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    values = _checked(weight)
    for name, bound in (("max_filters", max_filters), ("max_inputs", max_inputs)):
        if bound is not None and bound < 1:
            raise UsageError(f"{name} must be at least 1, got {bound}.")
    if scale not in _SCALES:
        raise UsageError(f"scale must be 'each' or 'shared', got {scale!r}.")
    change = previous is not None
    if change:
        before = _checked(previous)
        if before.shape != values.shape:
            raise UsageError(f"previous has the shape {before.shape}, weight has {values.shape}.")
        values = values - before
    bound = _magnitude(values)
    stretch = bound if change or scale == "shared" else None
    filters, channels, height, width = values.shape
    matrix = height == width == 1
    between = _BESIDE_CHANGE if change else _BESIDE_GREY
    bar = None
    if matrix or (change and channels != 3):
        bar = ColorBar("diverging", -bound, bound, "change" if change else "weight")

    whole = np.isfinite(values)
    broken = int((~whole.all(axis=(1, 2, 3))).sum())

    def page(note: str) -> Page:
        # After a full sentence follows another one.
        link = " " if subtitle.rstrip().endswith((".", "!", "?")) else " · "
        return Page(title, link.join(text for text in (subtitle, note) if text), bar, max_size)

    # A note can cost a line, so that room is measured with one.
    draft = page(_note(1000, 2000, 1000, 2000, broken))
    if matrix:
        rows, columns = _matrix_part(draft, filters, channels, max_filters, max_inputs)
        body = _matrix(draft, np.where(whole, values, np.nan)[:rows, :columns, 0, 0], bound)
    elif channels in (1, 3):
        tiles = _stretched(values, stretch)
        colors = np.repeat(tiles, 3, axis=1) if channels == 1 else tiles
        pixels = np.ascontiguousarray(colors.transpose(0, 2, 3, 1))
        if change and channels == 1:
            pixels = colorize(np.where(whole, values, 0.0)[:, 0], cmap="diverging", low=-bound, high=bound)
        rows, columns = min(filters, max_filters or filters), channels
        body, rows = _grid(draft, pixels[:rows], whole.all(axis=1), numbers, PAPER if channels == 3 else between)
    else:
        columns = min(channels, max_inputs or _MOST_INPUTS)
        rows = min(filters, max_filters or filters, _most_rows(draft, columns))
        values = values[:rows]
        if change:
            cells = colorize(np.where(whole[:rows], values, 0.0), cmap="diverging", low=-bound, high=bound)
        else:
            cells = np.repeat(_stretched(values, stretch)[..., None], 3, axis=-1)
        body, rows, columns = _rows(draft, cells[:, :columns], whole, between)
    return page(_note(rows, filters, columns, channels, broken)).finish(body)


def _checked(weight: Any) -> NDArray[np.float64]:
    values = to_numpy(weight)
    if values.ndim == 2:
        values = values[..., None, None]
    if values.ndim != 4 or not values.size:
        raise UsageError(f"Filters must have the shape (K, C, h, w) or (K, C), got {values.shape}.")
    return values


def _note(rows: int, filters: int, columns: int, channels: int, broken: int) -> str:
    parts = []
    if rows < filters:
        parts.append(f"{rows} of {filters} filters")
    if columns < channels:
        parts.append(f"{columns} of {channels} inputs")
    notes = [f"Shown: the first {' × '.join(parts)}."] if parts else []
    if broken:
        which = f"{broken} of {filters} filters {'holds' if broken == 1 else 'hold'}"
        notes.append(f"{which} NaN or infinite weights (hatched).")
    return " ".join(notes)


def _separator(tile: int) -> int:
    return 1 if tile < 32 else 2 if tile < 80 else 4


def _largest_factor(fits: Callable[[int], bool], most: int) -> int:
    """The largest whole factor, 1 to `most`, that fits; 0 if none does."""
    return next((factor for factor in range(max(1, most), 0, -1) if fits(factor)), 0)


def _enlarged(pixels: NDArray[np.uint8], whole: NDArray[np.bool_], factor: int) -> NDArray[np.uint8]:
    """One tile in squares; weights that are no numbers are hatched."""
    large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    if not whole.all():
        missing = ~whole.repeat(factor, axis=0).repeat(factor, axis=1)
        height, width = missing.shape
        large[missing] = hatch(max(height, 32), max(width, 32))[:height, :width][missing]
    return large


def _grid(
    page: Page, pixels: NDArray[np.uint8], whole: NDArray[np.bool_], numbers: bool, paper: Color
) -> tuple[Image.Image, int]:
    """Tiles (n, h, w, 3) on a grid, as large as the room allows; returns the picture and their number."""
    count, height, width = pixels.shape[:3]
    px, (room_width, room_height) = page.px, page.room
    label = px(20) if numbers else 0

    def across(factor: int) -> int:
        gap = _separator(width * factor)
        return (room_width + gap) // (width * factor + gap)

    def down(factor: int) -> int:
        gap = _separator(width * factor)
        return (room_height + gap) // (height * factor + gap + label)

    most = px(_LARGEST_TILE) // max(height, width)
    factor = _largest_factor(lambda f: across(f) * down(f) >= count, most)
    if not factor or factor * max(height, width) < px(_LEAST_TILE):
        # Too many to be seen at all: fewer, but legible ones.
        factor = min(max(1, -(-px(_LEAST_TILE) // max(height, width))), max(1, most))
    count = max(1, min(count, across(factor) * down(factor)))
    gap = _separator(width * factor)
    pitch_x, pitch_y = width * factor + gap, height * factor + gap + label
    # Among the widths with this tile size, the one closest to a landscape page with a full last row.
    fitting = [c for c in range(1, max(1, across(factor)) + 1) if -(-count // c) <= max(1, down(factor))]
    columns = min(fitting or [1], key=lambda c: _shape_cost(c * pitch_x, -(-count // c) * pitch_y, count, c))
    rows = -(-count // columns)
    edge = 0 if paper == PAPER else gap
    canvas = Canvas(columns * pitch_x - gap + 2 * edge, rows * pitch_y - gap + 2 * edge)
    for i in range(count):
        x, y = (i % columns) * pitch_x + edge, (i // columns) * pitch_y + edge
        if edge:
            canvas.fill(x - gap, y + label - gap, pitch_x + gap, height * factor + 2 * gap, paper)
        if numbers and width * factor >= px(26):
            canvas.text(x, y + label - px(5), str(i), px(SMALL), color=MUTED, width=width * factor + gap)
        canvas.paste(_enlarged(pixels[i], whole[i], factor), x, y + label)
    return canvas.image, count


def _shape_cost(width: float, height: float, count: int, columns: int) -> float:
    empty = (-count) % columns / columns
    return abs(float(np.log(width / height / 1.5))) + 0.8 * empty


def _most_rows(page: Page, columns: int) -> int:
    """At least as many rows of kernels as can fit: a large layer need not be coloured as a whole."""
    width, height = page.room
    blocks = max(1, width // (page.px(_LEAST_KERNEL) * columns))
    return blocks * max(1, height // page.px(_ROW_GAP))


def _rows(page: Page, cells: NDArray[np.uint8], whole: NDArray[np.bool_], paper: Color) -> tuple[Image.Image, int, int]:
    """One row of kernels per output filter; cells (n, c, h, w, 3). Returns the picture, rows and inputs."""
    filters, channels, height, width = cells.shape[:4]
    px, (room_width, room_height) = page.px, page.room
    # Kernels have few pixels of any grey, so that a hairline between them would be lost.
    heading, gap, row_gap, block_gap = px(28), px(3), px(_ROW_GAP), px(32)
    label = int(measure(str(filters - 1), px(SMALL))) + px(14)

    def rows_at(factor: int) -> int:
        return (room_height - heading + row_gap) // (height * factor + row_gap)

    def blocks_at(factor: int, columns: int) -> int:
        return (room_width + block_gap) // (label + columns * (width * factor + gap) - gap + block_gap)

    least = max(1, -(-px(_LEAST_KERNEL) // max(height, width)))
    most = max(least, px(84) // max(height, width))
    factor = max(least, _largest_factor(lambda f: rows_at(f) * blocks_at(f, channels) >= filters, most))
    channels = max(1, min(channels, (room_width - label + gap) // (width * factor + gap)))
    filters = max(1, min(filters, max(1, rows_at(factor)) * max(1, blocks_at(factor, channels))))
    blocks = min(max(1, blocks_at(factor, channels)), filters)
    deep = -(-filters // blocks)
    # Fewer, fuller blocks if the last one would stay empty.
    blocks = -(-filters // deep)
    pitch = width * factor + gap
    block_width = label + channels * pitch - gap
    row_height = height * factor + row_gap
    canvas = Canvas(blocks * (block_width + block_gap) - block_gap + gap, heading + deep * row_height - row_gap + gap)
    for block in range(blocks):
        left = block * (block_width + block_gap) + label
        canvas.text(left, px(15), "input channels →", px(SMALL), color=MUTED, width=block_width - label)
    for i, kernels in enumerate(cells[:filters]):
        left, top = (i // deep) * (block_width + block_gap), heading + (i % deep) * row_height
        middle = top + height * factor / 2 + px(6)
        canvas.text(left + label - px(10), middle, str(i), px(SMALL), color=MUTED, align="right")
        canvas.fill(left + label - gap, top - gap, channels * pitch + gap, height * factor + 2 * gap, paper)
        for j in range(channels):
            canvas.paste(_enlarged(kernels[j], whole[i, j], factor), left + label + j * pitch, top)
    return canvas.image, filters, channels


def _matrix_part(
    page: Page, filters: int, channels: int, max_filters: int | None, max_inputs: int | None
) -> tuple[int, int]:
    # Below three pixels a weight can't be seen.
    width, height = page.room[0] // 3, (page.room[1] - page.px(28)) // 3
    filters, channels = min(filters, max_filters or filters), min(channels, max_inputs or channels)
    across = _filters_across(filters, channels)
    return min(filters, width if across else height), min(channels, height if across else width)


def _filters_across(filters: int, channels: int) -> bool:
    """Pages are wide, and so are matrices drawn."""
    return filters > channels


def _matrix(page: Page, values: NDArray[np.float64], bound: float) -> Image.Image:
    """A heat map of weights (filters, channels)."""
    px, (room_width, room_height) = page.px, page.room
    names = ("output filters", "input channels")
    if _filters_across(*values.shape):
        values, names = values.T, names[::-1]
    top = px(28)
    factor = max(1, min(room_width // values.shape[1], (room_height - top) // values.shape[0], px(60)))
    large = _enlarged(
        colorize(np.nan_to_num(values), cmap="diverging", low=-bound, high=bound), np.isfinite(values), factor
    )
    heading = f"→ {names[1]}   ↓ {names[0]}"
    canvas = Canvas(max(large.shape[1], int(measure(heading, px(SMALL))) + 2), top + large.shape[0])
    canvas.text(0, px(15), heading, px(SMALL), color=MUTED)
    canvas.paste(large, 0, top)
    canvas.frame(0, top, large.shape[1], large.shape[0], RULE)
    return canvas.image
