"""Style: Gram matrices of features, and colours that are those of another image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_viz.errors import UsageError

_LUMINANCE = (0.299, 0.587, 0.114)  # of ITU-R BT.601


def gram_matrix(features: Tensor, *, weights: Tensor | None = None) -> Tensor:
    r"""Which features of a layer come together, wherever in the image that is.

    $$G_{ij} = \frac{1}{C P} \sum_p F_{ip} F_{jp}$$

    over the P = h·w places of a map of C channels (Gatys, Ecker & Bethge, *Image Style Transfer Using Convolutional
    Neural Networks*, 2016; divided as by Johnson, Alahi & Fei-Fei, *Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution*, 2016). With weights m of places, P is their sum: the style of a region.

    Sums are taken in 32 bits, whatever the precision of the features: in 16 bits they overflow.

    Args:
        features: (N, C, h, w).
        weights: (N, 1, h, w) or (1, 1, h, w), not negative; None for 1 everywhere.

    Returns:
        (N, C, C), float32; float64 for features of that type.

    Raises:
        UsageError: For features that are no maps.

    >>> gram_matrix(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))
    tensor([[[1.2500, 0.7500],
             [0.7500, 2.2500]]])
    """
    if features.dim() != 4:
        raise UsageError(f"a Gram matrix is one of maps (N, C, h, w); this layer puts out {tuple(features.shape)}.")
    with torch.autocast(features.device.type, enabled=False):
        values = features if features.dtype == torch.float64 else features.float()
        count = torch.tensor(float(values[0, 0].numel()), dtype=values.dtype, device=values.device)
        if weights is not None:
            weights = weights.to(values)
            count = weights.flatten(1).sum(dim=1).clamp(min=1e-12)[:, None, None]
            values = values * weights.sqrt()
        return _Gram.apply(values) / (count * features.shape[1])


class _Gram(torch.autograd.Function):
    r"""$G = F F^T$ of maps (N, C, h, w), and the gradient $(S + S^T) F$ from $S = \partial L / \partial G$.

    Taken for each factor apart, as for any product, that would be two products and their sum; and it stays in the maps'
    order of memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor) -> Tensor:
        flat, channels_last = _flat(maps)
        return flat.mT @ flat if channels_last else flat @ flat.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        flat, channels_last = _flat(maps)
        both = slope + slope.mT
        return ((flat @ both).mT if channels_last else both @ flat).reshape(maps.shape)

    @staticmethod
    def jvp(ctx: Any, change: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        half = maps.flatten(2) @ change.flatten(2).mT
        return half + half.mT


def _flat(maps: Tensor) -> tuple[Tensor, bool]:
    """Maps (N, C, h, w) as matrices, (N, h·w, C) where they lie so in memory, else (N, C, h·w)."""
    if maps.permute(0, 2, 3, 1).is_contiguous() and not maps.is_contiguous():
        return maps.permute(0, 2, 3, 1).flatten(1, 2), True
    return maps.flatten(2), False


def match_colors(colors: Tensor, like: Tensor) -> Tensor:
    r"""Colours of an image changed so that their mean and covariance are those of another one.

    $$c' = \Sigma_t^{1/2}\, \Sigma_s^{-1/2}\,(c - \mu_s) + \mu_t$$

    With a style's colours matched to the content first, transfer keeps the content's colours, and takes over the
    strokes alone (Gatys, Bethge, Hertzmann & Shechtman, *Preserving Color in Neural Artistic Style Transfer*, 2016).

    Args:
        colors: (1, C, H, W), from 0 to 1.
        like: (1, C, h, w), likewise.

    Returns:
        (1, C, H, W), float32; values out of range are cut off.

    >>> grey = torch.tensor([0.1, 0.3]).reshape(1, 1, 1, 2)
    >>> match_colors(grey, torch.tensor([0.4, 0.8]).reshape(1, 1, 1, 2)).flatten()
    tensor([0.4000, 0.8000])
    """
    flat, other = (image[0].double().flatten(1) for image in (colors, like))
    mean, wanted = flat.mean(dim=1, keepdim=True), other.mean(dim=1, keepdim=True)
    change = _root(torch.cov(other, correction=0), 0.5) @ _root(torch.cov(flat, correction=0), -0.5)
    return (change @ (flat - mean) + wanted).reshape(colors.shape).float().clamp(0, 1)


def _root(covariance: Tensor, power: float) -> Tensor:
    """The power of a covariance (C, C), or () of one channel; along directions without variance nothing is done."""
    values, vectors = torch.linalg.eigh(covariance.reshape(-1, max(1, covariance.dim() and len(covariance))))
    there = values > 1e-10 * values.amax().clamp(min=1e-10)
    return vectors @ torch.diag(torch.where(there, values.clamp(min=1e-30), 1.0) ** power * there) @ vectors.T


def luminance(colors: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) of colours (N, 3, H, W): the Y of YIQ, 0.299 R + 0.587 G + 0.114 B."""
    weights = colors.new_tensor(_LUMINANCE).reshape(1, 3, 1, 1)
    return (weights * colors).sum(dim=1, keepdim=True)


def with_luminance(colors: Tensor, brightness: Tensor) -> Tensor:
    """Colours whose hue is that of an image, and whose brightness another one's.

    Y of YIQ is replaced, and I and Q stay: the difference in brightness is added to each of red, green and blue.

    Args:
        colors: (N, 3, H, W), from 0 to 1.
        brightness: (N, 1, H, W), likewise.

    Returns:
        (N, 3, H, W); where such a colour is out of range it is mixed with grey of its brightness until it is not.
    """
    brightness = brightness.clamp(0, 1)
    change = colors - luminance(colors)
    room = torch.where(change > 0, (1 - brightness) / change.clamp(min=1e-6), brightness / (-change).clamp(min=1e-6))
    return brightness + change * room.amin(dim=1, keepdim=True).clamp(max=1)
