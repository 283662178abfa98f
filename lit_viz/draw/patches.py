"""Rows of image patches, one row per unit: what excites it most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_viz.draw.arrays import as_rgb
from lit_viz.draw.canvas import BODY, INK, MUTED, SHADE, SMALL, Canvas, Page
from lit_viz.draw.images import fitted_size, masked, resized
from lit_viz.draw.text import aligned, clean, measure, number, scaled, wrap
from lit_viz.errors import UsageError

_GAP, _BLOCK_GAP, _ROW_GAP = 6, 36, 14
_BENEATH = 2  # between a patch and the picture beneath it
_LARGEST_FRAME = 200
_VALUE_SIZES = (SMALL, 14)
# Larger patches are photographs, and smaller ones are pixels to be counted.
_SMALL_PATCH = 32


@dataclass(frozen=True)
class PatchRow:
    """One row of patches.

    Attributes:
        label: Name of the unit, for instance "ch 17".
        patches: uint8 (h, w, 3) each, best first; as an array (k, h, w, 3) or a sequence of any sizes. May be
            empty.
        values: One number or ready text per patch, shown below it. May be empty. Numbers of a row get equally many
            decimals and, where they are tiny or huge, a power of ten beside the row. Where frames are too narrow for
            numbers, the first and the last one stand beside the row instead.
        inside: One boolean (h, w) mask per patch, False where the patch reaches over the edge of its image;
            that part is hatched. None means that all is inside.
        detail: A muted line below the label.
        beneath: One further picture for each patch, (h, w, 3) as the patch, shown directly beneath it with the same
            mask. None for none.
        beneath_label: A muted name beside these.
    """

    label: str
    patches: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    values: Sequence[float | str] = ()
    inside: Sequence[NDArray[np.bool_]] | NDArray[np.bool_] | None = None
    detail: str = ""
    beneath: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | None = None
    beneath_label: str = ""


@dataclass(frozen=True)
class _Plan:
    """How the rows lie; px. `size` is that of the values, 0 where none are written below the patches."""

    blocks: int
    label: int
    frame_height: int
    frame_width: int
    size: int
    texts: list[list[str]]
    notes: list[str]


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
        counts |= {len(further) for further in (row.inside, row.beneath) if further is not None}
        if len(counts) > 1:
            raise UsageError(
                f"Row {row.label!r} differs in its numbers of patches, values, masks and further pictures."
            )
    pictures = [[as_rgb(patch) for patch in row.patches] for row in rows]
    across = max(1, max(len(row) for row in pictures))
    shapes = [patch.shape[:2] for row in pictures for patch in row] or [(1, 1)]

    page = Page(title, subtitle, None, max_size)
    px = page.px
    plan = _plan(page, rows, across, shapes)
    label, frame_height, frame_width = plan.label, plan.frame_height, plan.frame_width
    deep = -(-len(rows) // plan.blocks)
    block_width = label + across * frame_width + (across - 1) * px(_GAP)
    pitch = frame_height + px(_BENEATH)
    deepest = pitch * (_storeys(rows) - 1) + frame_height
    row_height = deepest + (px(22) if plan.size else 0) + px(_ROW_GAP)
    canvas = Canvas(plan.blocks * (block_width + px(_BLOCK_GAP)) - px(_BLOCK_GAP), deep * row_height - px(_ROW_GAP))
    for i, (row, patches) in enumerate(zip(rows, pictures, strict=True)):
        left, top = (i // deep) * (block_width + px(_BLOCK_GAP)), (i % deep) * row_height
        notes = wrap(_detail(row, plan.notes[i]), px(SMALL), label - px(8), 2)
        notes = notes[: max(1, (frame_height + px(_ROW_GAP)) // px(20) - 1)]
        baseline = top + max(px(15), frame_height // 2 + px(6) - px(10) * len(notes))
        canvas.text(left, baseline, row.label, px(BODY), color=INK, width=label - px(8))
        for note in notes:
            baseline += px(20)
            canvas.text(left, baseline, note, px(SMALL), color=MUTED, width=label - px(8))
        if row.beneath is not None:
            middle = top + pitch + frame_height // 2 + px(6)
            canvas.text(left, middle, row.beneath_label, px(SMALL), color=MUTED, width=label - px(8))
        for j, patch in enumerate(patches):
            x = left + label + j * (frame_width + px(_GAP))
            height, width = fitted_size(*patch.shape[:2], frame_height, frame_width, small=_SMALL_PATCH)
            stacked = [patch] if row.beneath is None else [patch, as_rgb(row.beneath[j])]
            for y, pixels in zip((top, top + pitch), stacked, strict=False):
                if (height, width) != (frame_height, frame_width):
                    canvas.fill(x, y, frame_width, frame_height, SHADE)
                picture = _pictured(row, j, pixels, height, width)
                canvas.paste(picture, x + (frame_width - width) // 2, y + (frame_height - height) // 2)
            if plan.size and plan.texts[i]:
                canvas.text(
                    x + frame_width / 2,
                    top + deepest + px(17),
                    plan.texts[i][j],
                    plan.size,
                    color=MUTED,
                    width=frame_width + px(_GAP - 1),
                    align="center",
                )
    return page.finish(canvas.image)


def _pictured(row: PatchRow, index: int, patch: NDArray[np.uint8], height: int, width: int) -> Image.Image:
    """A patch at its size, hatched where it lies outside its image."""
    if row.inside is None:
        return resized(patch, height, width, small=_SMALL_PATCH)
    mask = np.asarray(row.inside[index], dtype=bool)
    if mask.shape != patch.shape[:2]:
        raise UsageError(f"Row {row.label!r}: the mask {mask.shape} differs from its patch {patch.shape[:2]}.")
    if mask.any() and not mask.all():
        # What lies outside must not be mixed into the edge.
        for axis in (0, 1):
            seen = np.flatnonzero(mask.any(axis=1 - axis))
            patch = patch.take(np.arange(mask.shape[axis]).clip(seen[0], seen[-1]), axis=axis)
    return masked(resized(patch, height, width, small=_SMALL_PATCH), mask)


def _plan(page: Page, rows: Sequence[PatchRow], across: int, shapes: Sequence[tuple[int, int]]) -> _Plan:
    """Values below the patches in the largest type that they fit in; if none is, their range beside the row."""
    empty = [""] * len(rows)
    for size in [page.px(s) for s in _VALUE_SIZES] * any(len(row.values) for row in rows):
        notes = empty
        # Powers of ten stand beside the rows, which makes frames narrower.
        for _ in range(3):
            label = _label_width(page, rows, notes)
            blocks, height, width = _frames(page, rows, across, label, page.px(22), shapes)
            found = [_values(row, size, width - page.px(1)) for row in rows]
            if any(texts is None for texts, _ in found):
                break
            if [note for _, note in found] == notes:
                return _Plan(blocks, label, height, width, size, [texts or [] for texts, _ in found], notes)
            notes = [note for _, note in found]
    notes = [_range(row) for row in rows]
    label = _label_width(page, rows, notes)
    blocks, height, width = _frames(page, rows, across, label, 0, shapes)
    return _Plan(blocks, label, height, width, 0, [[] for _ in rows], notes)


def _storeys(rows: Sequence[PatchRow]) -> int:
    """How many pictures stand one above the other."""
    return 1 + any(row.beneath is not None for row in rows)


def _detail(row: PatchRow, note: str) -> str:
    return " · ".join(text for text in (clean(row.detail), note) if text)


def _label_width(page: Page, rows: Sequence[PatchRow], notes: Sequence[str]) -> int:
    px = page.px
    texts = [(row.label, BODY) for row in rows] + [(row.detail, SMALL) for row in rows] + [(n, SMALL) for n in notes]
    texts += [(row.beneath_label, SMALL) for row in rows]
    longest = max(measure(clean(text), px(size)) for text, size in texts)
    return min(int(longest) + px(14), px(170)) if longest else 0


def _values(row: PatchRow, size: int, width: int) -> tuple[list[str] | None, str]:
    """The values of a row as text and the power of ten they share; None where they are too long."""
    if any(isinstance(value, str) for value in row.values):
        return [str(value) for value in row.values], ""
    numbers = [float(value) for value in row.values]
    largest = max((abs(v) for v in numbers if np.isfinite(v)), default=0.0)
    plain = [(aligned(numbers, digits), "") for digits in (3, 2)] if not largest or 1e-2 <= largest < 1e5 else []
    for texts, power in [*plain, scaled(numbers, 3), scaled(numbers, 2)]:
        if all(measure(text, size) <= width for text in texts):
            return texts, power
    return None, ""


def _range(row: PatchRow) -> str:
    if not len(row.values):
        return ""
    if any(isinstance(value, str) for value in row.values):
        return str(row.values[0])
    known = [float(value) for value in row.values if not np.isnan(value)]
    if not known:
        return "NaN"
    low, high = number(min(known)), number(max(known))
    return (high if low == high else f"{high} to {low}") + (", NaN" if len(known) < len(row.values) else "")


def _frames(
    page: Page, rows: Sequence[PatchRow], across: int, label: int, caption: int, shapes: Sequence[tuple[int, int]]
) -> tuple[int, int, int]:
    """The number of blocks and the frame (height, width) that make the patches largest."""
    px, (room_width, room_height) = page.px, page.room
    count, storeys = len(rows), _storeys(rows)
    best = (-1.0, 1, 1, 1)
    for blocks in range(1, min(4, count) + 1):
        deep = -(-count // blocks)
        width = (room_width - (blocks - 1) * px(_BLOCK_GAP)) // blocks - label - (across - 1) * px(_GAP)
        box_width = max(px(12), min(width // across, px(_LARGEST_FRAME)))
        box_height = (room_height + px(_ROW_GAP)) // deep - px(_ROW_GAP) - caption
        box_height = (box_height - (storeys - 1) * px(_BENEATH)) // storeys
        box_height = max(px(12), min(box_height, px(_LARGEST_FRAME)))
        sizes = [fitted_size(*shape, box_height, box_width, small=_SMALL_PATCH) for shape in shapes]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        # One block reads more easily, so that more must pay.
        score = (height * width) ** 0.5 * 0.97**blocks
        if score > best[0]:
            best = (score, blocks, height, width)
    return best[1:]
