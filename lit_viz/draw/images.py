"""Pictures of pictures: colours to 8 bits, fitting into a tile, heat maps over photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lit_viz.draw.arrays import as_rgb, to_numpy
from lit_viz.draw.colormaps import colorize, hatch, limits, positions
from lit_viz.errors import UsageError

SMALL_IMAGE = 40
"""Pictures up to this side, px, are enlarged by whole factors, so that every input pixel stays a square."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def to_uint8(colors: Any) -> NDArray[np.uint8]:
    """Colours as 8-bit RGB.

    Args:
        colors: (C, H, W) or (N, C, H, W) in [0, 1]; values outside are clipped, NaN becomes 0. One channel is
            shown as grey, three as RGB. Two, or more than three, have no colours of their own and are shown
            as the grey mean of all channels.

    Returns:
        (H, W, 3) or (N, H, W, 3), rounded to the nearest.
    """
    values = torch.as_tensor(colors).detach()
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise UsageError(f"colors must have the shape (C, H, W) or (N, C, H, W), got {tuple(values.shape)}.")
    if not values.is_floating_point():
        raise UsageError(f"colors must be floating-point numbers in [0, 1], got {values.dtype}.")
    values = torch.nan_to_num(values.float(), nan=0.0).clamp_(0.0, 1.0)
    if values.shape[-3] not in (1, 3):
        values = values.mean(dim=-3, keepdim=True)
    pixels = (values * 255).round().to(torch.uint8).movedim(-3, -1).expand(*values.shape[:-3], -1, -1, 3)
    return np.ascontiguousarray(pixels.cpu().numpy())


def around_grey(values: Any, *, percentile: float = 96.0) -> NDArray[np.uint8]:
    """Signed values as pictures in which mid-grey is zero, as deconvnets are shown.

    Args:
        values: (N, C, H, W); each picture uses the whole range by itself.
        percentile: Of the absolute values of a picture, which becomes black or white; larger ones are clipped.

    Returns:
        (N, H, W, 3), channels as in `to_uint8`. NaN becomes mid-grey.
    """
    numbers = torch.nan_to_num(torch.as_tensor(values).detach().cpu().float(), nan=0.0)
    size = numbers.flatten(1).abs()
    bounds = torch.from_numpy(np.percentile(size.numpy(), percentile, axis=1)).to(numbers)
    # Few pixels of a sparse picture may be all that there is.
    bounds = torch.where(bounds > 0, bounds, size.amax(dim=1))
    scale = torch.where(bounds > 0, bounds, 1.0).reshape(-1, 1, 1, 1)
    return to_uint8(0.5 + 0.5 * numbers / scale)


