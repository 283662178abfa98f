"""Rows of nearest neighbours: a query, and groups of pictures that are near it in one space or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import INK, MUTED, PAPER, RULE, SHADE, SMALL, Canvas, Page
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.sheet import marker
from lit_viz.errors import UsageError

_GAP, _GROUP_GAP, _ROW_GAP = 6, 36, 16
_LINE, _LETTERS, _MARK = 19, 14, 20
_HEADING = 52
_LARGEST_TILE = 150


@dataclass(frozen=True)
class Neighbor:
    """A picture with what is to be said of it.

    Attributes:
        image: uint8 (H, W), (H, W, 1) or (H, W, 3).
        caption: Below it, for instance its class.
        detail: A second, muted line, for instance its distance.
        correct: Adds a tick in a full disc or a cross in a ring to a corner of the picture. None adds nothing.
    """

    image: NDArray[np.uint8]
    caption: str = ""
    detail: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class NeighborRow:
    """A query and its neighbours.

    Attributes:
        query: The picture on the left.
        groups: Its neighbours in each space, nearest first.
    """

    query: Neighbor
    groups: Sequence[Sequence[Neighbor]]


def neighbor_sheet(
    rows: Sequence[NeighborRow],
    headings: Sequence[tuple[str, str]],
    *,
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Lays out a query in each row, with its groups of neighbours on the right, divided by rules.

    Args:
        rows: At least one; made for about 6 rows of two groups of 5.
        headings: Of each group, a name and a muted line below it.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    if not rows or not headings:
        raise UsageError("A sheet of neighbours needs at least one row and one group.")
    if any(len(row.groups) != len(headings) for row in rows):
        raise UsageError(f"Every row needs a group for each of the {len(headings)} headings.")
    page = Page(title, subtitle, None, max_size)
    px, (width, height) = page.px, page.room
    counts = [max(1, max(len(row.groups[g]) for row in rows)) for g in range(len(headings))]
    pictures = [[as_rgb(tile.image) for tile in _tiles(row)] for row in rows]
    texts = max(max(bool(t.caption) + bool(t.detail) for t in _tiles(row)) for row in rows)
    between = len(counts) * px(_GROUP_GAP) + sum(n - 1 for n in counts) * px(_GAP)
    box_width = min((width - between) // (1 + sum(counts)), px(_LARGEST_TILE))
    below = texts * px(_LINE) + (px(4) if texts else 0)
    box_height = (height - px(_HEADING) + px(_ROW_GAP)) // len(rows) - px(_ROW_GAP) - below
    box_width, box_height = max(box_width, px(16)), max(px(16), min(box_height, px(_LARGEST_TILE)))
    sizes = [[fitted_size(*p.shape[:2], box_height, box_width) for p in row] for row in pictures]
    tile = max(h for row in sizes for h, _ in row), max(w for row in sizes for _, w in row)
    # Captions of small tiles need some room.
    pitch = min(box_width, max(tile[1], px(64))) + px(_GAP)
    lefts = [0]
    for count in (1, *counts[:-1]):
        lefts.append(lefts[-1] + count * pitch - px(_GAP) + px(_GROUP_GAP))
    row_height = tile[0] + below + px(_ROW_GAP)
    body = lefts[-1] + counts[-1] * pitch - px(_GAP), px(_HEADING) + len(rows) * row_height - px(_ROW_GAP)
    canvas = Canvas(*body)
    canvas.text(0, px(15), "Image", px(17), bold=True, width=pitch - px(_GAP))
    for (name, detail), left, count in zip(headings, lefts[1:], counts, strict=True):
        room = count * pitch - px(_GAP)
        canvas.text(left, px(15), name, px(17), bold=True, width=room)
        canvas.text(left, px(36), detail, px(SMALL), color=MUTED, width=room)
        canvas.fill(left - px(_GROUP_GAP) / 2, 0, 1, body[1], RULE)
    for i, row in enumerate(rows):
        top = px(_HEADING) + i * row_height
        at = [0] + [left + j * pitch for left, g in zip(lefts[1:], row.groups, strict=True) for j in range(len(g))]
        for x, one, pixels, size in zip(at, _tiles(row), pictures[i], sizes[i], strict=True):
            _draw_tile(canvas, page, one, pixels, size, tile, pitch - px(_GAP), x, top)
    return page.finish(canvas.image)


def _tiles(row: NeighborRow) -> list[Neighbor]:
    return [row.query, *(tile for group in row.groups for tile in group)]


def _draw_tile(
    canvas: Canvas,
    page: Page,
    one: Neighbor,
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    tile: tuple[int, int],
    width: int,
    x: int,
    top: int,
) -> None:
    px, (height, across) = page.px, size
    if size != tile:
        canvas.fill(x, top, width, tile[0], SHADE)
    left = x + (width - across) // 2
    canvas.paste(resized(pixels, height, across), left, top + (tile[0] - height) // 2)
    if one.correct is not None:
        mark = px(_MARK)
        # On paper, to be seen on any picture.
        corner = left + across - mark, top + (tile[0] + height) // 2 - mark
        canvas.fill(corner[0] - px(2), corner[1] - px(2), mark + px(2), mark + px(2), PAPER)
        canvas.paste(marker(one.correct, mark), *corner)
    baseline = top + tile[0]
    for text, color in ((one.caption, INK), (one.detail, MUTED)):
        if text:
            baseline += px(_LINE)
            canvas.text(x, baseline, text, px(_LETTERS), color=color, width=width + px(_GAP - 2))
