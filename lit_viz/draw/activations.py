"""Activation maps of a layer: for each image a block, the image beside a grid of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import BODY, INK, MUTED, RULE, SMALL, Canvas, ColorBar, Page
from lit_viz.draw.colormaps import colorize
from lit_viz.draw.images import fitted_size, resize_map, resized
from lit_viz.draw.text import clean, measure, number
from lit_viz.errors import UsageError

_LABEL, _LABEL_ROOM = 13, 17
_GAP, _BLOCK_GAP, _ROW_GAP, _BESIDE = 6, 36, 26, 14
_LEAST_TILE, _LARGEST_TILE, _LEAST_IMAGE, _LARGEST_IMAGE = 28, 180, 96, 260
_LINE = 24
_IN_SQUARES = 16  # px; maps up to this side are enlarged by whole factors


@dataclass(frozen=True)
class MapBlock:
    """One image and what the channels of a layer make of it.

    Attributes:
        image: uint8 (H, W), (H, W, 1) or (H, W, 3).
        maps: (n, h, w), the channels to show, in their order; NaN is hatched.
        labels: A short text above each map, the number of its channel.
        caption: Below the image.
        detail: A muted line below the maps.
    """

    image: NDArray[np.uint8]
    maps: NDArray[np.float64]
    labels: Sequence[str]
    caption: str = ""
    detail: str = ""


@dataclass(frozen=True)
class _Plan:
    """How the blocks lie; px. Blocks in `across` columns, in each of them maps in `columns`, and `rows` of those."""

    across: int
    columns: int
    rows: int
    tile: tuple[int, int]
    image: tuple[int, int]


def activation_sheet(
    blocks: Sequence[MapBlock],
    *,
    signed: bool,
    scale: str = "each",
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Lays out blocks of activation maps.

    Maps without negative values are grey, from 0 (black); signed ones run from blue over white (0) to red. Where not
    all channels fit, the first ones of each block are shown, and a line under the title says so.

    Args:
        blocks: At least one, with equally many maps of one size; made for up to 8.
        signed: Whether there are negative values.
        scale: `each` stretches every map to its own largest magnitude. `layer` gives all maps one scale, up to the
            magnitude that one value in a thousand exceeds, which the colour bar says.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3). Maps up to 40 px are enlarged in squares.
    """
    shapes = {np.shape(block.maps) for block in blocks}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3 or 0 in next(iter(shapes)):
        raise UsageError(f"Blocks need equally many maps (n, h, w), at least one; got {sorted(map(str, shapes))}.")
    if any(len(block.labels) != len(block.maps) for block in blocks):
        raise UsageError("Every map needs a label.")
    count, height, width = next(iter(shapes))
    images = [as_rgb(block.image) for block in blocks]
    cmap = "diverging" if signed else "gray"

    def page(shown: int, bound: float | None) -> Page:
        note = f"Shown: the first {shown}." if shown < count else ""
        link = " " if subtitle.rstrip().endswith((".", "!", "?")) else " · "
        end = "max" if bound is None else number(bound)
        bar = ColorBar(cmap, "−" + end if signed else "0", end, "activation")
        return Page(title, link.join(text for text in (subtitle, note) if text), bar, max_size)

    draft = page(1000, None)  # a note can cost a line
    plan = _plan(draft, blocks, [image.shape[:2] for image in images], (height, width))
    shown = min(count, plan.columns * plan.rows)
    maps = [np.stack([_at(values, plan.tile) for values in block.maps[:shown]]) for block in blocks]
    bound = None
    if scale == "layer":
        known = np.abs(np.concatenate([m[np.isfinite(m)] for m in maps]))
        bound = float(np.percentile(known, 99.9)) or float(known.max()) if known.size else 1.0
    final = page(shown, bound)
    return final.finish(_body(final, blocks, images, maps, plan, cmap, bound).image)


def _at(values: NDArray[np.float64], tile: tuple[int, int]) -> NDArray[np.float64]:
    """A map as it will be coloured: reduced to its tile by averaging, but left to be enlarged as a picture."""
    finite = np.where(np.isfinite(values), values, np.nan)
    return resize_map(finite, *tile, method="bilinear") if values.shape[0] > tile[0] else finite


