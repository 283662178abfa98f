"""An object cut out of its image by a network that never saw a mask: saliency says where, colours say how far."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lit_viz.errors import UsageError, check_at_least, check_choice

# Of the checkerboard, along the shorter side.
_SQUARES = 28


def segment(
    images: Tensor,
    maps: Tensor,
    *,
    foreground: float = 0.95,
    likely: float = 0.50,
    background: float = 0.20,
    smoothing: float = 0.06,
    rim: float = 0.01,
    iterations: int = 5,
) -> Tensor:
    """Object masks from saliency maps by GrabCut, without labels.

    After Simonyan, Vedaldi & Zisserman, *Deep Inside Convolutional Networks* (2014), section 3.2: the most salient
    pixels are surely object, the least salient ones surely background, and a cut through the image with one colour
    model for each settles the rest (Rother, Kolmogorov & Blake 2004). The steps:

    1. The map is smoothed by a Gaussian, since gradients are dense on an object but not on each of its pixels.
    2. Its quantiles make seeds: above `foreground` object, below `background` background, both for sure; so is the rim
       of the image where it isn't object, as photographers put objects inside. All other pixels start as object above
       `likely` and as background below, and are free to change.
    3. GrabCut: Gaussian mixtures of five colours each and a minimal cut, in turn.
    4. Of the connected parts those stay that hold a tenth of the object's seeds, or are the largest. Their holes are
       filled.

    The paper has 0.95 and 0.30 as quantiles, and no smoothing; what is default here did best on composites other than
    those of the tests.

    A map without any contrast gives an empty mask. OpenCV draws the colour models' first guess from a random generator
    of its own: it is seeded here, so that masks are reproducible, and can't be given back its state.

    Args:
        images: (N, C, H, W), colours in [0, 1], see `lit_viz.pixels.PixelSpace`; grey ones will do. Other numbers of
            channels than three are averaged.
        maps: (N, H, W), larger where the class score depends on the pixel more: `saliency`, or better, as there is less
            noise to smooth, the largest absolute value over channels of `smooth_grad`.
        foreground: Quantile above which pixels are object.
        likely: Quantile above which pixels start as object.
        background: Quantile up to which pixels are background.
        smoothing: Standard deviation of the Gaussian, as a share of the shorter side.
        rim: Width of the rim, likewise; 0 for none.
        iterations: Of GrabCut.

    Returns:
        (N, H, W) bool, on the device of `maps`.

    Raises:
        UsageError: For maps that don't fit the images, NaN or infinity, quantiles out of order, or without OpenCV.
    """
    cv2 = require_opencv()
    _check(images, maps, (background, likely, foreground), smoothing, rim)
    check_at_least("iterations", iterations, 1)
    colors = (images if images.shape[1] == 3 else images.mean(dim=1, keepdim=True)).detach().float().clamp(0, 1)
    pixels = (colors.expand(-1, 3, -1, -1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    heats = maps.detach().double().cpu().numpy()
    sigma = smoothing * min(heats.shape[1:])
    wide = round(rim * min(heats.shape[1:]))
    edge = np.ones(heats.shape[1:], dtype=bool)
    edge[wide : edge.shape[0] - wide, wide : edge.shape[1] - wide] = False
    masks = np.zeros(heats.shape, dtype=bool)
    for mask, image, heat in zip(masks, pixels, heats, strict=True):
        smooth = ndimage.gaussian_filter(heat, sigma, mode="constant") if heat.min() < heat.max() else heat
        low, middle, high = np.quantile(smooth, (background, likely, foreground))
        if not low < high:
            continue
        state = np.where(smooth > middle, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        state[(smooth <= low) | edge] = cv2.GC_BGD
        seeds = smooth >= high
        state[seeds] = cv2.GC_FGD
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(np.ascontiguousarray(image), state, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
        mask[:] = _around((state == cv2.GC_FGD) | (state == cv2.GC_PR_FGD), seeds)
    return torch.from_numpy(masks).to(maps.device)


def require_opencv() -> Any:
    """The module `cv2`.

    Raises:
        UsageError: Where OpenCV isn't installed, with the remedy.
    """
    try:
        import cv2
    except ImportError as error:
        raise UsageError(
            'GrabCut needs OpenCV, which is not installed: pip install "lit-viz[segmentation]" brings it.'
        ) from error
    return cv2


def cut_out(
    images: Tensor, masks: Tensor, *, background: Literal["checkerboard", "white", "transparent"] = "checkerboard"
) -> Tensor:
    """Objects without what is behind them.

    Args:
        images: (N, C, H, W), colours in [0, 1], one channel or three.
        masks: (N, H, W) bool, where the object is.
        background: A light checkerboard, which stands for nothing, white, or "transparent" for a fourth channel.

    Returns:
        (N, 3, H, W) float32, colours in [0, 1]; with "transparent" (N, 4, H, W), red, green, blue and opacity.

    >>> cut_out(torch.zeros(1, 1, 1, 2), torch.tensor([[[True, False]]]), background="white")[0, :, 0].tolist()
    [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
    """
    check_choice("background", background, ("checkerboard", "white", "transparent"))
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.shape[:1] + images.shape[2:] != masks.shape:
        raise UsageError(
            f"images (N, 1 or 3, H, W) and masks (N, H, W) are needed; got {tuple(images.shape)} and "
            f"{tuple(masks.shape)}."
        )
    colors, inside = images.detach().float().expand(-1, 3, -1, -1), masks.bool()[:, None].to(images.device)
    if background == "transparent":
        return torch.cat([colors, inside.float()], dim=1)
    height, width = masks.shape[1:]
    side = max(1, min(height, width) // _SQUARES)
    rows, columns = (torch.arange(length, device=images.device) // side for length in (height, width))
    squares = 1 - 0.15 * ((rows[:, None] + columns) % 2) if background == "checkerboard" else 1.0
    return torch.where(inside, colors, torch.as_tensor(squares, dtype=torch.float32, device=images.device))


def iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each mask with the true one, (N,), in [0, 1]; 1 where both are empty.

    Args:
        masks: (N, H, W) bool.
        truth: (N, H, W) bool.

    >>> iou(torch.tensor([[[True, True, False]]]), torch.tensor([[[False, True, True]]])).item()
    0.3333333432674408
    """
    if masks.shape != truth.shape or masks.dim() != 3:
        raise UsageError(f"masks and truth must be (N, H, W) both; got {tuple(masks.shape)} and {tuple(truth.shape)}.")
    masks, truth = masks.bool().flatten(1), truth.bool().to(masks.device).flatten(1)
    union = (masks | truth).sum(dim=1)
    return torch.where(union > 0, (masks & truth).sum(dim=1) / union.clamp(min=1), 1.0)


def best_threshold_iou(maps: Tensor, truth: Tensor, *, steps: int = 200) -> float:
    """What one threshold can do at best: the largest mean IoU over all maps that any single threshold reaches.

    Thresholds are tried as a share of the maximum of each map, and as a quantile of each map; the better one counts.
    The true masks choose it, so that this is more than a threshold could reach without them.

    Args:
        maps: (N, H, W), larger for object.
        truth: (N, H, W) bool.
        steps: How many thresholds of each kind, evenly spaced.

    Returns:
        Mean IoU, in [0, 1].

    >>> best_threshold_iou(torch.tensor([[[0.1, 0.9, 0.8]]]), torch.tensor([[[False, True, True]]]))
    1.0
    """
    check_at_least("steps", steps, 1)
    maps = maps.detach().double()
    shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=maps.device)
    peaks = shares[:, None] * maps.flatten(1).amax(dim=1)
    quantiles = torch.from_numpy(np.quantile(maps.flatten(1).cpu().numpy(), shares.cpu().numpy(), axis=1))
    levels = torch.cat([peaks, quantiles.to(maps.device)])
    return max(float(iou(maps >= level[:, None, None], truth).double().mean()) for level in levels)


