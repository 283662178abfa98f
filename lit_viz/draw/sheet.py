"""A sheet of cards: one probe image each with its pictures in a row and a caption below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import BODY, INK, MUTED, SMALL, Canvas, Color, ColorBar, Page
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.text import clean, wrap
from lit_viz.errors import UsageError

_RIGHT: Color = (0, 130, 103)
_WRONG: Color = (200, 76, 0)
_GAP, _CARD_GAP, _ROW_GAP, _TIGHT_GAP = 8, 28, 24, 14
_LARGEST_TILE = 520
_SIDE_TEXT = 184


@dataclass(frozen=True)
class Card:
    """One probe image with what is to be seen beside it.

    Attributes:
        images: uint8 (H, W), (H, W, 1) or (H, W, 3), left to right, one per column of the sheet; sizes may
            differ.
        caption: One line below, or a few lines at the side where that leaves more room for the pictures; for
            instance "coffee  p = 0.93". Two blanks in a row are the best place to break.
        detail: A second, muted line.
        correct: Whether the prediction is right: adds a tick in a full disc or a cross in a ring. None adds
            nothing.
    """

    images: Sequence[NDArray[np.uint8]]
    caption: str = ""
    detail: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class _Plan:
    """How the cards lie; px. `text_width` is the space for captions at the side, 0 where they stand below."""

    columns: int
    tile_height: int
    tile_width: int
    text_width: int
    caption: int
    gap: int


def sheet(
    cards: Sequence[Card],
    *,
    columns: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    colorbar: ColorBar | None = None,
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Lays out cards, in as many columns as make the pictures largest.

    Args:
        cards: At least one; made for up to 16, more become small.
        columns: Headings of the pictures inside a card, for instance ("image", "saliency", "overlay").
        title: One line.
        subtitle: How to read the sheet.
        colorbar: What the colours mean.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3). Pictures up to 40 px are enlarged by whole factors, larger ones resized smoothly; aspect
        ratios are kept.
    """
    if not cards:
        raise UsageError("A sheet needs at least one card.")
    pictures = [[as_rgb(image) for image in card.images] for card in cards]
    across = max(len(row) for row in pictures)
    if not across or not all(pictures):
        raise UsageError("Every card needs at least one image.")
    if columns and len(columns) < across:
        raise UsageError(f"The sheet has {len(columns)} column headings, but a card with {across} images.")
    across = max(across, len(columns))

    page = Page(title, subtitle, colorbar, max_size)
    px = page.px
    heading = px(26) if any(columns) else 0
    # The largest picture of a card sets how it is shown; the others, often coarser maps, follow.
    shapes = [max((p.shape[:2] for p in row), key=lambda s: s[0] * s[1]) for row in pictures]
    plan = _plan(page, cards, shapes, across, heading)

    tiles_width = across * plan.tile_width + (across - 1) * px(_GAP)
    card_width = tiles_width + plan.text_width
    sizes = [fitted_size(*shape, plan.tile_height, plan.tile_width) for shape in shapes]
    heights = [
        max(max(h for h, _ in sizes[i : i + plan.columns]), _least_height(page, plan)) + plan.caption
        for i in range(0, len(cards), plan.columns)
    ]
    canvas = Canvas(
        plan.columns * (card_width + px(_CARD_GAP)) - px(_CARD_GAP),
        heading + sum(heights) + (len(heights) - 1) * plan.gap,
    )
    for i, (card, row) in enumerate(zip(cards, pictures, strict=True)):
        line, column = divmod(i, plan.columns)
        left = column * (card_width + px(_CARD_GAP))
        top = heading + sum(heights[:line]) + line * plan.gap
        for j, pixels in enumerate(row):
            x = left + j * (plan.tile_width + px(_GAP))
            if line == 0 and j < len(columns):
                canvas.text(x, px(14), columns[j], px(SMALL), color=MUTED, width=plan.tile_width)
            canvas.paste(resized(pixels, *_shown(pixels, sizes[i], plan)), x, top)
        if plan.text_width:
            _caption_beside(canvas, page, card, left + tiles_width + px(14), top, plan)
        else:
            _caption_below(canvas, page, card, left, top + heights[line] - plan.caption, card_width)
    return page.finish(canvas.image)


