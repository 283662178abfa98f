"""A sheet of cards: one probe image each with its pictures in a row and a caption below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import BODY, INK, MUTED, SMALL, Canvas, Color, ColorBar, Page
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.text import clean, measure, wrap
from lit_viz.errors import UsageError

_RIGHT: Color = (0, 130, 103)
_WRONG: Color = (200, 76, 0)
_GAP, _CARD_GAP, _ROW_GAP, _TIGHT_GAP = 8, 28, 24, 14
_LARGEST_TILE = 520
# Widths of captions at the side; most lines of one below, in all and of its detail.
_SIDE_TEXT = (200, 250, 330)
_BELOW = (4, 2)
_LINE, _MARK = 22, 17


@dataclass(frozen=True)
class Card:
    """One probe image with what is to be seen beside it.

    Attributes:
        images: uint8 (H, W), (H, W, 1) or (H, W, 3), left to right, one per column of the sheet; sizes may
            differ.
        caption: Below the pictures, or at the side where that leaves more room for them; for instance
            "coffee  p = 0.93". Two blanks in a row are the best place to break.
        detail: A second, muted text. " · " is the best place to break; what comes first is cut last.
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
    card_width: int
    gap: int


@dataclass(frozen=True)
class _Lengths:
    """How long the texts of a card are, px: the parts of its caption, the items of its detail."""

    indent: int
    caption: tuple[float, ...]
    detail: tuple[float, ...]


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
    page = Page(title, subtitle, colorbar, max_size)
    pictures, plan, sizes = _laid_out(page, cards, columns)
    px, heading = page.px, _heading(page, columns)
    offsets = _offsets(page, columns, max(len(columns), *map(len, pictures)), plan.tile_width)
    if plan.text_width:
        text_left, text_width = offsets[-1] + px(6), plan.text_width - px(14)
    else:
        text_left, text_width = 0, plan.card_width
    most = _most_lines(page, plan.tile_height) if plan.text_width else _BELOW
    texts = [_text_lines(page, card, text_width, most) for card in cards]
    tops, y = [], heading
    for i in range(0, len(cards), plan.columns):
        row = range(i, min(i + plan.columns, len(cards)))
        tile, text = max(sizes[j][0] for j in row), px(_LINE) * max(len(texts[j][0]) + len(texts[j][1]) for j in row)
        tops.append((y, tile))
        y += _row_height(page, tile, text, bool(plan.text_width)) + plan.gap
    bottom = y - plan.gap + (px(8) if plan.text_width else 0)
    canvas = Canvas(plan.columns * (plan.card_width + px(_CARD_GAP)) - px(_CARD_GAP), bottom)
    for i, (card, row) in enumerate(zip(cards, pictures, strict=True)):
        line, column = divmod(i, plan.columns)
        left, (top, tile) = column * (plan.card_width + px(_CARD_GAP)), tops[line]
        for j, pixels in enumerate(row):
            x = left + offsets[j]
            if line == 0 and j < len(columns):
                room = offsets[j + 1] - offsets[j] - px(4)
                canvas.text(x, px(14), columns[j], px(SMALL), color=MUTED, width=room)
            canvas.paste(resized(pixels, *_shown(pixels, sizes[i], plan)), x, top)
        _caption(canvas, page, card, texts[i], left + text_left, top if plan.text_width else top + tile + px(8))
    return page.finish(canvas.image)


def tile_sizes(
    cards: Sequence[Card],
    *,
    columns: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    colorbar: ColorBar | None = None,
    max_size: int = 1000,
) -> list[tuple[int, int]]:
    """The (height, width) at which `sheet` will show the pictures of each card, from the same arguments.

    Only the shapes of the pictures matter. For maps that are to be coloured as they will be shown.
    """
    return _laid_out(Page(title, subtitle, colorbar, max_size), cards, columns)[2]


def _heading(page: Page, columns: Sequence[str]) -> int:
    return page.px(26) if any(columns) else 0


def _laid_out(
    page: Page, cards: Sequence[Card], columns: Sequence[str]
) -> tuple[list[list[NDArray[np.uint8]]], _Plan, list[tuple[int, int]]]:
    """The checked pictures, how cards lie, and the sizes of pictures in each card."""
    if not cards:
        raise UsageError("A sheet needs at least one card.")
    pictures = [[as_rgb(image) for image in card.images] for card in cards]
    across = max(len(row) for row in pictures)
    if not across or not all(pictures):
        raise UsageError("Every card needs at least one image.")
    if columns and len(columns) < across:
        raise UsageError(f"The sheet has {len(columns)} column headings, but a card with {across} images.")
    # The largest picture of a card sets how it is shown; the others, often coarser maps, follow.
    shapes = [max((p.shape[:2] for p in row), key=lambda s: s[0] * s[1]) for row in pictures]
    plan = _plan(page, cards, shapes, max(across, len(columns)), columns, _heading(page, columns))
    return pictures, plan, [fitted_size(*shape, plan.tile_height, plan.tile_width) for shape in shapes]


