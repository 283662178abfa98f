"""Non-parametric sampling: a texture grown pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.interruption import Interruption, until_interrupted
from lit_viz.functional.texture.source import (
    LEVELS,
    MOST_CHANNELS,
    Size,
    Texture,
    check_size,
    check_tolerance,
    texture_of,
    whole_numbers,
)

MAX_ERROR = 0.3
"""The largest mean squared difference at which a pixel is taken; a layer that takes none raises it by a tenth."""

# Of a distance no partial sum exceeds 3 · LEVELS² · channels · total weight, which must stay below 2⁵³.
_TOTAL_WEIGHT = 2**53 // (3 * LEVELS**2 * MOST_CHANNELS) // 2
# Pixels at once, and distances at once: 128 MiB.
_BATCH, _DISTANCES = 32, 2**24
# Numbers of a source's windows below which threads wait for each other longer than they work.
_SMALL = 2**22


def efros_leung(
    source: Tensor,
    *,
    size: Size | None = None,
    hole: Tensor | None = None,
    keep_source: bool = False,
    window: int = 11,
    tolerance: float = 0.1,
    copies: bool = True,
    seed: int = 0,
    progress: bool = False,
    interruptible: bool = True,
) -> Texture:
    r"""Grows a texture, or fills a hole, pixel by pixel.

    For each pixel, the known part of the window around it is compared with every window $q$ of the source:

    $$d(q) = \frac{\sum_k m_k\, g_k\, (t_k - q_k)^2}{\sum_k m_k\, g_k}$$

    over the places $k$ of the window, with $m_k = 1$ where the pixel $t_k$ is known and a Gaussian $g$ of standard
    deviation window / 6.4, the mean over channels. One of the windows with $d \le (1 + \mathrm{tolerance})\, d_{\min}$
    is drawn, and its central pixel taken. The texture grows in layers around what is known: inside a layer pixels with
    most known neighbours come first, of equally many a random one. Pixels whose $d_{\min}$ is `MAX_ERROR` or more wait
    for the next layer. From A. A. Efros and T. K. Leung, *Texture Synthesis by Non-parametric Sampling* (ICCV 1999).

    The window says how large the largest regular structure is: too small a one makes disorder of bricks, too large
    a one copies whole parts of the source. By the rule above a texture that starts as a piece of the source goes on as
    its copy, for what follows there fits without any error, until its border is reached; `copies` says whether it may.

    Each pixel sees all those before it, exactly as if they were made one by one; pixels that do not see each other are
    only computed at once. Time grows with the pixels to be made, with those of the source and with those of the window;
    memory is window · (C + 1) · 8 bytes for each pixel of the source, and little more.

    Args:
        source: (C, H, W), colours in [0, 1] or uint8; from 8 px up.
        size: Height and width of the texture, px, or one number for both.
        hole: bool (H, W), instead of a size: where the source is not known, and is to be filled. What it holds there
            doesn't matter. Only windows that are wholly known count.
        keep_source: With a size, start from the whole source in the middle rather than from a random 3×3 px of it.
        window: Side of the windows, px; odd.
        tolerance: How much worse than the best a window may be, as a share.
        copies: Whether a window without any error is taken alone, as in the paper. Otherwise $d_{\min}$ is the smallest
            distance above 0, so that others compete with it: more variety, and for small windows less order.
        seed: Of the drawing.
        progress: Show a progress bar.
        interruptible: Whether Ctrl-C ends it with what there is; otherwise it goes on to whoever called.

    Returns:
        The texture, with where its pixels come from.

    Raises:
        UsageError: For a window that is even or larger than the source, a hole that is empty or leaves nothing, NaN.

    >>> import torch
    >>> stripes = torch.tensor([0.0, 1.0]).repeat(1, 8, 4)
    >>> efros_leung(stripes, size=(3, 10), window=3).image[0, 0].diff().abs().tolist() == [1.0] * 9
    True
    """
    positions, known = _start(source, size, hole, keep_source, seed)
    colors = whole_numbers(source, None if hole is None else known)
    check_at_least("window", window, 3)
    check_tolerance(tolerance)
    if window % 2 == 0:
        raise UsageError(f"window must be odd, so that it has a central pixel; got {window}, take {window + 1}.")
    if window > min(colors.shape[1:]):
        raise UsageError(
            f"a window of {window} px doesn't fit into the source of {colors.shape[2]}×{colors.shape[1]} px; take a "
            f"smaller one, at most {(min(colors.shape[1:]) - 1) // 2 * 2 + 1}."
        )
    allowed = None
    if hole is not None:
        allowed = sliding_window_view(known, (window, window)).all(axis=(2, 3)).ravel()
        if not allowed.any():
            raise UsageError(
                f"no window of {window} px lies wholly in the known part of the source; take a smaller window or hole."
            )
    windows = _Windows(colors, window, allowed)
    grown = _Growth(colors, positions, known, windows, tolerance, copies)
    with (
        _one_thread(windows.rows.numel() < _SMALL),
        until_interrupted(interruptible) as interrupted,
        tqdm(total=int((~known).sum()), desc="texture", unit="px", delay=3, disable=not progress, leave=False) as bar,
    ):
        grown.run(np.random.default_rng((seed % 2**63, 1)), bar, interrupted)
    return texture_of(source, positions, bool(interrupted))


def _start(
    source: Tensor, size: Size | None, hole: Tensor | None, keep_source: bool, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions (2, H, W) of what is there at first, and where that is."""
    if (size is None) == (hole is None):
        raise UsageError("give the size of the texture, or the hole that is to be filled: one of them.")
    if not isinstance(source, Tensor) or source.dim() != 3:
        whole_numbers(source)  # says what is wrong with it
    rows, columns = source.shape[1:]
    places = np.stack(np.mgrid[:rows, :columns])
    if hole is not None:
        if keep_source:
            raise UsageError("keep_source goes with a size; what is around a hole is kept anyway.")
        if not isinstance(hole, Tensor) or hole.is_floating_point() or tuple(hole.shape) != (rows, columns):
            told = f"{hole.dtype} {tuple(hole.shape)}" if isinstance(hole, Tensor) else type(hole).__name__
            raise UsageError(f"hole is a mask, a bool tensor ({rows}, {columns}); got {told}.")
        known = ~hole.detach().cpu().bool().numpy()
        if known.all():
            raise UsageError("the hole is empty: mark with True where the source is not known.")
        if not known.any():
            raise UsageError("the hole covers the whole source; a texture needs an example.")
        return np.where(known, places, -1), known
    part, least = places, (rows, columns)
    if not keep_source:
        if min(rows, columns) < 3:
            raise UsageError(f"the source is too small, {columns}×{rows} px; a texture starts from 3×3 px of it.")
        least = (3, 3)
        top, left = np.random.default_rng((seed % 2**63, 0)).integers(0, (rows - 2, columns - 2))
        part = places[:, top : top + 3, left : left + 3]
    height, width = check_size(size, least, ", that of the source that is kept" if keep_source else "")  # type: ignore[arg-type]
    positions = np.full((2, height, width), -1)
    top, left = (height - least[0]) // 2, (width - least[1]) // 2
    positions[:, top : top + least[0], left : left + least[1]] = part
    return positions, positions[0] >= 0


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """Small products by one thread: on a busy machine, several are a hundred times slower."""
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if wanted:
            torch.set_num_threads(before)


