"""Images as a decoder makes them from a code: a prior that was learned rather than written down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis.parameterizations import normal, per_channel
from lit_viz.functional.synthesis.reading import runs_in
from lit_viz.pixels import PixelSpace


class Code:
    r"""The code space of a decoder, kept to where codes of real images lie.

    After each step a code is shrunk by a share and each of its units clipped to $[l, \mu + 3\sigma]$, with $l = 0$
    where codes are never negative (behind a ReLU) and $\mu - 3\sigma$ elsewhere (Nguyen, Dosovitskiy, Yosinski, Brox &
    Clune, *Synthesizing the Preferred Inputs for Neurons via Deep Generator Networks*, 2016).

    Args:
        decoder: From codes (n, …) to colours (n, C, H, W) in [0, 1]. Put into evaluation mode and frozen.
        mean: μ of each unit over images, of the shape of a code.
        std: σ likewise.
        nonnegative: Whether codes are never negative.
        space: How the input of the network that is asked relates to colours.
        decay: What is left of a code after each step, from 0 to 1.
    """

    def __init__(
        self,
        decoder: nn.Module,
        *,
        mean: Tensor,
        std: Tensor,
        nonnegative: bool,
        space: PixelSpace,
        decay: float = 0.99,
    ) -> None:
        if mean.shape != std.shape:
            raise UsageError(f"mean and std of a code have one shape, not {tuple(mean.shape)} and {tuple(std.shape)}.")
        if not 0 <= decay <= 1:
            raise UsageError(f"decay is what is left of a code after a step, from 0 to 1; got {decay}.")
        self.decoder = decoder.eval().requires_grad_(False)
        self.mean, self.std, self.nonnegative, self.space, self.decay = mean, std, nonnegative, space, decay

    def noise(self, count: int, *, seed: int) -> Tensor:
        """Codes (count, …) to start from, the same for each image: normal, with μ and σ, and brought within bounds.

        From standard normal codes, as in the paper, all seeds end at the same image.
        """
        drawn = normal(self.mean.shape, seed)
        values = self.mean.to(drawn) + self.std.to(drawn) * drawn
        return self._clip(values.expand(count, *self.mean.shape).clone())

    def images(self, values: Tensor) -> Tensor:
        device, dtype = runs_in(self.decoder)
        if device not in (None, values.device):
            self.decoder.to(values.device)  # to the network that is asked
        colors = self.decoder(values.to(dtype or values.dtype)).to(values.dtype)
        mean, std = (per_channel(v, colors.shape[1], colors) for v in (self.space.mean, self.space.std))
        return (colors - mean) / std

    def values(self, images: Tensor) -> Tensor:
        raise UsageError("a decoder has no way from an image to its code; start from noise, or from a code.")

    def project(self, values: Tensor) -> None:
        values.mul_(self.decay)
        values.copy_(self._clip(values))

    def _clip(self, values: Tensor) -> Tensor:
        mean, std = self.mean.to(values), self.std.to(values)
        low = torch.zeros_like(mean) if self.nonnegative else mean - 3 * std
        return torch.minimum(torch.maximum(values, low), mean + 3 * std)