def _around(mask: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of a mask that hold a tenth of the seeds or are the largest, without holes."""
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    held = np.bincount(labels[seeds], minlength=count + 1)[1:]
    kept = (held >= 0.1 * seeds.sum()) | (areas == areas.max(initial=0))
    return ndimage.binary_fill_holes(np.isin(labels, 1 + np.flatnonzero(kept)))


def _check(images: Tensor, maps: Tensor, quantiles: tuple[float, float, float], smoothing: float, rim: float) -> None:
    if images.dim() != 4 or not images.is_floating_point() or 0 in images.shape:
        raise UsageError(f"images must be colours in [0, 1], (N, C, H, W); got {images.dtype} {tuple(images.shape)}.")
    if maps.shape != images.shape[:1] + images.shape[2:]:
        raise UsageError(
            f"maps {tuple(maps.shape)} don't fit images {tuple(images.shape)}; resize them to (N, H, W) first."
        )
    if not (torch.isfinite(maps).all() and torch.isfinite(images).all()):
        raise UsageError("images or maps hold NaN or infinity, which say nothing about where an object is.")
    if images.min() < -1e-3 or images.max() > 1 + 1e-3:
        raise UsageError(
            f"images must be colours in [0, 1], not {float(images.min()):.3g} to {float(images.max()):.3g}; "
            f"lit_viz.pixels.PixelSpace(mean, std).to_color(images) undoes a normalisation."
        )
    if not 0 < quantiles[0] <= quantiles[1] <= quantiles[2] < 1:
        raise UsageError(f"quantiles must be 0 < background <= likely <= foreground < 1; got {quantiles}.")
    if not smoothing >= 0:
        raise UsageError(f"smoothing is a share of the shorter side, at least 0; got {smoothing}.")
    if not 0 <= rim < 0.5:
        raise UsageError(f"rim is a share of the shorter side, at least 0 and less than 0.5; got {rim}.")