def _plan(page: Page, cards: Sequence[Card], shapes: Sequence[tuple[int, int]], across: int, heading: int) -> _Plan:
    """Tries all numbers of columns, captions below or beside; takes what makes the pictures largest."""
    px, (width, height) = page.px, page.room
    lines = (any(c.caption or c.correct is not None for c in cards), any(c.detail for c in cards))
    below = px(8) + px(23) * lines[0] + px(22) * lines[1] if any(lines) else 0
    styles = [(0, below, px(_ROW_GAP))] + [(px(_SIDE_TEXT), 0, px(_TIGHT_GAP))] * any(lines)
    best: tuple[float, _Plan] | None = None
    for text_width, caption, gap in styles:
        for columns in range(1, len(shapes) + 1):
            rows = -(-len(shapes) // columns)
            inner = width - (columns - 1) * px(_CARD_GAP) - columns * ((across - 1) * px(_GAP) + text_width)
            box_width = min(inner // (columns * across), px(_LARGEST_TILE))
            box_height = min((height - heading + gap) // rows - gap - caption, px(_LARGEST_TILE))
            if min(box_width, box_height) < px(16) and best is not None:
                continue
            box_width, box_height = max(box_width, px(16)), max(box_height, px(16))
            sizes = [fitted_size(*shape, box_height, box_width) for shape in shapes]
            tile_height, tile_width = max(h for h, _ in sizes), max(w for _, w in sizes)
            page_width = columns * (across * tile_width + text_width + px(_CARD_GAP)) + px(50)
            page_height = heading + rows * (tile_height + caption + gap) + px(150)
            shape = page_width / page_height
            score = float(np.mean([h * w for h, w in sizes])) ** 0.5 * min(1.0, shape / 0.85, 2.4 / shape)
            # An empty place in the last row is a small blemish, and captions read best below.
            score *= (1 - 0.04 * (columns * rows - len(shapes)) / columns) * (0.9 if text_width else 1.0)
            if best is None or score > best[0] + 1e-9:
                best = score, _Plan(columns, tile_height, tile_width, text_width, caption, gap)
    assert best is not None
    return best[1]


def _least_height(page: Page, plan: _Plan) -> int:
    # A caption beside the pictures has at least a line for itself and one for the detail.
    return page.px(46) if plan.text_width else 1


def _shown(pixels: NDArray[np.uint8], card: tuple[int, int], plan: _Plan) -> tuple[int, int]:
    """The size (height, width) of one picture: that of its card, unless its shape is another."""
    height, width = pixels.shape[:2]
    if abs(np.log((height / width) / (card[0] / card[1]))) > 0.05:
        return fitted_size(height, width, plan.tile_height, plan.tile_width)
    return card


def _caption_below(canvas: Canvas, page: Page, card: Card, left: int, top: int, width: int) -> None:
    px = page.px
    baseline = top + px(23)
    indent = _mark(canvas, page, card, left, baseline)
    canvas.text(left + indent, baseline, card.caption, px(BODY), color=INK, width=width - indent)
    if card.caption or card.correct is not None:
        baseline += px(22)
    canvas.text(left + indent, baseline, card.detail, px(SMALL), color=MUTED, width=width - indent)


def _caption_beside(canvas: Canvas, page: Page, card: Card, left: int, top: int, plan: _Plan) -> None:
    px = page.px
    width = plan.text_width - px(14)
    lines = max(2, (plan.tile_height + px(4)) // px(22))
    baseline = top + px(16)
    indent = _mark(canvas, page, card, left, baseline)
    detail = wrap(clean(card.detail), px(SMALL), width - indent, max(1, lines // 2))
    caption = wrap(clean(card.caption), px(BODY), width - indent, max(1, lines - len(detail)))
    for text, size, color in [(t, BODY, INK) for t in caption] + [(t, SMALL, MUTED) for t in detail]:
        canvas.text(left + indent, baseline, text, px(size), color=color, width=width - indent)
        baseline += px(22)


def _mark(canvas: Canvas, page: Page, card: Card, left: int, baseline: int) -> int:
    """Draws the tick or the cross; returns how far the text moves to the right."""
    if card.correct is None:
        return 0
    size = page.px(17)
    canvas.paste(_marker(card.correct, size), left, baseline - page.px(14.5))
    return size + page.px(7)


@lru_cache(maxsize=16)
def _marker(correct: bool, size: int) -> Image.Image:
    """A tick in a full disc or a cross in a ring, RGBA: told apart by shape as well as by colour."""
    fine = size * 8
    picture = Image.new("RGBA", (fine, fine), (*(_RIGHT if correct else _WRONG), 0))
    draw = ImageDraw.Draw(picture)

    def stroke(*corners: tuple[float, float], color: Color) -> None:
        path = [(x * fine, y * fine) for x, y in corners]
        draw.line(path, fill=(*color, 255), width=fine // 9, joint="curve")

    edge = (0, 0, fine - 1, fine - 1)
    if correct:
        draw.ellipse(edge, fill=(*_RIGHT, 255))
        stroke((0.25, 0.52), (0.43, 0.69), (0.75, 0.33), color=(255, 255, 255))
    else:
        draw.ellipse(edge, outline=(*_WRONG, 255), width=fine // 9)
        stroke((0.32, 0.32), (0.68, 0.68), color=_WRONG)
        stroke((0.68, 0.32), (0.32, 0.68), color=_WRONG)
    return picture.resize((size, size), Image.Resampling.BOX)
