"""What is optimised in place of an image: its pixels, or its spectrum with decorrelated colours."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace

# Square root of the covariance of ImageNet's colours, columns by falling variance: bright against dark, red against
# blue, green against both (Olah, Mordvintsev & Schubert, "Feature Visualization", 2017).
_COLORS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


class Parameterization(Protocol):
    """A way from the numbers that are optimised to images, and back."""

    def images(self, values: Tensor) -> Tensor:
        """From values (n, …) to images (n, C, H, W) as the network takes them; differentiable."""
        ...

    def values(self, images: Tensor) -> Tensor:
        """From images (n, C, H, W) as the network takes them to the values that give these, as well as can be."""
        ...

    def project(self, values: Tensor) -> None:
        """Brings values back, in place, to where they stand for images; called after each step."""
        ...


class Pixels:
    """Images as they are, kept to the range of colours from black to full intensity.

    Args:
        space: How network input relates to colours; None for no bounds.
    """

    def __init__(self, space: PixelSpace | None = None) -> None:
        self.space = space

    def images(self, values: Tensor) -> Tensor:
        return values

    def values(self, images: Tensor) -> Tensor:
        return images.clone()

    def project(self, values: Tensor) -> None:
        if self.space is not None:
            clip(values, self.space)


class Fourier:
    r"""The spectrum of an image, scaled so that all frequencies are as strong as in photographs at equal values.

    $$c = \operatorname{sigmoid}\bigl(A\,\mathcal F^{-1}(z / f^{d})\bigr)$$

    In these coordinates a step along the gradient changes large structures as readily as fine ones, and brightness as
    readily as hue, which pixels don't allow (Olah, Mordvintsev & Schubert, *Feature Visualization*, 2017). The sigmoid
    keeps colours in range.

    Args:
        size: Height and width.
        space: How network input relates to colours.
        decay: d; 1 for photographs.
        decorrelate: Whether A are the principal colours of ImageNet's photographs; images of other than three channels
            have none.
    """

    def __init__(
        self, size: tuple[int, int], space: PixelSpace, *, decay: float = 1.0, decorrelate: bool = True
    ) -> None:
        self.size, self.space, self.decorrelate = size, space, decorrelate
        height, width = size
        rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
        columns = torch.fft.rfftfreq(width, dtype=torch.float64)[None]
        frequency = (rows.square() + columns.square()).sqrt().clamp(min=1 / max(height, width))
        # As strong in all as white noise with some 5 times the standard deviation of `values`: the usual rates fit.
        scale = frequency ** (-decay)
        self._scale = 4 * scale * (scale.numel() / scale.square().sum()).sqrt()
        colors = torch.tensor(_COLORS, dtype=torch.float64)
        self._colors = colors / colors.norm(dim=0).max()
        self._there: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def images(self, values: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(values.contiguous()) * self._on(values)[0]
        mixed = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        colors = self._mix(mixed, self._on(values)[1]).sigmoid()
        mean, std = self._affine(colors)
        return (colors - mean) / std

    def values(self, images: Tensor) -> Tensor:
        mean, std = self._affine(images)
        logits = torch.logit((images * std + mean).clamp(0.02, 0.98))
        mixed = self._mix(logits, torch.linalg.inv(self._colors).to(images))
        spectrum = torch.fft.rfft2(mixed, norm="ortho") / self._on(images)[0]
        return torch.view_as_real(spectrum).clone()

    def noise(self, count: int, channels: int, *, std: float, seed: int) -> Tensor:
        """Values (count, channels, H, W // 2 + 1, 2) of faint noise, the same for each image."""
        shape = (channels, self.size[0], self.size[1] // 2 + 1, 2)
        return std * normal(shape, seed).expand(count, *shape).clone()

    def project(self, values: Tensor) -> None:
        """Nothing to be done: the sigmoid keeps all in range."""

    def _mix(self, maps: Tensor, matrix: Tensor) -> Tensor:
        if maps.shape[1] != 3 or not self.decorrelate:
            return maps
        return torch.einsum("dc,nchw->ndhw", matrix, maps)

    def _on(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and colours where the values are; brought there once."""
        where = (values.device, values.dtype)
        if where not in self._there:
            with torch.inference_mode(False):
                self._there[where] = (self._scale.to(values, copy=True), self._colors.to(values, copy=True))
        return self._there[where]

    def _affine(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = images.shape[1]
        return per_channel(self.space.mean, channels, images), per_channel(self.space.std, channels, images)


def color_covariance() -> Tensor:
    """The covariance (3, 3) of the colours of ImageNet's photographs, its largest variance 1; float64."""
    colors = torch.tensor(_COLORS, dtype=torch.float64)
    covariance = colors @ colors.T
    return covariance / torch.linalg.matrix_norm(covariance, 2)


def per_channel(values: tuple[float, ...], channels: int, like: Tensor) -> Tensor:
    """One number or one for each channel as a tensor (channels, 1, 1), to reckon with images."""
    if len(values) not in (1, channels):
        raise UsageError(f"the normalisation has {len(values)} values, but the images have {channels} channels.")
    return sent(values, like).reshape(-1, 1, 1).expand(channels, 1, 1)


def sent(numbers: Any, like: Tensor) -> Tensor:
    """Numbers as a tensor of the type and on the device of another one; a GPU is not waited for."""
    return torch.tensor(numbers, dtype=like.dtype).to(like.device, non_blocking=like.is_cuda)


def clip(images: Tensor, space: PixelSpace) -> Tensor:
    """Clips images, as the network takes them, in place to colours from 0 to 1."""
    mean, std = (per_channel(v, images.shape[1], images) for v in (space.mean, space.std))
    return torch.minimum(torch.maximum(images, -mean / std, out=images), (1 - mean) / std, out=images)


def flat(color: float, shape: tuple[int, int, int], space: PixelSpace) -> Tensor:
    """An image (C, H, W) of one colour, from 0 (black) to 1, as the network takes it, float32."""
    return space.from_color(torch.full(shape, color, dtype=torch.float32))


def normal(shape: tuple[int, ...] | torch.Size, seed: int) -> Tensor:
    """Standard normal noise by a generator of its own, float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    return torch.randn(shape, generator=generator, dtype=torch.float32)


def eight_bit_rounded(images: Tensor, space: PixelSpace) -> Tensor:
    """What is left of images, as the network takes them, when they are written to an 8-bit file and read again."""
    colors = space.to_color(images)
    return space.from_color((colors * 255).round() / 255).to(images.dtype)
