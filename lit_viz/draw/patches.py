"""Rows of image patches, one row per unit: what excites it most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import BODY, INK, MUTED, SHADE, SMALL, Canvas, Page
from lit_viz.draw.images import fitted_size, masked, resized
from lit_viz.draw.text import aligned, clean, measure
from lit_viz.errors import UsageError

_GAP, _BLOCK_GAP, _ROW_GAP = 6, 36, 14
_LARGEST_FRAME = 200
# Larger patches are photographs, and smaller ones are pixels to be counted.
_SMALL_PATCH = 32


@dataclass(frozen=True)
class PatchRow:
    """One row of patches.

    Attributes:
        label: Name of the unit, for instance "ch 17".
        patches: uint8 (h, w, 3) each, best first; as an array (k, h, w, 3) or a sequence of any sizes. May be
            empty.
        values: One number or ready text per patch, shown below it. May be empty.
        inside: One boolean (h, w) mask per patch, False where the patch reaches over the edge of its image;
            that part is hatched. None means that all is inside.
        detail: A muted line below the label.
    """

    label: str
    patches: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    values: Sequence[float | str] = ()
    inside: Sequence[NDArray[np.bool_]] | NDArray[np.bool_] | None = None
    detail: str = ""


def patch_sheet(
    rows: Sequence[PatchRow], *, title: str = "", subtitle: str = "", max_size: int = 1000
) -> NDArray[np.uint8]:
    """Lays out rows of patches in frames of one size, in one or more blocks side by side.

    Args:
        rows: At least one; made for 4 to 16 rows of about 9 patches.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    if not rows:
        raise UsageError("A patch sheet needs at least one row.")
    for row in rows:
        counts = {len(row.patches)} | ({len(row.values)} if len(row.values) else set())
        counts |= {len(row.inside)} if row.inside is not None else set()
        if len(counts) > 1:
            raise UsageError(f"Row {row.label!r} differs in its numbers of patches, values and masks.")
    pictures = [[as_rgb(patch) for patch in row.patches] for row in rows]
    across = max(1, max(len(row) for row in pictures))
    shapes = [patch.shape[:2] for row in pictures for patch in row] or [(1, 1)]

    page = Page(title, subtitle, None, max_size)
    px = page.px
    longest = max(max(measure(clean(r.label), px(BODY)), measure(clean(r.detail), px(SMALL))) for r in rows)
    label = min(int(longest) + px(14), px(170)) if longest else 0
    caption = px(22) if any(len(r.values) for r in rows) else 0
    blocks, frame_height, frame_width = _plan(page, len(rows), across, label, caption, shapes)
    deep = -(-len(rows) // blocks)
    block_width = label + across * frame_width + (across - 1) * px(_GAP)
    row_height = frame_height + caption + px(_ROW_GAP)
    canvas = Canvas(blocks * block_width + (blocks - 1) * px(_BLOCK_GAP), deep * row_height - px(_ROW_GAP))
    for i, (row, patches) in enumerate(zip(rows, pictures, strict=True)):
        left, top = (i // deep) * (block_width + px(_BLOCK_GAP)), (i % deep) * row_height
        middle = top + frame_height // 2 + px(6) - (px(10) if row.detail else 0)
        canvas.text(left, middle, row.label, px(BODY), color=INK, width=label - px(8))
        canvas.text(left, middle + px(21), row.detail, px(SMALL), color=MUTED, width=label - px(8))
        values = _value_texts(row, px(SMALL), frame_width)
        for j, patch in enumerate(patches):
            x = left + label + j * (frame_width + px(_GAP))
            height, width = fitted_size(*patch.shape[:2], frame_height, frame_width, small=_SMALL_PATCH)
            picture = resized(patch, height, width, small=_SMALL_PATCH)
            if row.inside is not None:
                mask = np.asarray(row.inside[j], dtype=bool)
                if mask.shape != patch.shape[:2]:
                    raise UsageError(
                        f"Row {row.label!r}: the mask {mask.shape} differs from its patch {patch.shape[:2]}."
                    )
                picture = masked(picture, mask)
            if (height, width) != (frame_height, frame_width):
                canvas.fill(x, top, frame_width, frame_height, SHADE)
            canvas.paste(picture, x + (frame_width - width) // 2, top + (frame_height - height) // 2)
            if values:
                center, baseline = x + frame_width / 2, top + frame_height + px(17)
                canvas.text(
                    center,
                    baseline,
                    values[j],
                    px(SMALL),
                    color=MUTED,
                    width=frame_width + px(4),
                    align="center",
                )
    return page.finish(canvas.image)


def _value_texts(row: PatchRow, size: int, width: int) -> list[str]:
    """The values of a row as text, with fewer digits where frames are narrow."""
    if any(isinstance(value, str) for value in row.values):
        return [str(value) for value in row.values]
    numbers = [float(value) for value in row.values]
    texts = aligned(numbers)
    return texts if all(measure(t, size) <= width for t in texts) else aligned(numbers, digits=2)


def _plan(
    page: Page, count: int, across: int, label: int, caption: int, shapes: Sequence[tuple[int, int]]
) -> tuple[int, int, int]:
    """The number of blocks and the frame (height, width) that make the patches largest."""
    px, (room_width, room_height) = page.px, page.room
    best = (-1.0, 1, 1, 1)
    for blocks in range(1, min(4, count) + 1):
        deep = -(-count // blocks)
        width = (room_width - (blocks - 1) * px(_BLOCK_GAP)) // blocks - label - (across - 1) * px(_GAP)
        box_width = max(px(12), min(width // across, px(_LARGEST_FRAME)))
        box_height = (room_height + px(_ROW_GAP)) // deep - px(_ROW_GAP) - caption
        box_height = max(px(12), min(box_height, px(_LARGEST_FRAME)))
        sizes = [fitted_size(*shape, box_height, box_width, small=_SMALL_PATCH) for shape in shapes]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        # One block reads more easily, so that more must pay.
        score = (height * width) ** 0.5 * 0.97**blocks
        if score > best[0]:
            best = (score, blocks, height, width)
    return best[1:]
