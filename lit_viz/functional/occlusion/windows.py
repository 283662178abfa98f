"""Windows of feature maps: cut out of the uncovered image's maps, and laid over them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """Where the windows of a batch lie in a map: all of one size, at each combination of some rows and columns.

    Attributes:
        tops: (R,) int64, first row of the windows; may lie outside of the map where one reads with a margin.
        lefts: (L,) int64, first column.
        height: Rows of each window.
        width: Columns of each window.
        steps: Take every so many pixels of a row, and of a column.
    """

    tops: np.ndarray
    lefts: np.ndarray
    height: int
    width: int
    steps: tuple[int, int] = (1, 1)

    def covers(self, height: int, width: int) -> bool:
        """Whether each window is the whole map."""
        return self.height == height and self.width == width

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Place)
            and (self.height, self.width, self.steps) == (other.height, other.width, other.steps)
            and np.array_equal(self.tops, other.tops)
            and np.array_equal(self.lefts, other.lefts)
        )


def cut(base: Tensor, place: Place) -> Tensor:
    """Windows of one map.

    Args:
        base: (H, W, C), contiguous; the windows lie inside.
        place: Of R rows and L columns of windows.

    Returns:
        (R, L, height, width, C), contiguous.
    """
    _, width, channels = base.shape
    down, right = place.steps
    out = base.new_empty(len(place.tops), len(place.lefts), place.height, place.width, channels)
    for r, top, r_step in _even(place.tops):
        for c, left, c_step in _even(place.lefts):
            target = out[r, c]
            strides = (r_step * width * channels, c_step * channels, down * width * channels, right * channels, 1)
            offset = base.storage_offset() + (top * width + left) * channels
            target.copy_(base.as_strided(target.shape, strides, offset))
    return out


def lay(windows: Tensor, place: Place, over: Tensor, target: Place) -> None:
    """Lays windows over others, where they meet.

    Args:
        windows: (R, L, h, w, C).
        place: Where they lie; without steps.
        over: (R, L, height, width, C), written to.
        target: Where those lie.
    """
    rows = list(_meeting(place.tops, place.height, target.tops, target.height, target.steps[0]))
    columns = list(_meeting(place.lefts, place.width, target.lefts, target.width, target.steps[1]))
    for r, r_to, r_from in rows:
        for c, c_to, c_from in columns:
            over[r, c, r_to, c_to] = windows[r, c, r_from, c_from]


def pick(base: Tensor, windows: Tensor | None, place: Place, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Any pixels of maps that differ from one map in a window.

    Args:
        base: (H, W, C).
        windows: (R, L, h, w, C), at `place`; without them, pixels of `base` alone.
        place: Where the windows lie.
        rows: (R, n) int64, which row of the map each row of the result is.
        columns: (L, m) int64, likewise.

    Returns:
        (R, L, n, m, C).
    """
    r = torch.from_numpy(rows).to(base.device)[:, None, :, None]
    c = torch.from_numpy(columns).to(base.device)[None, :, None, :]
    out = base[r, c]
    if windows is None:
        return out
    r = r - torch.from_numpy(place.tops).to(base.device)[:, None, None, None]
    c = c - torch.from_numpy(place.lefts).to(base.device)[None, :, None, None]
    inside = (r >= 0) & (r < place.height) & (c >= 0) & (c < place.width)
    i = torch.arange(len(place.tops), device=base.device)[:, None, None, None]
    j = torch.arange(len(place.lefts), device=base.device)[None, :, None, None]
    changed = windows[i, j, r.clamp(0, place.height - 1), c.clamp(0, place.width - 1)]
    return torch.where(inside[..., None], changed, out)


def _even(starts: np.ndarray) -> Iterator[tuple[slice, int, int]]:
    """Runs of evenly spaced starts, as (which, the first, the step)."""
    begin, values = 0, starts.tolist()
    while begin < len(values):
        end, step = begin + 1, 0
        if end < len(values) and values[end] >= values[begin]:
            step = values[end] - values[begin]
            while end < len(values) and values[end] - values[end - 1] == step:
                end += 1
        yield slice(begin, end), values[begin], step
        begin = end


def _meeting(
    starts: np.ndarray, length: int, onto: np.ndarray, size: int, step: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Along one axis, windows that lie alike over their targets: (which, pixels of the target, of the window)."""
    offsets = (starts - onto).tolist()
    begin = 0
    while begin < len(offsets):
        end, offset = begin + 1, offsets[begin]
        while end < len(offsets) and offsets[end] == offset:
            end += 1
        # Pixel j of the target is pixel j·step − offset of the window.
        first = max(0, -(-offset // step))
        last = min(size - 1, (offset + length - 1) // step)
        if last >= first:
            source = first * step - offset
            yield (
                slice(begin, end),
                slice(first, last + 1),
                slice(source, source + (last - first) * step + 1, step),
            )
        begin = end
