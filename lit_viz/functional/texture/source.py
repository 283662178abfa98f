"""What the ways of growing a texture share: the source in whole numbers, the result, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.neighbors import nearest_neighbors

LEVELS = 4080
"""Colours are whole numbers up to this, 16 for each step of an 8-bit picture, when they are compared.

Sums of products of whole numbers below 2⁵³ are exact in double precision, in whatever order a library adds them up. So
equal distances are equal, and the same seed gives the same texture on every machine.
"""

MOST_CHANNELS = 16

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Texture:
    """A texture made of pixels of a source.

    Attributes:
        image: (C, H, W), in the source's dtype; 0 where nothing was made.
        positions: int64 (2, H, W), row and column in the source that each pixel was taken from; -1 where nothing was
            made, because of Ctrl-C.
        interrupted: Whether it was stopped by hand, so that this is what had come of it by then.
    """

    image: Tensor
    positions: Tensor
    interrupted: bool = False


def texture_of(source: Tensor, positions: NDArray[np.int64], interrupted: bool) -> Texture:
    """The texture whose pixels stand at `positions` (2, H, W) in `source` (C, h, w), -1 where there is none."""
    where = torch.from_numpy(positions).to(source.device)
    image = source.detach()[:, where[0].clamp(min=0), where[1].clamp(min=0)]
    return Texture(torch.where(where[0] >= 0, image, torch.zeros_like(image)), where, interrupted)


def whole_numbers(source: Tensor, known: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """The colours of a source (C, h, w) from 0 to `LEVELS`, 0 where they are not known.

    Raises:
        UsageError: For a source that is no image, or holds NaN or values that are no colours where it is known.
    """
    if not isinstance(source, Tensor) or source.dim() != 3 or 0 in source.shape or len(source) > MOST_CHANNELS:
        told = tuple(source.shape) if isinstance(source, Tensor) else type(source).__name__
        raise UsageError(f"the source is one image (C, H, W) of at most {MOST_CHANNELS} channels; got {told}.")
    values = source.detach().cpu()
    if values.dtype == torch.uint8:
        colors = values.numpy().astype(np.float64) * (LEVELS // 255)
        return colors if known is None else np.where(known, colors, 0.0)
    if not values.is_floating_point():
        raise UsageError(f"colours are floats from 0 to 1, or uint8, not {source.dtype}.")
    colors = values.double().numpy()
    if known is not None:
        colors = np.where(known, colors, 0.0)
    if not np.isfinite(colors).all():
        raise UsageError(
            "the source holds NaN or infinity; a texture can't be made of them. Name such pixels as the hole, or take "
            "another source."
        )
    if colors.min() < -1e-3 or colors.max() > 1 + 1e-3:
        raise UsageError(
            f"colours are floats from 0 to 1, or uint8; got {colors.min():.3g} to {colors.max():.3g}. "
            f"lit_viz.pixels.PixelSpace(mean, std).to_color(images) undoes a normalisation."
        )
    return np.rint(colors * LEVELS).clip(0, LEVELS)


def check_size(size: Size, least: tuple[int, int], otherwise: str) -> tuple[int, int]:
    """Height and width, at least `least`, of one number for both or of two."""
    both = (size, size) if not isinstance(size, (tuple, list)) else tuple(size)
    if len(both) != 2:
        raise UsageError(f"size is height and width, or one number for both; got {size!r}.")
    for name, value, smallest in zip(("height", "width"), both, least, strict=True):
        check_at_least(f"the {name} of size", value, smallest, otherwise)
    return int(both[0]), int(both[1])


def check_tolerance(tolerance: float) -> None:
    """Raises `UsageError` unless it is a finite number of at least 0."""
    if not 0 <= tolerance < np.inf:
        raise UsageError(f"tolerance is a share of the smallest error, at least 0; got {tolerance!r}.")


def patch_error(image: Tensor, source: Tensor, *, patch: int = 7) -> float:
    r"""How far the patches of an image are from the nearest ones of a source, on average.

    $$\frac1n \sum_i \min_j \sqrt{\tfrac{1}{C w^2} \lVert p_i - q_j \rVert^2}$$

    over all patches $p_i$ of the image and $q_j$ of the source. Another picture of the same texture has some error, for
    no two grains of sand are the same; a texture made of the source's pixels that has less looks like it everywhere.
    It says nothing about repetition: a copy has none.

    Args:
        image: (C, H, W), colours in [0, 1] or uint8.
        source: (C, h, w), likewise.
        patch: w, side of the patches, px.

    Returns:
        In colour units, from 0 to 1.

    Raises:
        UsageError: If an image is smaller than the patches, or the channels differ.

    >>> line = torch.tensor([[[0.0, 0.5, 1.0]]])
    >>> patch_error(line, line[..., :1], patch=1)
    0.5
    """
    check_at_least("patch", patch, 1)
    if image.dim() != 3 or source.dim() != 3 or len(image) != len(source):
        raise UsageError(
            f"image and source are (C, H, W) of as many channels; got {tuple(image.shape)} and {tuple(source.shape)}."
        )
    if min(*image.shape[1:], *source.shape[1:]) < patch:
        raise UsageError(f"image and source must be at least {patch} px high and wide, as the patches are.")
    ours, theirs = (
        (one.double() / (255 if one.dtype == torch.uint8 else 1))
        .unfold(1, patch, 1)
        .unfold(2, patch, 1)
        .permute(1, 2, 0, 3, 4)
        .flatten(2)
        .flatten(0, 1)
        for one in (image.detach(), source.detach())
    )
    found = nearest_neighbors(ours, theirs, 1, metric="l2")
    return float(found.distances.mean()) / ours.shape[1] ** 0.5
