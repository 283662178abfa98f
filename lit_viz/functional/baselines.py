"""What stands for "nothing is here": baselines of images, in units of network input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_viz.errors import UsageError

Baseline = float | Tensor | Literal["mean", "blur", "noise"]


def baseline_images(images: Tensor, baseline: Baseline, *, sigma: float, seed: int = 0) -> Tensor:
    """Images with nothing to see in them, (N, C, H, W).

    Args:
        images: (N, C, H, W).
        baseline: A number or a tensor that broadcasts to `images`; or, of each image and channel, "mean" (the mean
            colour), "blur" (the image blurred), "noise" (of the same mean and standard deviation).
        sigma: Standard deviation of the blur, px.
        seed: Of the noise.

    Raises:
        UsageError: For any other word, or a tensor that doesn't broadcast.
    """
    if not isinstance(baseline, str):
        return baseline_like(images, baseline)
    if baseline == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if baseline == "blur":
        return gaussian_blur(images, sigma)
    if baseline == "noise":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float32).to(images)
        return images.mean(dim=(2, 3), keepdim=True) + noise * images.std(dim=(2, 3), keepdim=True)
    raise UsageError(f"baseline {baseline!r} is unknown; give a number, a tensor, 'mean', 'blur' or 'noise'.")


def baseline_like(images: Tensor, baseline: float | Tensor) -> Tensor:
    """A baseline of the images' shape.

    Raises:
        UsageError: If it doesn't broadcast.
    """
    try:
        return torch.as_tensor(baseline).detach().to(images).expand_as(images)
    except RuntimeError:
        raise UsageError(
            f"a baseline of shape {tuple(torch.as_tensor(baseline).shape)} does not broadcast to images "
            f"{tuple(images.shape)}; one value per channel is shaped (C, 1, 1)."
        ) from None


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur of (N, C, H, W) with edge pixels repeated beyond the border."""
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images).reshape(1, 1, 1, -1)
    n, c, h, w = images.shape
    flat = images.reshape(n * c, 1, h, w)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode="replicate"), kernel)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), mode="replicate"), kernel.transpose(2, 3))
    return flat.reshape(n, c, h, w)
