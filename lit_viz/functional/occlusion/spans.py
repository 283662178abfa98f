"""Which pixels change: interval arithmetic along one axis, for all positions of the patch at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spans:
    """Along one axis of a map, the pixels that may differ from the uncovered image's, for each position of the patch.

    Attributes:
        low: (P,) int64, the first one.
        high: (P,) int64, one after the last; where it equals `low`, nothing changes.
        length: Of the axis.
    """

    low: np.ndarray
    high: np.ndarray
    length: int

    @property
    def sizes(self) -> np.ndarray:
        """(P,) how many pixels change."""
        return self.high - self.low

    def through(self, kernel: int, stride: int, padding: int, dilation: int, length: int) -> Spans:
        r"""Through a sliding window, of a convolution or a pooling.

        Output $o$ reads the inputs $o s - p,\; o s - p + d,\; \dots,\; o s - p + d (k - 1)$, so that
        $[a, b)$ reaches $\lceil (a + p - d (k - 1)) / s \rceil \le o \le \lfloor (b - 1 + p) / s \rfloor$.

        Args:
            kernel: k.
            stride: s.
            padding: p, at the front.
            dilation: d.
            length: Of the output.
        """
        low = -((-(self.low + padding - dilation * (kernel - 1))) // stride)
        high = (self.high - 1 + padding) // stride + 1
        return _clipped(low, high, length, self.sizes > 0)

    def joined(self, other: Spans) -> Spans:
        """The smallest spans that hold both."""
        mine, others = self.sizes > 0, other.sizes > 0
        low = np.select([~others, ~mine], [self.low, other.low], np.minimum(self.low, other.low))
        high = np.select([~others, ~mine], [self.high, other.high], np.maximum(self.high, other.high))
        return Spans(low, high, self.length)

    def padded(self, front: int, back: int, mode: str) -> Spans:
        """Through padding, whose pixels may be copies of changed ones.

        Args:
            front: Pixels before; negative to cut off.
            back: Pixels after.
            mode: "constant", "reflect", "replicate" or "circular".
        """
        n, length = self.length, self.length + front + back
        out = _clipped(self.low + front, self.high + front, length, self.sizes > 0)
        if mode == "constant":
            return out
        for start, stop in ((0, front), (front + n, length)):
            at = np.arange(start, stop) - front
            source = {"reflect": n - 1 - np.abs(n - 1 - np.abs(at)), "replicate": at.clip(0, n - 1), "circular": at % n}
            copies = (source[mode] >= self.low[:, None]) & (source[mode] < self.high[:, None])
            if copies.any():
                where = np.where(copies, np.arange(start, stop), length).min(axis=1)
                last = np.where(copies, np.arange(start, stop), -1).max(axis=1) + 1
                out = out.joined(_clipped(where, last, length, copies.any(axis=1)))
        return out


def _clipped(low: np.ndarray, high: np.ndarray, length: int, some: np.ndarray) -> Spans:
    """Spans within an axis; empty ones lie inside it."""
    low, high = low.clip(0, length), high.clip(0, length)
    some = some & (high > low)
    low = np.where(some, low, np.minimum(low, length - 1))
    return Spans(low, np.where(some, high, low), length)
