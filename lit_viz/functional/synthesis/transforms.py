"""Small changes at random before each step, so that what excites a unit must do so from other places and sizes too.

Each is drawn once for the whole batch, from a generator of the optimisation's own. Their gradients lead back to the
image as it is: what was shifted needs no shifting back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.synthesis.parameterizations import sent


class Transform(Protocol):
    """A differentiable change at random."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """From images (n, C, H, W) to changed ones of the same shape."""
        ...


class Jitter:
    """Shifts images by up to so many pixels along both axes; what leaves on one side comes in on the other.

    Args:
        pixels: The most, at least 0.
    """

    def __init__(self, pixels: int) -> None:
        check_at_least("jitter", pixels, 0)
        self.pixels = pixels

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        rows, columns = torch.randint(-self.pixels, self.pixels + 1, (2,), generator=generator).tolist()
        return images.roll((rows, columns), dims=(-2, -1))


class RandomAffine:
    """Scales and turns images about their middle, in one interpolation; beyond the border they are mirrored.

    Args:
        scales: Factors to choose from, above 0.
        degrees: The largest angle, at least 0.
    """

    def __init__(self, *, scales: Sequence[float] = (1.0,), degrees: float = 0.0) -> None:
        if not scales or not all(math.isfinite(s) and s > 0 for s in scales):
            raise UsageError(f"scales are positive numbers, got {scales!r}.")
        if not 0 <= degrees < math.inf:
            raise UsageError(f"degrees is the largest angle, at least 0; got {degrees!r}.")
        self.scales, self.degrees = tuple(scales), degrees

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        scale = self.scales[int(first * len(self.scales))]
        angle = math.radians(self.degrees) * (2 * second - 1)
        height, width = images.shape[-2:]
        cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
        # Grid coordinates run from −1 to 1 along both axes whatever their length.
        matrix = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
        grid = F.affine_grid(sent([matrix], images), [1, 1, height, width], align_corners=False).expand(
            len(images), -1, -1, -1
        )
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
