"""Pointing games: do maps lie on objects whose masks or boxes are known?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.scores import as_float


def pointing_score(maps: Tensor, masks: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Whether the maximum of each map lies on the object: the pointing game.

    From Zhang, Lin, Brandt, Shen & Sclaroff, *Top-down Neural Attention by Excitation Backprop* (2016), where a
    maximum up to 15 px beside the object counts, too.

    Args:
        maps: (N, H, W).
        masks: (N, H, W), true (or above 0) on the object; `boxes_to_masks` makes them from boxes.
        tolerance: How far beside the object counts, px.

    Returns:
        (N,) bool. Of several equal maxima all must lie there, so that a constant map has no luck; false for a map that
        is NaN somewhere, or an object without pixels.

    Raises:
        UsageError: If the shapes differ, or for a negative tolerance.

    >>> corner = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    >>> mask = torch.tensor([[[True, False, False], [False, False, False]]])
    >>> pointing_score(corner, mask), pointing_score(corner, mask, tolerance=2.3)
    (tensor([False]), tensor([True]))
    """
    masks = _masks_of(masks, maps)
    if not tolerance >= 0:
        raise UsageError(f"tolerance is a distance in px, at least 0; got {tolerance}.")
    inside = masks
    if tolerance > 0:
        from scipy.ndimage import distance_transform_edt

        # Without an object everything is far from it.
        far = [distance_transform_edt(~m) if m.any() else np.full(m.shape, np.inf) for m in masks.cpu().numpy()]
        inside = torch.from_numpy(np.stack(far) <= tolerance).to(maps.device)
    highest = maps == maps.amax(dim=(1, 2), keepdim=True)
    return highest.any(dim=(1, 2)) & (~highest | inside).all(dim=(1, 2)) & masks.any(dim=(1, 2))


def energy_inside(maps: Tensor, masks: Tensor) -> Tensor:
    r"""Share of a map's positive values that lies on the object: the energy-based pointing game.

    $$\frac{\sum_{p \in B} \max(M_p, 0)}{\sum_p \max(M_p, 0)}$$

    from Wang et al., *Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks* (2020). A map
    that knows nothing of the object has the share that the object has of the image.

    Args:
        maps: (N, H, W).
        masks: As for `pointing_score`.

    Returns:
        (N,) in [0, 1]; NaN for a map without positive values.

    Raises:
        UsageError: If the shapes differ.

    >>> energy_inside(torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]]), torch.tensor([[[1, 0], [1, 0]]]))
    tensor([0.7500])
    """
    masks = _masks_of(masks, maps)
    energy = as_float(maps).clamp(min=0)
    return (energy * masks).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))


def boxes_to_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of boxes: a pixel belongs to a box if its centre does.

    Args:
        boxes: (N, 4) with left, top, right and bottom edge in px from the upper left corner of the image.
        size: Height and width of the images.

    Returns:
        (N, H, W) bool.

    Raises:
        UsageError: For another shape, or edges in another order.

    >>> boxes_to_masks(torch.tensor([[1, 0, 3, 1]]), (2, 4)).int()
    tensor([[[0, 1, 1, 0],
             [0, 0, 0, 0]]], dtype=torch.int32)
    """
    boxes = torch.as_tensor(boxes)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise UsageError(f"boxes must be (N, 4), left, top, right, bottom, got {tuple(boxes.shape)}.")
    if bool((boxes[:, :2] > boxes[:, 2:]).any()):
        raise UsageError("boxes are left, top, right, bottom, but some have the right edge left of the left one.")
    left, top, right, bottom = boxes.float().T[..., None]
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size)
    vertical = (top <= rows) & (rows < bottom)
    return vertical[:, :, None] & ((left <= columns) & (columns < right))[:, None, :]


def _masks_of(masks: Tensor, maps: Tensor) -> Tensor:
    if maps.dim() != 3 or masks.shape != maps.shape:
        raise UsageError(f"maps and masks must both be (N, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}.")
    return masks.to(maps.device) > 0