def _body(
    page: Page,
    blocks: Sequence[MapBlock],
    images: Sequence[NDArray[np.uint8]],
    maps: Sequence[NDArray[np.float64]],
    plan: _Plan,
    cmap: str,
    bound: float | None,
) -> Canvas:
    px = page.px
    block_width, block_height = _block_size(page, blocks, plan)
    down = -(-len(blocks) // plan.across)
    canvas = Canvas(
        plan.across * (block_width + px(_BLOCK_GAP)) - px(_BLOCK_GAP),
        down * (block_height + px(_ROW_GAP)) - px(_ROW_GAP),
    )
    pitch = plan.tile[1] + px(_GAP), plan.tile[0] + px(_LABEL_ROOM) + px(_GAP)
    for i, (block, image, values) in enumerate(zip(blocks, images, maps, strict=True)):
        left = (i % plan.across) * (block_width + px(_BLOCK_GAP))
        top = (i // plan.across) * (block_height + px(_ROW_GAP))
        size = fitted_size(*image.shape[:2], *plan.image)
        canvas.paste(resized(image, *size), left, top + px(_LABEL_ROOM))
        under = top + px(_LABEL_ROOM) + size[0] + px(_LINE)
        canvas.text(left, under, block.caption, px(BODY), color=INK, width=plan.image[1] + px(_BESIDE - 2))
        beside = left + plan.image[1] + px(_BESIDE)
        room = canvas.width - beside
        canvas.text(beside, top + plan.rows * pitch[1] + px(14), block.detail, px(SMALL), color=MUTED, width=room)
        for j, heat in enumerate(values):
            x = beside + (j % plan.columns) * pitch[0]
            y = top + (j // plan.columns) * pitch[1]
            high = bound if bound is not None else float(np.nanmax(np.abs(heat), initial=0.0))
            colors = colorize(heat, cmap=cmap, low=-high if cmap == "diverging" else 0.0, high=high)
            canvas.text(x, y + px(_LABEL), block.labels[j], px(_LABEL), color=MUTED, width=pitch[0])
            canvas.paste(resized(colors, *plan.tile), x, y + px(_LABEL_ROOM))
            if cmap == "diverging":
                canvas.frame(x, y + px(_LABEL_ROOM), plan.tile[1], plan.tile[0], RULE)
    return canvas


def _texts(page: Page, blocks: Sequence[MapBlock]) -> tuple[int, int]:
    """Room for captions below the images, and for details below the maps."""
    caption, detail = (any(clean(getattr(block, text)) for block in blocks) for text in ("caption", "detail"))
    return page.px(_LINE + 5) * caption, page.px(_LINE) * detail


def _block_size(page: Page, blocks: Sequence[MapBlock], plan: _Plan) -> tuple[int, int]:
    px, (caption, detail) = page.px, _texts(page, blocks)
    grid = plan.rows * (plan.tile[0] + px(_LABEL_ROOM) + px(_GAP)) - px(_GAP) + detail
    width = plan.image[1] + px(_BESIDE) + plan.columns * (plan.tile[1] + px(_GAP)) - px(_GAP)
    return width, max(grid, px(_LABEL_ROOM) + plan.image[0] + caption)


def _plan(page: Page, blocks: Sequence[MapBlock], shapes: Sequence[tuple[int, int]], size: tuple[int, int]) -> _Plan:
    """Tries columns of blocks and of maps, and sizes of the image."""
    px, (room_width, room_height) = page.px, page.room
    count = len(blocks[0].maps)
    longest = max(measure(label, px(_LABEL)) for block in blocks for label in block.labels)
    least = max(px(_LEAST_TILE), int(longest) - px(_GAP) + px(4))
    caption, detail = _texts(page, blocks)
    best: tuple[float, _Plan] | None = None
    for across in range(1, min(3, len(blocks)) + 1):
        down = -(-len(blocks) // across)
        width = (room_width - (across - 1) * px(_BLOCK_GAP)) // across
        height = (room_height + px(_ROW_GAP)) // down - px(_ROW_GAP)
        for side in range(px(_LEAST_IMAGE), px(_LARGEST_IMAGE) + 1, px(12)):
            fitted = [fitted_size(*s, max(px(24), min(side, height - caption - px(_LABEL_ROOM))), side) for s in shapes]
            image = max(h for h, _ in fitted), max(side if caption else 0, *(w for _, w in fitted))
            left, deep = width - image[1] - px(_BESIDE) + px(_GAP), height - detail + px(_GAP)
            for columns in range(1, count + 1):
                box = min(left // columns - px(_GAP), px(_LARGEST_TILE))
                if box < least and columns > 1:
                    break
                most = deep // -(-count // columns) - px(_GAP) - px(_LABEL_ROOM)
                tile = fitted_size(*size, max(1, min(box, most)), max(1, box), small=_IN_SQUARES)
                if max(tile) < least:  # not all fit: as many as are legible
                    tile = fitted_size(*size, least, least, small=_IN_SQUARES)
                rows = max(1, min(-(-count // columns), deep // (tile[0] + px(_LABEL_ROOM) + px(_GAP))))
                plan = _Plan(across, columns, rows, tile, image)
                total, shown = _block_size(page, blocks, plan), min(count, rows * columns)
                # All channels, large ones, an image that can be seen as well, and full rows. What is too large makes
                # the whole page shrink.
                score = (shown / count) ** 1.5 * (tile[0] * tile[1]) ** 0.5 * min(2.2, image[0] / tile[0]) ** 0.6
                score *= 0.7 + 0.3 * shown / (rows * columns)
                score *= min(1.0, width / total[0], height / total[1]) ** 2
                if best is None or score > best[0]:
                    best = score, plan
    assert best is not None
    return best[1]
