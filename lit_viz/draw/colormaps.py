"""From numbers to colours: colour maps whose lightness tells the truth, and a palette for classes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from skimage.color import lab2rgb, rgb2lab

from lit_viz.draw.arrays import to_numpy
from lit_viz.errors import UsageError, nearest

COLORMAPS = ("magma", "inferno", "viridis", "cividis", "gray", "diverging", "occlusion")
"""Names for `colormap`. All but `diverging` are sequential, from low to high."""

CVD_SAFE_10: tuple[tuple[int, int, int], ...] = (
    (63, 144, 218),
    (255, 169, 14),
    (189, 31, 1),
    (131, 45, 182),
    (146, 218, 221),
    (169, 107, 89),
    (231, 99, 0),
    (148, 164, 162),
    (185, 172, 112),
    (113, 117, 129),
)
"""Ten colours for classes, told apart with every kind of colour vision.

Source: M. A. Petroff, "Accessible Color Sequences for Data Visualization", 2021, arXiv:2107.02270; the
greyish ones were moved to the end.
"""

_HATCH = ((226, 228, 231), (206, 209, 213))
# Odd, so that a diverging map has an entry exactly at zero.
_ENTRIES = 257


@lru_cache(maxsize=32)
def colormap(name: str, entries: int = _ENTRIES) -> NDArray[np.float64]:
    """A colour map as a table, low to high.

    `magma`, `inferno`, `viridis` and `cividis` are Matplotlib's. The others are made here to be exactly even
    in CIE L*: `gray`; `diverging`, blue (negative) over near-white (zero) to red (positive), both arms
    equally dark; `occlusion`, dark red (low) over orange to pale yellow (high).

    Args:
        name: One of `COLORMAPS`.
        entries: Number of colours, at least 3; odd gives `diverging` an exact centre.

    Returns:
        (entries, 3) sRGB in [0, 1], read-only.
    """
    if name not in COLORMAPS:
        raise UsageError(f"There is no colour map {name!r}; {nearest(name, COLORMAPS, n=len(COLORMAPS))}.")
    if entries < 3:
        raise UsageError(f"A colour map needs at least 3 entries, got {entries}.")
    if name == "gray":
        lab = np.zeros((entries, 3))
        lab[:, 0] = np.linspace(0, 100, entries)
        table = lab2rgb(lab)
    elif name == "occlusion":
        table = _even_lightness(_sampled("YlOrRd_r"), entries)
    elif name == "diverging":
        source = _sampled("RdBu_r")
        half = entries // 2 + 1
        arms = source[: len(source) // 2 + 1], source[: len(source) // 2 - 1 : -1]
        # The extremes of RdBu are nearly black; cut both arms where blue and red still look blue and red.
        low, high = (_even_lightness(arm, half, darkest=32.0) for arm in arms)
        if entries % 2:
            table = np.concatenate([low, high[-2::-1]])
        else:
            positions = np.linspace(0, 2 * half - 2, entries)
            full = np.concatenate([low, high[-2::-1]])
            table = np.stack([np.interp(positions, np.arange(len(full)), full[:, c]) for c in range(3)], axis=1)
    else:
        source = _sampled(name)
        at = np.linspace(0, len(source) - 1, entries)
        table = np.stack([np.interp(at, np.arange(len(source)), source[:, c]) for c in range(3)], axis=1)
    table = np.clip(table, 0.0, 1.0)
    table.setflags(write=False)
    return table


def limits(values: Any, *, cmap: str = "magma", percentile: float = 100.0) -> tuple[float, float]:
    """The range that `colorize` spreads a map over when none is given.

    Args:
        values: Any shape; not-finite values are ignored.
        cmap: `diverging` gives a range that is symmetrical around 0.
        percentile: In (50, 100]; below 100 the extremes are cut off, the same share at both ends.

    Returns:
        (low, high); (0, 1) or (-1, 1) where there is nothing finite.
    """
    if not 50 < percentile <= 100:
        raise UsageError(f"percentile must lie in (50, 100], got {percentile}.")
    finite = to_numpy(values)
    finite = finite[np.isfinite(finite)]
    if cmap == "diverging":
        bound = float(np.percentile(np.abs(finite), percentile)) if finite.size else 1.0
        return -bound, bound
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [100 - percentile, percentile])
    return float(low), float(high)


def bright_end(values: Any) -> float:
    """Where the colours of a map of gradients end: what one value in a hundred exceeds, the largest if that is nothing.

    A few extreme gradients would leave all others in the dark. 1 where there is nothing finite.
    """
    finite = to_numpy(values)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 1.0
    return max(0.0, float(np.percentile(finite, 99))) or max(0.0, float(finite.max()))


def colorize(
    values: Any, *, cmap: str = "magma", low: float | None = None, high: float | None = None
) -> NDArray[np.uint8]:
    """Colours for a map of numbers.

    Args:
        values: (..., H, W) array or tensor.
        cmap: One of `COLORMAPS`.
        low: The value of the first colour; None takes it from `limits`. Smaller values get the first colour.
        high: The value of the last colour, likewise.

    Returns:
        (..., H, W, 3). NaN is hatched in light grey (plain grey on maps below 32 px, where hatching would
        look like data). A map without any contrast gets the first colour, in `diverging` the centre, in
        `occlusion` the last.
    """
    numbers = to_numpy(values)
    if numbers.ndim < 2:
        raise UsageError(f"A map needs at least two dimensions (H, W), got shape {numbers.shape}.")
    table = np.round(colormap(cmap) * 255).astype(np.uint8)
    found_low, found_high = limits(numbers, cmap=cmap)
    bottom = found_low if low is None else float(low)
    top = found_high if high is None else float(high)
    if not (np.isfinite(bottom) and np.isfinite(top)) or (low is not None and high is not None and top < bottom):
        raise UsageError(f"The colour range must be finite with low <= high, got low={low}, high={high}.")
    missing = np.isnan(numbers)
    position = np.where(missing, 0.0, positions(numbers, cmap, bottom, top))
    index = np.round(position * (len(table) - 1)).astype(np.intp)
    colors = table[index]
    if missing.any():
        colors[missing] = np.broadcast_to(hatch(*numbers.shape[-2:]), colors.shape)[missing]
    return colors


def positions(values: NDArray[np.float64], cmap: str, low: float, high: float) -> NDArray[np.float64]:
    """Where values lie on a colour map, clipped to [0, 1]; NaN stays NaN.

    Without a range, all lie where nothing stands out: at zero of `diverging`, else at the harmless end.
    """
    if high > low:
        return (np.clip(values, low, high) - low) / (high - low)
    harmless = {"diverging": 0.5, "occlusion": 1.0}.get(cmap, 0.0)
    return np.where(np.isnan(values), np.nan, harmless)


def hatch(height: int, width: int) -> NDArray[np.uint8]:
    """Light grey diagonals for "nothing here", (height, width, 3); plain grey below 32 px."""
    light, dark = (np.array(c, np.uint8) for c in _HATCH)
    if max(height, width) < 32:
        return np.broadcast_to(light, (height, width, 3)).copy()
    diagonal = np.add.outer(np.arange(height), np.arange(width)) % 8
    return np.where((diagonal < 2)[..., None], dark, light)


def _sampled(name: str) -> NDArray[np.float64]:
    # 257 samples, so that a diverging source has its centre among them.
    return np.asarray(matplotlib.colormaps[name].resampled(257)(np.linspace(0, 1, 257)))[:, :3]


def _even_lightness(colors: NDArray[np.float64], entries: int, darkest: float = 0.0) -> NDArray[np.float64]:
    """Walks along a curve of colours in equal steps of L*.

    Args:
        colors: (n, 3) sRGB from dark to light, L* increasing.
        entries: Number of colours wanted.
        darkest: The walk starts here, in L* (0 to 100), if the curve starts darker.
    """
    lab = rgb2lab(colors)
    # A plateau would have no inverse.
    keep = np.concatenate([[True], np.diff(np.maximum.accumulate(lab[:, 0])) > 1e-9])
    lab = lab[keep]
    lightness = np.linspace(max(darkest, lab[0, 0]), lab[-1, 0], entries)
    a, b = (np.interp(lightness, lab[:, 0], lab[:, c]) for c in (1, 2))
    return lab2rgb(np.stack([lightness, a, b], axis=1))
