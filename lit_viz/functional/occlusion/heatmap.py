"""Occlusion: slide a patch over the image and see how much the class score suffers."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.baselines import Baseline, baseline_images
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.occlusion.engine import MEMORY, Engine, occluded_scores
from lit_viz.functional.occlusion.grid import Grid, positions, windows
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
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class OcclusionMap:
    """What `occlusion_map` found.

    Attributes:
        heat: (N, rows, columns), the output for each position of the patch; NaN outside of the region asked for.
        whole: (N,), the output for the image as it is.
        engine: How it was computed: "incremental", or "full": a pass for each position, of the network or, where that
            is the same, of its steps with batch norms folded.
        note: In words why so, and what it saved.
        error: With `autocast`, the largest difference to the output without it at some positions, as a share of the
            largest effect that covering has there, infinite where numbers overflow; else None.
    """

    heat: Tensor
    whole: Tensor
    engine: Literal["incremental", "full"]
    note: str
    error: float | None = None


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
    region: Box | None = None,
    engine: Engine = "auto",
    autocast: torch.dtype | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: bool = False,
    score: Score | None = None,
) -> Tensor:
    r"""Class probability, or score, with a patch of the image covered, for each position of the patch.

    From Zeiler & Fergus, *Visualizing and Understanding Convolutional Networks* (2014), section 4.2. The first window
    stands at (0, 0); along an axis of length $L$ there are $\lceil (L - w) / s \rceil + 1$ positions (with a
    stride larger than the window, as many as start inside the image), and the last window is cut off at the border,
    not moved.

    A convolutional network is computed only where a covered copy differs from the image, which is exact and several
    times as fast as a pass for each position: see `lit_viz.functional.occlusion.incremental`.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. It treats images apart from each other,
            as networks in evaluation mode do. Left as it was found.
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
        region: (top, left, bottom, right) in pixels, the last two exclusive: only windows that touch this box are
            looked at. The heat map is NaN elsewhere.
        engine: "auto": what changes, where the network allows it and it pays, else full passes. "incremental": what
            changes, or an error. "full": a full pass for each position.
        autocast: Number format for mixed precision, `torch.bfloat16` or `torch.float16`; faster where the hardware has
            it, and not exact: see `OcclusionMap.error`.
        batch_size: Most covered copies at once; by default as many as fit 16 images of 3×224×224, and 128 where only
            what changes is computed. Halved whenever memory runs out.
        memory: MiB that the engine "incremental" may take for the maps it keeps, and for those of a batch.
        seed: For `baseline="noise"`.
        progress: Show a progress bar when the map takes longer than three seconds.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        float32 (N, rows, columns) for a heatmap, in [0, 1] for a probability; (N, H, W) for an attribution. float64
        where the network gives float64.

    Raises:
        UsageError: For a window larger than the image, a stride below 1, a region outside of the image, an unknown
            baseline, a bad target, or a network that `engine="incremental"` can't follow.

    >>> total = lambda x: x.flatten(1).sum(1, keepdim=True)      # a model that adds up its pixels …
    >>> image = torch.arange(16.).reshape(1, 1, 4, 4)
    >>> occlusion(total, image, 0, window=2, stride=2, output="score")   # … loses what the patch covers
    tensor([[[110., 102.],
             [ 78.,  70.]]])
    """
    if returns not in ("heatmap", "attribution"):
        raise UsageError(f"returns is 'heatmap' or 'attribution', not {returns!r}.")
    found = occlusion_map(
        model,
        images,
        target,
        window=window,
        stride=stride,
        baseline=baseline,
        output=output,
        region=region,
        engine=engine,
        autocast=autocast,
        batch_size=batch_size,
        memory=memory,
        seed=seed,
        progress=progress,
        score=score,
    )
    if returns == "heatmap":
        return found.heat
    size = (images.shape[-2], images.shape[-1])
    return spread(found.whole[:, None, None] - found.heat, size, *check_window(window, stride, size))


def occlusion_map(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    window: Pair = 16,
    stride: Pair = 8,
    baseline: Baseline = 0.0,
    output: Literal["probability", "score"] = "probability",
    region: Box | None = None,
    engine: Engine = "auto",
    autocast: torch.dtype | None = None,
    batch_size: int | None = None,
    memory: int = MEMORY,
    seed: int = 0,
    progress: bool = False,
    score: Score | None = None,
) -> OcclusionMap:
    """As `occlusion`, which see, with the uncovered output and how it was computed."""
    check_images(images)
    size = (images.shape[-2], images.shape[-1])
    window, stride = check_window(window, stride, size)
    if output not in ("probability", "score"):
        raise UsageError(f"output is 'probability' or 'score', not {output!r}.")
    if engine not in ("auto", "incremental", "full"):
        raise UsageError(f"engine is 'auto', 'incremental' or 'full', not {engine!r}.")
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise UsageError(f"autocast is torch.bfloat16, torch.float16 or None, not {autocast}.")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    if memory < 1:
        raise UsageError(f"memory must be at least 1 MiB, got {memory}.")
    grid = Grid.of(size, window, stride, region)
    link = probabilities if output == "probability" else as_float
    with untouched(model), torch.no_grad():
        images = images.detach()
        cover = baseline_images(images, baseline, sigma=max(window) / 4, seed=seed).expand_as(images)

        def run(inputs: Tensor) -> Tensor:
            return class_scores(model, inputs, score=score)

        def numbers(scores: Tensor, which: Tensor) -> Tensor:
            """The output of the class that is asked about, for some of the images."""
            return link(scores).gather(1, chosen[which][:, None])[:, 0]

        batch = batch_size or fitting(images[0])
        mixed = nullcontext() if autocast is None else torch.autocast(images.device.type, autocast)
        every = torch.arange(len(images), device=images.device)
        with mixed:
            full = in_batches(lambda which: run(images[which]), len(images), batch, images.device)
            chosen = resolve_target(full, target)
            found = occluded_scores(
                run,
                images,
                full,
                cover,
                grid,
                numbers,
                engine=engine,
                batch_size=batch,
                together=batch_size,
                memory=memory * 2**20,
                progress=progress,
            )
        whole = numbers(full, every)
        error = None if autocast is None else _error(run, images, cover, grid, numbers, found.values, whole)
    heat = found.values.new_full((len(images), *positions(size, window, stride)), math.nan)
    rows, columns = grid.which
    heat[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = found.values.unflatten(1, grid.shape)
    return OcclusionMap(heat, whole, found.engine, found.note, error)


def _error(
    run: Callable[[Tensor], Tensor],
    images: Tensor,
    cover: Tensor,
    grid: Grid,
    numbers: Callable[[Tensor, Tensor], Tensor],
    values: Tensor,
    whole: Tensor,
) -> float:
    """Largest difference to the network's own precision at a few positions of each image.

    As a share of the largest effect; infinite where mixed precision gives what is not finite.
    """
    if not (values.isfinite().all() and whole.isfinite().all()):
        return math.inf
    some = torch.linspace(0, len(grid.boxes) - 1, min(5, len(grid.boxes))).round().long().tolist()
    worst = largest = 0.0
    with torch.autocast(images.device.type, enabled=False):  # the run's own, in which a callback looks
        for i in range(len(images)):
            which = torch.tensor([i], device=images.device)
            plain = numbers(run(images[which]), which)
            for position in some:
                exact = numbers(run(grid.covered(images[which], cover[which], [position])), which)
                # What matters is the fall that is drawn, not the level that it falls from.
                fall = (whole[i] - values[i, position]) - (plain - exact)[0]
                worst = max(worst, float(fall.abs()))
            largest = max(largest, float((whole[i] - values[i]).abs().max()))
    return worst / largest if largest else 0.0


def spread(values: Tensor, size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """From values per window (N, rows, columns) to their mean over the windows that cover each pixel, (N, H, W)."""
    total = values.new_zeros(len(values), *size)
    count = values.new_zeros(size)
    boxes = windows(size, window, stride)
    for (top, left, bottom, right), value in zip(boxes, values.flatten(1).T, strict=True):
        if value.isnan().all():
            continue  # outside of the region
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
