"""One page about one image: the image with the classes beside it, and a grid of pictures, each with its heading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import BODY, INK, MUTED, SHADE, SMALL, Canvas, Color, Page
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.text import clean, measure, number, wrap
from lit_viz.errors import UsageError

_ASKED: Color = (63, 144, 218)
_OTHER: Color = (176, 184, 194)
_HERO, _GAP, _ROW_GAP = 292, 24, 22
_HEADING, _NOTE, _NOTE_LINE, _MOST_NOTE = 28, 15, 20, 5
_ALONE, _LEAST_NOTE = 480, 12
_BAR_ROW, _BAR = 46, 11
# Width over height of the tallest tile.
_TALLEST = 0.75


@dataclass(frozen=True)
class Tile:
    """A picture, or the sentence that stands in its place.

    Attributes:
        heading: Above it.
        image: uint8 (H, W), (H, W, 1) or (H, W, 3); None where there is nothing to see.
        note: How to read it, below it; without an image, why there is none, in its place.
    """

    heading: str
    image: NDArray[np.uint8] | None
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """Classes and their probabilities.

    Attributes:
        names: Best first.
        values: In [0, 1].
        asked: Which of them the pictures are about; None for none of them.
    """

    names: Sequence[str]
    values: Sequence[float]
    asked: int | None = None


def board(
    tiles: Sequence[Tile],
    *,
    hero: Tile | None = None,
    bars: Bars | None = None,
    title: str = "",
    subtitle: str = "",
    max_size: int = 1400,
) -> NDArray[np.uint8]:
    """Lays out one image and what was found about it.

    Args:
        tiles: The pictures; made for up to nine.
        hero: A larger one, on the left.
        bars: Below the hero.
        title: One line.
        subtitle: One or two lines, muted.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    if hero is None and not tiles:
        raise UsageError("A board needs at least one picture.")
    page = Page(title, subtitle, None, max_size)
    px = page.px
    left = 0 if hero is None else px(_HERO) + px(_GAP) * bool(tiles)
    columns = _columns(len(tiles))
    largest = px(_ALONE if hero is None else _HERO)
    side = min(largest, (page.room[0] - left - px(_GAP) * (columns - 1)) // max(columns, 1))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)] if columns else []
    heights = [_row_height(page, row, side) for row in rows]
    below = sum(heights) + px(_ROW_GAP) * max(0, len(rows) - 1)
    width = left + columns * (side + px(_GAP)) - px(_GAP)
    canvas = Canvas(*_body_size(page, hero, bars, (width, below), alone=not tiles))
    if hero is not None:
        _draw(canvas, page, hero, 0, 0, px(_HERO))
        if bars is not None:
            _draw_bars(canvas, page, bars, *_place_of_bars(page, hero, alone=not tiles))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, tile in enumerate(row):
            _draw(canvas, page, tile, left + i * (side + px(_GAP)), top, side)
        top += height + px(_ROW_GAP)
    return page.finish(canvas.image)


def _columns(count: int) -> int:
    """How many tiles stand beside each other."""
    return min(count, 3) if count != 4 else 2


def _size(page: Page, tile: Tile, side: int) -> tuple[int, int]:
    """Height and width of a picture in a column of that width."""
    if tile.image is None:
        return side, side
    return fitted_size(*as_rgb(tile.image).shape[:2], round(side / _TALLEST), side)


def _note(page: Page, tile: Tile, side: int) -> tuple[str, ...]:
    return wrap(clean(tile.note), page.px(_NOTE), side, _MOST_NOTE) if tile.image is not None else ()


def _row_height(page: Page, row: Sequence[Tile], side: int) -> int:
    deep = max(_size(page, tile, side)[0] for tile in row)
    lines = max(len(_note(page, tile, side)) for tile in row)
    return page.px(_HEADING) + deep + lines * page.px(_NOTE_LINE) + (page.px(6) if lines else 0)


def _body_size(
    page: Page, hero: Tile | None, bars: Bars | None, tiles: tuple[int, int], *, alone: bool
) -> tuple[int, int]:
    """Width and height of everything below the header; those of the tiles are given."""
    if hero is None:
        return tiles
    width, height = max(tiles[0], page.px(_HERO)), max(tiles[1], _row_height(page, [hero], page.px(_HERO)))
    if bars is None:
        return width, height
    left, top = _place_of_bars(page, hero, alone=alone)
    return max(width, left + page.px(_HERO)), max(height, top + len(bars.names) * page.px(_BAR_ROW))


def _place_of_bars(page: Page, hero: Tile, *, alone: bool) -> tuple[int, int]:
    """Left and top: below the hero, or beside it where nothing else is."""
    if alone:
        return page.px(_HERO) + page.px(_GAP), page.px(_HEADING)
    return 0, _row_height(page, [hero], page.px(_HERO)) + page.px(14)


def _draw(canvas: Canvas, page: Page, tile: Tile, left: int, top: int, side: int) -> None:
    px = page.px
    heading, size = clean(tile.heading), px(BODY)
    while size > px(_NOTE) and measure(heading, size, bold=True) > side - 1:
        size -= 1
    canvas.text(left, top + px(16), heading, size, color=INK, bold=True, width=side)
    top += px(_HEADING)
    height, width = _size(page, tile, side)
    if tile.image is None:
        _draw_sentence(canvas, page, tile.note, left, top, side)
        return
    canvas.paste(resized(as_rgb(tile.image), height, width), left, top)
    baseline = top + height + px(6)
    for line in _note(page, tile, side):
        baseline += px(_NOTE_LINE)
        canvas.text(left, baseline - px(4), line, px(_NOTE), color=MUTED)


def _draw_sentence(canvas: Canvas, page: Page, sentence: str, left: int, top: int, side: int) -> None:
    """Why there is no picture, in the middle of its place."""
    px, inside = page.px, side - 2 * page.px(10)
    canvas.fill(left, top, side, side, SHADE)
    size = px(_NOTE)
    while True:
        line_height = round(size * 1.3)
        lines = wrap(clean(sentence), size, inside, max(1, inside // line_height))
        if not lines or not lines[-1].endswith("…") or size <= px(_LEAST_NOTE):
            break
        size -= 1
    baseline = top + (side - len(lines) * line_height) // 2 + size
    for line in lines:
        canvas.text(left + px(10), baseline, line, size, color=MUTED)
        baseline += line_height


def _draw_bars(canvas: Canvas, page: Page, bars: Bars, left: int, top: int) -> None:
    px, side = page.px, page.px(_HERO)
    for i, (name, value) in enumerate(zip(bars.names, bars.values, strict=True)):
        asked = i == bars.asked
        baseline = top + i * px(_BAR_ROW) + px(15)
        canvas.text(left, baseline, name, px(SMALL), color=INK, bold=asked, width=side - px(68))
        told = f"{value:.2f}" if value >= 0.01 else number(value)
        canvas.text(left + side, baseline, told, px(SMALL), color=INK, bold=asked, align="right")
        at = baseline + px(7)
        canvas.fill(left, at, side, px(_BAR), SHADE)
        if round(side * value):
            canvas.fill(left, at, round(side * value), px(_BAR), _ASKED if asked else _OTHER)


def mosaic(pictures: Sequence[NDArray[np.uint8]], *, side: int = 160, gap: int = 6) -> NDArray[np.uint8]:
    """Small pictures in a square of rows and columns, white where there are too few.

    Args:
        pictures: uint8 (h, w, 3), of one shape.
        side: Of each, px; its longer one.
        gap: Between them, px.

    Returns:
        (H, W, 3).
    """
    across = max(1, math.ceil(math.sqrt(len(pictures))))
    height, width = fitted_size(*pictures[0].shape[:2], side, side, small=0)
    down = -(-len(pictures) // across)
    canvas = Canvas(across * (width + gap) - gap, down * (height + gap) - gap)
    for i, picture in enumerate(pictures):
        canvas.paste(resized(picture, height, width), i % across * (width + gap), i // across * (height + gap))
    return np.array(canvas.image)
