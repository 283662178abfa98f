"""Occlusion: slide a patch over the image and see how much the class score suffers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.baselines import Baseline, baseline_images
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.scores import (
    Model,
    Score,
    Target,
    as_float,
    check_images,
    class_scores,
    probabilities,
    resolve_target,
)
from lit_viz.guard import untouched

Pair = int | tuple[int, int]


def occlusion(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    window: Pair = 16,
    stride: Pair = 8,
    baseline: Baseline = 0.0,
    output: Literal["probability", "score"] = "probability",
    returns: Literal["heatmap", "attribution"] = "heatmap",
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    score: Score | None = None,
) -> Tensor:
    r"""Class probability, or score, with a patch of the image covered, for each position of the patch.

    From Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks* (2014), section 4.2. The first window
    stands at (0, 0); along an axis of length $L$ there are $\lceil (L - w) / s \rceil + 1$ positions (with a
    stride larger than the window, as many as start inside the image), and the last window is cut off at the border,
    not moved.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        target: Class index, N indices, or None for the class predicted on the whole image.
        window: Height and width of the patch in pixels.
        stride: Step of the patch in pixels, along rows and columns.
        baseline: What covers the window, in units of network input: a number, a tensor that broadcasts to `images`,
            "mean" (of each image and channel), "blur" (the image itself, Gaussian with σ a quarter of the window) or
            "noise" (Gaussian with each image's mean and deviation, from a generator of its own).
        output: The class probability (softmax), or the raw score.
        returns: "heatmap": the output at each position. "attribution": for each pixel the mean over the windows
            that cover it of what the output loses there, full minus covered (0 where no window comes).
        batch_size: Covered copies in one forward pass; by default as many as fit 16 images of 3×224×224. Halved
            whenever memory runs out.
        seed: For `baseline="noise"`.
        progress: Show a progress bar when the map takes longer than three seconds.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        float32 (N, rows, columns) for a heatmap, in [0, 1] for a probability; (N, H, W) for an attribution. float64
        where the network gives float64.

    Raises:
        UsageError: For a window larger than the image, a stride below 1, an unknown baseline or a bad target.

    >>> total = lambda x: x.flatten(1).sum(1, keepdim=True)      # a model that adds up its pixels …
    >>> image = torch.arange(16.).reshape(1, 1, 4, 4)
    >>> occlusion(total, image, 0, window=2, stride=2, output="score")   # … loses what the patch covers
    tensor([[[110., 102.],
             [ 78.,  70.]]])
    """
    check_images(images)
    size = images.shape[-2:]
    window, stride = check_window(window, stride, size)
    if output not in ("probability", "score") or returns not in ("heatmap", "attribution"):
        raise UsageError(
            f"output is 'probability' or 'score', and returns is 'heatmap' or 'attribution', "
            f"not {output!r} and {returns!r}."
        )
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    boxes = windows(size, window, stride)
    rows, columns = positions(size, window, stride)
    link = probabilities if output == "probability" else as_float
    with untouched(model), torch.no_grad():
        images = images.detach()
        cover = baseline_images(images, baseline, sigma=max(window) / 4, seed=seed)
        batch_size = batch_size or fitting(images[0])

        def uncovered(which: Tensor) -> Tensor:
            return class_scores(model, images[which], score=score)

        full = in_batches(uncovered, len(images), batch_size, images.device)
        chosen = resolve_target(full, target)
        whole = link(full).gather(1, chosen[:, None])[:, 0]

        def covered(pairs: Tensor) -> Tensor:
            """The output for some of the pairs (image, position)."""
            which, where = pairs // len(boxes), (pairs % len(boxes)).tolist()
            copies = images[which]
            for copy, source, position in zip(copies, cover[which], where, strict=True):
                top, left, bottom, right = boxes[position]
                copy[:, top:bottom, left:right] = source[:, top:bottom, left:right]
            return link(class_scores(model, copies, score=score)).gather(1, chosen[which][:, None])[:, 0]

        values = in_batches(
            covered,
            len(images) * len(boxes),
            batch_size,
            images.device,
            description="occlusion",
            unit="patch",
            progress=progress,
        )
    heat = values.reshape(len(images), rows, columns)
    if returns == "heatmap":
        return heat
    return spread(whole[:, None, None] - heat, size, window, stride)


def positions(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Number of window positions along rows and columns."""
    axes = zip(size, window, stride, strict=True)
    rows, columns = (min(math.ceil((length - w) / s) + 1, math.ceil(length / s)) for length, w, s in axes)
    return rows, columns


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """All windows in row order as (top, left, bottom, right), the last two exclusive and inside the image."""
    rows, columns = positions(size, window, stride)
    return [
        (
            r * stride[0],
            c * stride[1],
            min(r * stride[0] + window[0], size[0]),
            min(c * stride[1] + window[1], size[1]),
        )
        for r in range(rows)
        for c in range(columns)
    ]


def spread(values: Tensor, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """From values per window (N, rows, columns) to their mean over the windows that cover each pixel, (N, H, W)."""
    total = values.new_zeros(len(values), *size)
    count = values.new_zeros(size)
    boxes = windows(size, window, stride)
    for (top, left, bottom, right), value in zip(boxes, values.flatten(1).T, strict=True):
        total[:, top:bottom, left:right] += value[:, None, None]
        count[top:bottom, left:right] += 1
    return total / count.clamp(min=1)


def on_image(values: Tensor, size: tuple[int, int], window: Pair, stride: Pair) -> Tensor:
    """Brings a heat map to the image: each pixel takes the value of the window whose centre is nearest.

    Args:
        values: (N, rows, columns), from `occlusion`.
        size: Height and width of the image.
        window: As given to `occlusion`.
        stride: As given to `occlusion`.

    Returns:
        (N, H, W).

    >>> on_image(torch.tensor([[[1.0, 2.0]]]), (2, 6), window=(2, 4), stride=2)
    tensor([[[1., 1., 1., 2., 2., 2.],
             [1., 1., 1., 2., 2., 2.]]])
    """
    w, s = check_window(window, stride, size)
    boxes = torch.tensor(windows(size, w, s), dtype=torch.float64).reshape(*positions(size, w, s), 4)
    picks = []
    for centres, length in (
        ((boxes[:, 0, 0] + boxes[:, 0, 2]) / 2, size[0]),
        ((boxes[0, :, 1] + boxes[0, :, 3]) / 2, size[1]),
    ):
        places = torch.arange(length, dtype=torch.float64)[:, None] + 0.5
        picks.append((places - centres).abs().argmin(dim=1).to(values.device))
    return values[:, picks[0]][:, :, picks[1]]


def check_window(window: Pair, stride: Pair, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Window and stride as pairs.

    Raises:
        UsageError: For a window larger than the image, or anything below one pixel.
    """
    w = (window, window) if isinstance(window, int) else tuple(window)
    s = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(w) != 2 or min(w) < 1:
        raise UsageError(f"window must be one or two positive numbers of pixels, got {window}.")
    if len(s) != 2 or min(s) < 1:
        raise UsageError(f"stride must be one or two positive numbers of pixels, got {stride}.")
    if w[0] > size[0] or w[1] > size[1]:
        raise UsageError(
            f"the occlusion window {w[0]}×{w[1]} is larger than the image {size[0]}×{size[1]}; "
            f"take a smaller one, for instance window={max(1, min(size) // 4)}."
        )
    return (w[0], w[1]), (s[0], s[1])