def _plan(
    page: Page,
    cards: Sequence[Card],
    shapes: Sequence[tuple[int, int]],
    across: int,
    headings: Sequence[str],
    heading: int,
) -> _Plan:
    """Tries all numbers of columns, captions below or beside; takes what makes pictures large and cuts no text."""
    px, (width, height) = page.px, page.room
    lengths = [_lengths(page, card) for card in cards]
    styles = [0] + [px(w) for w in _SIDE_TEXT] * any(n.caption or n.detail or n.indent for n in lengths)
    # All on one line, or a long detail broken between its items.
    wanted = max(
        n.indent + max((sum(n.caption), min(sum(n.detail), px(380)), *n.detail)) + px(16) * len(n.detail)
        for n in lengths
    )
    best: tuple[float, _Plan] | None = None
    for side in styles:
        gap = px(_TIGHT_GAP if side else _ROW_GAP)
        for columns in range(1, len(shapes) + 1):
            rows = -(-len(shapes) // columns)
            cell = (width - (columns - 1) * px(_CARD_GAP)) // columns
            box_width = min((cell - side - (across - 1) * px(_GAP)) // across, px(_LARGEST_TILE))
            if box_width < px(16) and best is not None:
                break
            text = side - px(14) if side else int(min(cell, max(wanted, px(160))))
            below = [] if side else [_estimate(page, n, text, _BELOW)[0] for n in lengths]
            captions = sum(max(below[i : i + columns]) + px(8) for i in range(0, len(below), columns))
            box_height = min((height - heading - captions + gap) // rows - gap, px(_LARGEST_TILE))
            if box_height < px(16) and best is not None:
                continue
            box_width, box_height = max(box_width, px(16)), max(box_height, px(16))
            sizes = [fitted_size(*shape, box_height, box_width) for shape in shapes]
            tile_height, tile_width = max(h for h, _ in sizes), max(w for _, w in sizes)
            most = _most_lines(page, tile_height) if side else _BELOW
            estimates = [_estimate(page, n, text, most) for n in lengths]
            tiles = _offsets(page, headings, across, tile_width)[-1] - px(_GAP)
            card = tiles + side if side else min(max(cell, tiles), max(tiles, text))
            body_width = columns * (card + px(_CARD_GAP)) - px(_CARD_GAP)
            texts = [max(h for h, _ in estimates[i : i + columns]) for i in range(0, len(estimates), columns)]
            body_height = heading - gap + sum(_row_height(page, tile_height, h, bool(side)) + gap for h in texts)
            shape = max(px(720), body_width + px(80)) / (body_height + px(150))
            score = float(np.mean([h * w for h, w in sizes])) ** 0.5 * min(1.0, shape / 0.85, 2.4 / shape)
            # An empty place in the last row is a small blemish, and captions read best below.
            score *= (1 - 0.04 * (columns * rows - len(shapes)) / columns) * (0.9 if side else 1.0)
            score *= 1 - 0.6 * float(np.mean([cut for _, cut in estimates]))
            # What is too large makes the whole page shrink.
            score *= min(1.0, width / body_width, height / body_height) ** 2
            if best is None or score > best[0] + 1e-9:
                best = score, _Plan(columns, tile_height, tile_width, side, card, gap)
    assert best is not None
    return _narrowed(page, best[1], lengths, _offsets(page, headings, across, best[1].tile_width)[-1] - px(_GAP))


def _narrowed(page: Page, plan: _Plan, lengths: Sequence[_Lengths], tiles: int) -> _Plan:
    """Cards with captions below no wider than their pictures, where that costs no line."""

    def cost(width: int) -> tuple[int, float]:
        texts = [_estimate(page, n, width, _BELOW) for n in lengths]
        rows = range(0, len(texts), plan.columns)
        return sum(max(h for h, _ in texts[i : i + plan.columns]) for i in rows), sum(cut for _, cut in texts)

    if plan.text_width or plan.card_width <= tiles:
        return plan
    lines, cut = cost(plan.card_width)
    for width in np.linspace(tiles, plan.card_width, 8).astype(int).tolist():
        found = cost(width)
        if found[0] <= lines and found[1] <= cut:
            return replace(plan, card_width=width)
    return plan


def _offsets(page: Page, headings: Sequence[str], across: int, tile_width: int) -> list[int]:
    """Where the pictures of a card start, and where another one would; headings have room, too."""
    out = [0]
    for i in range(across):
        name = measure(clean(headings[i]), page.px(SMALL)) + page.px(8) if i < len(headings) else 0
        out.append(out[-1] + int(max(tile_width, min(name, page.px(120)))) + page.px(_GAP))
    return out


def _lengths(page: Page, card: Card) -> _Lengths:
    indent = 0 if card.correct is None else page.px(_MARK + 7)
    caption = [measure(part, page.px(BODY)) for part in clean(card.caption).split("  ") if part]
    detail = [measure(item, page.px(SMALL)) for item in clean(card.detail).split(" · ") if item]
    return _Lengths(indent, tuple(caption), tuple(detail))


def _most_lines(page: Page, tile_height: int) -> tuple[int, int]:
    """Beside the pictures, where a caption has at least a line for itself and one for the detail."""
    most = max(2, (tile_height + page.px(8)) // page.px(_LINE))
    return most, most


def _row_height(page: Page, tile: int, text: int, beside: bool) -> int:
    if beside:
        return max(tile, text - page.px(8))  # the last line may reach into the gap
    return tile + (text + page.px(8) if text else 0)


def _estimate(page: Page, text: _Lengths, width: float, most: tuple[int, int]) -> tuple[int, float]:
    """About how high the text of a card will be, px, and how bad it is that some of it is cut, in [0, 1]."""
    room = max(1.0, width - text.indent - 1)

    def lines(lengths: Sequence[float]) -> int:
        return sum(1 if n <= room else int(np.ceil(n / (0.75 * room))) for n in lengths)

    caption = 0 if not text.caption else 1 if sum(text.caption) + page.px(12) <= room else lines(text.caption)
    used, rest, separator = 0, 0.0, page.px(16)
    for length in text.detail:
        if used and length + separator <= rest:
            rest -= length + separator
        else:
            used += lines([length])
            rest = room - length
    caption = max(caption, int(text.indent > 0))
    allowed = min(2, most[0] - 1 if text.detail else most[0])
    for_detail = min(most[1], most[0] - min(caption, allowed))
    first = lines(text.detail[:1])
    cut = 1.0 if caption > allowed or first > for_detail else 0.3 * (used > for_detail)
    return page.px(_LINE) * (min(caption, allowed) + min(used, for_detail)), cut


def _text_lines(page: Page, card: Card, width: int, most: tuple[int, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lines of caption and detail that are shown."""
    px, detail = page.px, clean(card.detail)
    width -= 0 if card.correct is None else px(_MARK + 7)
    caption = wrap(clean(card.caption), px(BODY), width, min(2, most[0] - 1 if detail else most[0]))
    if not caption and card.correct is not None:
        caption = ("",)
    return caption, wrap(detail, px(SMALL), width, min(most[1], most[0] - len(caption)))


def _shown(pixels: NDArray[np.uint8], card: tuple[int, int], plan: _Plan) -> tuple[int, int]:
    """The size (height, width) of one picture: that of its card, unless its shape is another."""
    height, width = pixels.shape[:2]
    if abs(np.log((height / width) / (card[0] / card[1]))) > 0.05:
        return fitted_size(height, width, plan.tile_height, plan.tile_width)
    return card


def _caption(
    canvas: Canvas, page: Page, card: Card, lines: tuple[tuple[str, ...], tuple[str, ...]], left: int, top: int
) -> None:
    px, baseline = page.px, top + page.px(16)
    indent = _mark(canvas, page, card, left, baseline)
    for texts, size, color in ((lines[0], BODY, INK), (lines[1], SMALL, MUTED)):
        for text in texts:
            canvas.text(left + indent, baseline, text, px(size), color=color)
            baseline += px(_LINE)


def _mark(canvas: Canvas, page: Page, card: Card, left: int, baseline: int) -> int:
    """Draws the tick or the cross; returns how far the text moves to the right."""
    if card.correct is None:
        return 0
    size = page.px(_MARK)
    canvas.paste(marker(card.correct, size), left, baseline - page.px(14.5))
    return size + page.px(7)


@lru_cache(maxsize=16)
def marker(correct: bool, size: int) -> Image.Image:
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