def resize_map(values: Any, height: int, width: int, *, method: str = "bicubic") -> NDArray[np.float64]:
    """Resizes a map of numbers.

    Args:
        values: (h, w).
        height: Rows wanted.
        width: Columns wanted.
        method: `bicubic`, `bilinear`, or `nearest` where cells should stay cells.

    Returns:
        (height, width), never outside the range of `values`. What came from NaN is NaN.
    """
    numbers = to_numpy(values)
    if numbers.ndim != 2 or not numbers.size:
        raise UsageError(f"A heat map must have the shape (h, w), got {numbers.shape}.")
    if method not in _FILTERS:
        raise UsageError(f"method must be one of {', '.join(_FILTERS)}, got {method!r}.")
    if numbers.shape == (height, width):
        return numbers
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.full((height, width), np.nan)
    low, high = numbers[finite].min(), numbers[finite].max()
    # Pillow resizes float32 only; in [0, 1] a map of tiny gradients doesn't underflow.
    span = float(high - low) or 1.0
    filled = np.where(finite, numbers, numbers[finite].mean())
    unit = Image.fromarray(((filled - low) / span).astype(np.float32))
    resized_unit = np.asarray(unit.resize((width, height), _FILTERS[method]), dtype=np.float64)
    # Bicubic overshoots.
    out = (resized_unit * span + low).clip(low, high)
    if not finite.all():
        holes = Image.fromarray((~finite).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        out[np.asarray(holes, dtype=bool)] = np.nan
    return out


def overlay(
    image: Any,
    heat: Any,
    *,
    cmap: str = "inferno",
    alpha: float = 0.85,
    low: float | None = None,
    high: float | None = None,
    method: str = "bicubic",
) -> NDArray[np.uint8]:
    """A heat map over the greyed image.

    The grey image shows through where a sequential map is low, a diverging map is near zero, or `occlusion`,
    where low means important, is high.

    Args:
        image: uint8 (H, W), (H, W, 1) or (H, W, 3).
        heat: (h, w), resized to the image.
        cmap: One of `COLORMAPS`.
        alpha: How much the strongest heat covers, in [0, 1].
        low: Value of the first colour; None takes the smallest value.
        high: Value of the last colour; None takes the largest value.
        method: How to resize `heat`: `bicubic`, `bilinear`, or `nearest` for cells.

    Returns:
        (H, W, 3).
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must lie in [0, 1], got {alpha}.")
    pixels = as_rgb(image)
    # The range is that of the map itself, as a colour bar beside it would say.
    found_low, found_high = limits(heat, cmap=cmap)
    bottom, top = (found_low if low is None else low), (found_high if high is None else high)
    values = resize_map(heat, *pixels.shape[:2], method=method)
    colors = colorize(values, cmap=cmap, low=bottom, high=top).astype(np.float32)
    gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    # Compressed, so that neither black nor white parts of the photograph compete with the ends of the map.
    # A diverging map is white at zero, where a light image goes with it.
    base = (gray * 0.5 + 118 if cmap == "diverging" else gray * 0.72 + 36)[..., None]
    position = np.nan_to_num(positions(values, cmap, bottom, top))
    if cmap == "occlusion":
        weight = alpha * (1 - 0.85 * position)
    elif cmap == "diverging":
        weight = alpha * np.abs(2 * position - 1) ** 0.7
    else:
        weight = alpha * position**0.7
    weight = np.where(np.isnan(values), alpha * 0.5, weight).astype(np.float32)[..., None]
    return np.round(base * (1 - weight) + colors * weight).astype(np.uint8)


def fitted_size(
    height: int, width: int, box_height: int, box_width: int, *, small: int = SMALL_IMAGE
) -> tuple[int, int]:
    """The largest (height, width) of a picture in a box, aspect kept; a whole multiple up to `small` px."""
    factor = min(box_height / height, box_width / width)
    if factor >= 1 and max(height, width) <= small:
        factor = int(factor)
    return max(1, min(box_height, round(height * factor))), max(1, min(box_width, round(width * factor)))


def resized(pixels: NDArray[np.uint8], height: int, width: int, *, small: int = SMALL_IMAGE) -> Image.Image:
    """Resizes a picture: antialiased when reduced, smooth when enlarged, but in squares up to `small` px."""
    picture = Image.fromarray(pixels)
    if pixels.shape[:2] == (height, width):
        return picture
    if max(pixels.shape[:2]) <= small and height >= pixels.shape[0] and width >= pixels.shape[1]:
        # At factors that aren't whole, averaging a larger copy keeps all squares equally large.
        up = (-(-width // pixels.shape[1]) * pixels.shape[1], -(-height // pixels.shape[0]) * pixels.shape[0])
        return picture.resize(up, Image.Resampling.NEAREST).resize((width, height), Image.Resampling.BOX)
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def masked(pixels: Image.Image, inside: NDArray[np.bool_]) -> Image.Image:
    """Hatches what lies outside; `inside` (h, w) is stretched to the picture."""
    if inside.all():
        return pixels
    keep = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).resize(pixels.size, Image.Resampling.NEAREST)
    return Image.composite(pixels, Image.fromarray(hatch(pixels.height, pixels.width)), keep)
