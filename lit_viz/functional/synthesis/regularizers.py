"""What keeps an image from becoming noise that happens to excite: penalties in the objective, changes after a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_viz.errors import UsageError, check_at_least

Penalty = Callable[[Tensor], Tensor]
"""From images (n, C, H, W), as the network takes them, to (n,), differentiable; taken away from the objective."""


def total_variation(images: Tensor, *, beta: float = 2.0) -> Tensor:
    r"""How much neighbouring pixels differ.

    $$\sum_{c,i,j} \left((x_{c,i,j+1} - x_{cij})^2 + (x_{c,i+1,j} - x_{cij})^2\right)^{\beta/2}$$

    from Mahendran & Vedaldi, *Understanding Deep Image Representations by Inverting Them* (2015); β = 1 is the total
    variation proper, which keeps sharp edges. The last row and column, which lack a neighbour, count by the other one.

    Args:
        images: (n, C, H, W).
        beta: β, above 0.

    Returns:
        (n,), non-negative.

    >>> total_variation(torch.tensor([[[[0.0, 1.0], [2.0, 0.0]]]]))
    tensor([10.])
    """
    if not beta > 0:
        raise UsageError(f"beta must be positive, got {beta}.")
    across, down = images.diff(dim=-1).square(), images.diff(dim=-2).square()
    if beta == 2:
        return across.flatten(1).sum(dim=1) + down.flatten(1).sum(dim=1)
    squares = F.pad(across, (0, 1, 0, 0)) + F.pad(down, (0, 0, 0, 1))
    # The root has no gradient at 0, where flat images are: softened there, and exactly nothing where nothing differs.
    softened = (squares + 1e-8) ** (beta / 2) - 1e-8 ** (beta / 2)
    return softened.where(squares > 0, 0).flatten(1).sum(dim=1)


def p_norm(images: Tensor, *, p: float = 2.0) -> Tensor:
    r"""$\sum |x|^p$ of each image (n, C, H, W), as (n,): L2 with p = 2; with p = 6 it bounds values softly."""
    return (images.square() if p == 2 else images.abs() ** p).flatten(1).sum(dim=1)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Images (n, C, H, W) blurred by a Gaussian of standard deviation `sigma` in pixels, mirrored at the border."""
    if not 0 <= sigma < math.inf:
        raise UsageError(f"sigma is a number of pixels, at least 0; got {sigma!r}.")
    radius = min(math.ceil(3 * sigma), *(side - 1 for side in images.shape[-2:]))
    if sigma == 0 or radius < 1:
        return images
    kernel = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(-radius, radius + 1)]
    blurred = F.pad(images, (radius,) * 4, mode="reflect")
    # Weighted shifts: on a CPU several times as fast as a convolution for each channel.
    for dim in (-1, -2):
        side = images.shape[dim]
        shifts = [blurred.narrow(dim, i, side) for i in range(len(kernel))]
        blurred = torch.zeros_like(shifts[0])
        for shifted, weight in zip(shifts, kernel, strict=True):
            blurred = blurred.add_(shifted, alpha=weight / sum(kernel))
    return blurred


class Constraint(Protocol):
    """A change of the pixels after a step."""

    def __call__(self, images: Tensor, gradient: Tensor, step: int) -> None:
        """Changes images (n, C, H, W), as the network takes them, in place.

        Args:
            images: After the step.
            gradient: Of the objective, before the step.
            step: Counted from 0.
        """
        ...


class Blur:
    """Blurs the image every so many steps: high frequencies excite units easily and mean little.

    Args:
        sigma: Standard deviation, in pixels.
        every: Steps.
    """

    def __init__(self, sigma: float, *, every: int = 1) -> None:
        check_at_least("blur_every", every, 1)
        if not 0 <= sigma < math.inf:
            raise UsageError(f"sigma is a number of pixels, at least 0; got {sigma!r}.")
        self.sigma, self.every = sigma, every

    def __call__(self, images: Tensor, gradient: Tensor, step: int) -> None:
        if (step + 1) % self.every == 0:
            images.copy_(gaussian_blur(images, self.sigma))


class Decay:
    """Shrinks all pixels towards `center` by a share, L2 regularisation as Yosinski et al. have it.

    Args:
        share: Of each step, from 0 to 1.
        center: What pixels shrink to: (C, 1, 1) or a number, as the network takes them.
    """

    def __init__(self, share: float, *, center: Tensor | float = 0.0) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"decay is a share from 0 to 1, got {share}.")
        self.share, self.center = share, center

    def __call__(self, images: Tensor, gradient: Tensor, step: int) -> None:
        center = self.center.to(images) if isinstance(self.center, Tensor) else self.center
        images.sub_(self.share * (images - center))


class ClipSmallNorm:
    """Sets pixels whose norm over the channels lies below a percentile to `center`: only what matters stays.

    Args:
        percentile: Of the pixels of each image, from 0 to 100.
        center: What they become; norms are those of the difference from it.
    """

    def __init__(self, percentile: float, *, center: Tensor | float = 0.0) -> None:
        self.percentile, self.center = _percentile(percentile), center

    def __call__(self, images: Tensor, gradient: Tensor, step: int) -> None:
        center = self.center.to(images) if isinstance(self.center, Tensor) else self.center
        _clear(images, (images - center).square().sum(dim=1), self.percentile, center)  # ordered as norms are


class ClipSmallContribution:
    r"""Sets pixels of small $|\sum_c x_c\,\partial a/\partial x_c|$, what they add to the response, to `center`.

    Args:
        percentile: Of the pixels of each image, from 0 to 100.
        center: What they become, and from where pixels are measured.
    """

    def __init__(self, percentile: float, *, center: Tensor | float = 0.0) -> None:
        self.percentile, self.center = _percentile(percentile), center

    def __call__(self, images: Tensor, gradient: Tensor, step: int) -> None:
        center = self.center.to(images) if isinstance(self.center, Tensor) else self.center
        _clear(images, ((images - center) * gradient).sum(dim=1).abs(), self.percentile, center)


def _percentile(value: float) -> float:
    if not 0 <= value <= 100:
        raise UsageError(f"a percentile lies between 0 and 100, got {value}.")
    return value


def _clear(images: Tensor, sizes: Tensor, percentile: float, center: Tensor | float) -> None:
    """Sets the pixels with the smallest of `sizes` (n, H, W) to `center`; those of equal size stay together."""
    total = sizes[0].numel()
    bound = sizes.flatten(1).kthvalue(min(round(total * percentile / 100) + 1, total), dim=1).values[:, None, None]
    small = (sizes < bound)[:, None].expand_as(images)
    images.copy_(torch.where(small, torch.as_tensor(center, dtype=images.dtype, device=images.device), images))