class _Windows:
    r"""All windows of a source, and how far each is from others, some of whose pixels are known.

    With $\sum_k g_k (t_k - q_k)^2 = \sum_k g_k t_k^2 - 2 \sum_k g_k t_k\, q_k + \sum_k g_k\, q_k^2$ distances are
    matrix products; all numbers are whole and sums below 2⁵³, so that nothing is lost in the difference.

    Args:
        colors: (C, H, W) from `whole_numbers`.
        window: w, their side.
        allowed: (P,) which of them count, row by row; None for all.
    """

    def __init__(self, colors: NDArray[np.float64], window: int, allowed: NDArray[np.bool_] | None) -> None:
        self.window, self.allowed = window, allowed
        self.channels, height, width = colors.shape
        self.across = width - window + 1
        self.count = (height - window + 1) * self.across
        # Row by row of a window: what stands at `column` of row y of all windows is a shifted piece of one long row.
        planes = np.concatenate([colors, np.square(colors).sum(axis=0, keepdims=True)])
        shifted = sliding_window_view(planes, self.across, axis=2).transpose(2, 0, 1, 3)
        self.rows = torch.from_numpy(np.ascontiguousarray(shifted).reshape(window * len(planes), -1))
        offsets = np.arange(window) - window // 2
        gauss = np.exp(-0.5 * np.square(offsets / (window / 6.4)))
        weights = np.outer(gauss, gauss)
        self.weights = np.rint(weights / weights.sum() * _TOTAL_WEIGHT)

    def distances(
        self, templates: NDArray[np.float64], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Weighted sums of squared differences.

        Args:
            templates: (n, C, w, w), whole numbers.
            known: (n, w, w); at least one place of each.

        Returns:
            The sums (n, P), infinite for windows that don't count, less what is the same for all windows; that, (n,);
            and the weights that they are sums of, (n,).
        """
        weights = self.weights * known
        weighted = templates * weights[:, None]
        same = (weighted * templates).sum(axis=(1, 2, 3))
        factors = np.concatenate([-2.0 * weighted, weights[:, None]], axis=1).transpose(2, 0, 3, 1)
        factors = torch.from_numpy(np.ascontiguousarray(factors).reshape(self.window, len(templates), -1))
        sums = torch.empty(len(templates), self.count, dtype=torch.float64, device="cpu")
        for i, row in enumerate(np.flatnonzero(known.any(axis=(0, 2))).tolist()):
            start = row * self.across
            sums.addmm_(factors[row], self.rows[:, start : start + self.count], beta=int(i > 0))
        found = sums.numpy()
        if self.allowed is not None:
            found[:, ~self.allowed] = np.inf
        return found, same, weights.sum(axis=(1, 2))

    def center(self, index: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column in the source of the central pixels of windows."""
        row, column = np.divmod(index, self.across)
        return row + self.window // 2, column + self.window // 2


class _Growth:
    """A texture as it grows.

    Args:
        colors: (C, h, w) of the source.
        positions: (2, H, W); filled in place.
        known: (H, W), what is there at first.
        windows: Of the source.
        tolerance: As in `efros_leung`.
        copies: Likewise.
    """

    def __init__(
        self,
        colors: NDArray[np.float64],
        positions: NDArray[np.int64],
        known: NDArray[np.bool_],
        windows: _Windows,
        tolerance: float,
        copies: bool,
    ) -> None:
        self.colors, self.positions, self.windows = colors, positions, windows
        self.tolerance, self.copies = tolerance, copies
        margin = windows.window // 2
        self.known = np.pad(known, margin)
        made = np.where(known, colors[:, positions[0], positions[1]], 0.0)
        self.made = np.pad(made, ((0, 0), (margin, margin), (margin, margin)))
        size = (windows.window, windows.window)
        self.known_around = sliding_window_view(self.known, size)
        self.made_around = sliding_window_view(self.made, size, axis=(1, 2))
        self.limit = MAX_ERROR

    def run(self, generator: np.random.Generator, bar: tqdm, interrupted: Interruption) -> None:
        """Layer by layer until all is known."""
        most = max(1, min(_BATCH, _DISTANCES // self.windows.count))
        while len(layer := self._layer(generator)):
            draws = generator.random(len(layer))
            taken = 0
            for batch in independent(layer, self.windows.window, most):
                new = self._fill(layer[batch], draws[batch])
                taken += new
                bar.update(new)
                if interrupted:
                    return
            if not taken:
                self.limit *= 1.1

    def _layer(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """Rows and columns (n, 2) of the unknown pixels beside known ones, in the order in which they are filled."""
        known = self.positions[0] >= 0
        neighbors = sliding_window_view(np.pad(known, 1), (3, 3)).sum(axis=(2, 3))
        layer = generator.permutation(np.argwhere(~known & (neighbors > 0)))
        return layer[np.argsort(-neighbors[layer[:, 0], layer[:, 1]], kind="stable")]

    def _fill(self, pixels: NDArray[np.intp], draws: NDArray[np.float64]) -> int:
        """Fills pixels (n, 2) that don't see each other; returns how many were good enough."""
        y, x = pixels.T
        known = self.known_around[y, x]
        templates = self.made_around[:, y, x].swapaxes(0, 1)
        sums, same, weights = self.windows.distances(templates, known)
        best = sums.min(axis=1) + same
        good = best < self.limit * weights * (self.windows.channels * LEVELS**2)
        if not self.copies:
            positive = np.where(sums > -same[:, None], sums, np.inf).min(axis=1) + same
            best = np.where(np.isfinite(positive), positive, best)
        chosen = np.zeros(len(pixels), np.intp)
        # The sums are whole numbers: rounded down, the limit says the same, and nothing is lost in the difference.
        for i, limit in enumerate(np.floor((1 + self.tolerance) * best) - same):
            candidates = (sums[i] <= limit).nonzero()[0]
            chosen[i] = candidates[int(draws[i] * len(candidates))]
        (y, x), (row, column) = pixels[good].T, self.windows.center(chosen[good])
        self.positions[:, y, x] = row, column
        margin = self.windows.window // 2
        self.made[:, y + margin, x + margin] = self.colors[:, row, column]
        self.known[y + margin, x + margin] = True
        return int(good.sum())


def independent(pixels: NDArray[np.intp], window: int, most: int) -> list[NDArray[np.intp]]:
    """Groups of pixels that can be filled at once as if they were filled one after the other.

    A pixel depends on those before it that lie in its window. Its group is the one after the last of theirs.

    Args:
        pixels: (n, 2), rows and columns in their order.
        window: Side of the windows.
        most: Larger groups are divided.

    Returns:
        Indices of pixels; each pixel in one group, behind all that it depends on.

    >>> [group.tolist() for group in independent(np.array([[0, 0], [0, 1], [0, 9], [0, 8]]), 3, 32)]
    [[0, 2], [1, 3]]
    """
    reach = window // 2
    top, left = pixels.min(axis=0)
    height, width = pixels.max(axis=0) - (top, left) + 1
    group = np.zeros((height + 2 * reach, width + 2 * reach), np.intp)
    groups = np.empty(len(pixels), np.intp)
    for i, (y, x) in enumerate((pixels - (top, left)).tolist()):
        groups[i] = group[y + reach, x + reach] = group[y : y + window, x : x + window].max() + 1
    order = np.argsort(groups, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    return [part[i : i + most] for part in parts for i in range(0, len(part), most)]
