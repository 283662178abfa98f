"""Image quilting: a texture put together from blocks, along seams where they agree best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor
from tqdm.auto import tqdm

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.interruption import until_interrupted
from lit_viz.functional.texture.source import (
    Size,
    Texture,
    check_size,
    check_tolerance,
    texture_of,
    whole_numbers,
)


def image_quilting(
    source: Tensor,
    *,
    size: Size,
    block: int | None = None,
    overlap: int | None = None,
    tolerance: float = 0.1,
    seed: int = 0,
    progress: bool = False,
    interruptible: bool = True,
) -> Texture:
    r"""Puts a texture together from square blocks of the source, row by row.

    The first block is random. Each following one overlaps those above and to the left of it; of the source's blocks,
    with the squared differences to what is there summed over the overlap, $e$, one with
    $e \le (1 + \mathrm{tolerance})\, e_{\min}$ is drawn. $e_{\min}$ is the smallest error above 0: a block without any
    goes on with the source where its neighbour was cut from it, and taken alone would copy it to its border. New and
    old meet along the path through the overlap on which they differ least, `minimum_error_cut`; nothing is blended, so
    that every pixel is one of the source. From A. A. Efros and W. T. Freeman, *Image Quilting for Texture Synthesis and
    Transfer* (SIGGRAPH 2001).

    Blocks should hold the texture's largest elements: smaller ones break them, larger ones repeat them visibly. Time
    grows with the number of blocks and, hardly more than linearly, with the source's pixels.

    Args:
        source: (C, H, W), colours in [0, 1] or uint8; from 8 px up.
        size: Height and width of the texture, px, or one number for both.
        block: Side of the blocks, px; by default a quarter of the source's shorter side.
        overlap: How far blocks overlap, px; by default a sixth of the block.
        tolerance: How much worse than the best a block may be, as a share.
        seed: Of the drawing.
        progress: Show a progress bar.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The texture, with where its pixels come from.

    Raises:
        UsageError: For a block larger than the source, an overlap that is no part of the block, NaN.

    >>> import torch
    >>> stripes = torch.tensor([0.0, 1.0]).repeat(1, 8, 4)
    >>> image_quilting(stripes, size=(2, 12), block=4, overlap=1).image[0, 0].diff().abs().tolist() == [1.0] * 11
    True
    """
    colors = whole_numbers(source)
    shorter = min(colors.shape[1:])
    if block is None:
        block = max(min(4, shorter), shorter // 4)
    check_at_least("block", block, 2)
    if block > shorter:
        raise UsageError(
            f"blocks of {block} px don't fit into the source of {colors.shape[2]}×{colors.shape[1]} px; take smaller "
            f"ones, for instance of {max(2, shorter // 4)} px."
        )
    if overlap is None:
        overlap = max(1, block // 6)
    check_at_least("overlap", overlap, 1)
    if 2 * overlap > block:
        raise UsageError(f"overlap is at most half of the block, {block // 2} px; got {overlap}.")
    check_tolerance(tolerance)
    height, width = check_size(size, (1, 1), "")
    rows, columns = (max(1, -(-(side - overlap) // (block - overlap))) for side in (height, width))
    quilt = _Quilt(colors, block, overlap, tolerance, (rows, columns), np.random.default_rng(seed % 2**63))
    with (
        until_interrupted(interruptible) as interrupted,
        tqdm(total=rows * columns, desc="texture", unit="block", delay=3, disable=not progress, leave=False) as bar,
    ):
        for row, column in np.ndindex(rows, columns):
            quilt.add(row, column)
            bar.update()
            if interrupted:
                break
    return texture_of(source, quilt.positions[:, :height, :width], bool(interrupted))


def minimum_error_cut(errors: NDArray[np.floating]) -> NDArray[np.intp]:
    r"""The path from top to bottom along which errors add up to least.

    $$E_{i,j} = e_{i,j} + \min(E_{i-1,j-1}, E_{i-1,j}, E_{i-1,j+1})$$

    and back from the smallest value of the last row. Of equal ones the leftmost counts.

    Args:
        errors: (rows, columns).

    Returns:
        (rows,), the column of the path in each row; from one row to the next it moves by one column at most.

    >>> minimum_error_cut(np.array([[5.0, 1.0, 5.0], [1.0, 5.0, 5.0], [5.0, 1.0, 5.0]])).tolist()
    [1, 0, 1]
    """
    rows, columns = errors.shape
    total = np.array(errors, dtype=np.float64)
    steps = np.zeros((rows, columns), np.intp)
    for row in range(1, rows):
        before = np.pad(total[row - 1], 1, constant_values=np.inf)
        choices = np.stack([before[:-2], before[1:-1], before[2:]])
        steps[row] = choices.argmin(axis=0) - 1
        total[row] += choices.min(axis=0)
    path = np.empty(rows, np.intp)
    path[-1] = total[-1].argmin()
    for row in range(rows - 1, 0, -1):
        path[row - 1] = path[row] + steps[row, path[row]]
    return path


class _Quilt:
    """A texture of blocks as it grows.

    Args:
        colors: (C, h, w) of the source.
        block: Side of the blocks.
        overlap: Of blocks.
        tolerance: As in `image_quilting`.
        blocks: How many, down and across.
        generator: Draws blocks.
    """

    def __init__(
        self,
        colors: NDArray[np.float64],
        block: int,
        overlap: int,
        tolerance: float,
        blocks: tuple[int, int],
        generator: np.random.Generator,
    ) -> None:
        self.colors, self.block, self.overlap, self.tolerance, self.generator = (
            colors, block, overlap, tolerance, generator,
        )  # fmt: skip
        size = [count * (block - overlap) + overlap for count in blocks]
        self.positions = np.full((2, *size), -1)
        self.places = np.stack(np.mgrid[:block, :block])
        self.choices = (colors.shape[1] - block + 1, colors.shape[2] - block + 1)
        # No block reaches around the end of the source, so that nothing needs be padded but for speed.
        self.shape = [fft.next_fast_len(side, real=True) for side in colors.shape[1:]]
        self.spectrum = fft.rfft2(colors, self.shape)
        self.squares = np.square(colors).sum(axis=0)

    def add(self, row: int, column: int) -> None:
        """Puts the next block in its place."""
        block, overlap = self.block, self.overlap
        top, left = row * (block - overlap), column * (block - overlap)
        region = self.positions[:, top : top + block, left : left + block]
        above, beside = overlap * (row > 0), overlap * (column > 0)
        if not row and not column:
            start = self.generator.integers(0, self.choices)
        else:
            there = self.colors[:, region[0], region[1]]
            errors = self._errors(there, above, beside)
            positive = errors[errors > 0]
            limit = (1 + self.tolerance) * positive.min() if positive.size else 0.0
            candidates = np.argwhere(errors <= limit)
            start = candidates[self.generator.integers(len(candidates))]
        chosen = self.places + start[:, None, None]
        new = np.ones((block, block), bool)
        if above or beside:
            difference = np.square(there - self.colors[:, chosen[0], chosen[1]]).sum(axis=0)
            across = np.arange(block)
            if beside:
                new &= across >= minimum_error_cut(difference[:, :beside])[:, None]
            if above:
                new &= across[:, None] >= minimum_error_cut(difference[:above].T)
        region[:, new] = chosen[:, new]

    def _errors(self, there: NDArray[np.float64], above: int, beside: int) -> NDArray[np.float64]:
        r"""For each block of the source, the squared differences to what is there, summed over the overlap.

        $\sum t^2 - 2 \sum t q + \sum q^2$, the middle one a correlation, by the Fourier transform. All numbers are
        whole, so that rounding takes the transform's error away.

        Args:
            there: (C, block, block).
            above: Rows of the overlap with blocks above.
            beside: Columns of that with the block to the left.
        """
        known = np.zeros(there.shape[1:], bool)
        known[:above] = known[:, :beside] = True
        template = there * known
        product = (self.spectrum * fft.rfft2(template, self.shape).conj()).sum(axis=0)
        height, width = self.choices
        correlation = np.rint(fft.irfft2(product, self.shape)[:height, :width])
        squares = np.zeros(self.choices)
        for rows, columns, sign in ((above, self.block, 1), (self.block, beside, 1), (above, beside, -1)):
            if rows and columns:
                squares += sign * box_sums(self.squares, rows, columns)[:height, :width]
        return np.square(template).sum() - 2 * correlation + squares


def box_sums(values: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """Sums over all boxes of `rows` × `columns` in values (H, W), by where their upper left corner is."""
    total = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
