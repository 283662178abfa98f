"""Tensors or arrays in, checked arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_viz.errors import UsageError


def to_numpy(values: Any) -> NDArray[np.float64]:
    """Numbers of any kind and device as float64."""
    if isinstance(values, torch.Tensor):
        # NumPy has no bfloat16.
        values = values.detach().to("cpu", torch.float64).numpy()
    return np.asarray(values, dtype=np.float64)


def as_rgb(image: Any) -> NDArray[np.uint8]:
    """A uint8 picture (H, W), (H, W, 1) or (H, W, 3) as (H, W, 3)."""
    pixels = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise UsageError(
            f"A picture must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {pixels.dtype} "
            f"{pixels.shape}; lit_viz.draw.to_uint8 makes one from a tensor."
        )
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def as_rgb_stack(images: Any, name: str) -> NDArray[np.uint8]:
    """uint8 pictures (n, h, w, 3), checked."""
    pixels = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise UsageError(f"{name} must be uint8 of shape (n, h, w, 3), got {pixels.dtype} {pixels.shape}.")
    return pixels


def as_points(points: Any) -> NDArray[np.float64]:
    """Places in the plane (n, 2), at least one; NaN and infinity stay in."""
    places = to_numpy(points)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places):
        raise UsageError(f"points must have the shape (n, 2) with n >= 1, got {places.shape}.")
    return places


def as_labels(labels: Any, count: int) -> NDArray[np.int64] | None:
    """One class index per point, or None; negative means "unknown"."""
    if labels is None:
        return None
    numbers = to_numpy(labels)
    if numbers.shape != (count,) or not np.array_equal(numbers, np.round(numbers)):
        raise UsageError(f"labels must be {count} whole numbers, one per point, got shape {numbers.shape}.")
    return numbers.astype(np.int64)
