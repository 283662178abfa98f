"""Where the patch stands: its positions, and images covered there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lit_viz.errors import UsageError


@dataclass(frozen=True)
class Grid:
    """Positions of the patch.

    Attributes:
        which: Numbers of the positions along rows and along columns, each a range.
        rows: Rows [top, bottom) of the patch for each of these.
        columns: Columns [left, right) likewise.
    """

    which: tuple[range, range]
    rows: list[tuple[int, int]]
    columns: list[tuple[int, int]]

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        window: tuple[int, int],
        stride: tuple[int, int],
        region: tuple[int, int, int, int] | None = None,
    ) -> Grid:
        """The grid of an image of some size; with `region`, of the windows that touch it.

        Raises:
            UsageError: For a region that is empty, not inside the image, or between the windows.
        """
        which, spans = [], []
        if region is not None and (
            len(region) != 4 or not (0 <= region[0] < region[2] <= size[0] and 0 <= region[1] < region[3] <= size[1])
        ):
            raise UsageError(
                f"region is (top, left, bottom, right) in pixels inside the image {size[0]}×{size[1]}, got {region}."
            )
        for axis, count in enumerate(positions(size, window, stride)):
            along = [(i * stride[axis], min(i * stride[axis] + window[axis], size[axis])) for i in range(count)]
            first, last = (0, size[axis]) if region is None else (region[axis], region[axis + 2])
            inside = [i for i, (low, high) in enumerate(along) if low < last and high > first]
            if not inside:
                raise UsageError(f"no window touches the region {region}; the stride {stride} is larger than they are.")
            which.append(range(inside[0], inside[-1] + 1))
            spans.append([along[i] for i in inside])
        return cls((which[0], which[1]), spans[0], spans[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Positions along rows and columns."""
        return len(self.rows), len(self.columns)

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """All windows in row order as (top, left, bottom, right), the last two exclusive and inside the image."""
        return [(top, left, bottom, right) for top, bottom in self.rows for left, right in self.columns]

    def covered(self, images: Tensor, cover: Tensor, which: list[int]) -> Tensor:
        """Images covered, each at one position.

        Args:
            images: (B, C, H, W).
            cover: (B, C, H, W), what the patch shows.
            which: B positions.
        """
        copies, boxes = images.clone(), self.boxes
        for copy, source, position in zip(copies, cover, which, strict=True):
            top, left, bottom, right = boxes[position]
            copy[:, top:bottom, left:right] = source[:, top:bottom, left:right]
        return copies


def positions(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Number of window positions along rows and columns."""
    axes = zip(size, window, stride, strict=True)
    rows, columns = (min(math.ceil((length - w) / s) + 1, math.ceil(length / s)) for length, w, s in axes)
    return rows, columns


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """All windows in row order as (top, left, bottom, right), the last two exclusive and inside the image."""
    return Grid.of(size, window, stride).boxes
