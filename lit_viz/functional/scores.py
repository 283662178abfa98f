"""From whatever a network returns to the score of one class per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_viz.errors import UsageError

Model = Callable[[Tensor], Any]
Score = Callable[[Any], Tensor]
Target = int | Sequence[int] | Tensor | None


def class_scores(model: Model, images: Tensor, *, score: Score | None = None) -> Tensor:
    """Runs a network and returns its raw class scores (logits).

    Args:
        model: Maps (N, C, H, W) to (N, K), to (N,) for a single score, or, with `score`, to anything.
        images: (N, C, H, W).
        score: Turns what the model returns into (N, K), for instance `lambda out: out["logits"]`, or
            `lambda out: out["out"].mean((2, 3))` for the per-pixel scores of a segmentation network (their sum is as
            good for gradients, but its softmax is always 1 or 0).

    Returns:
        (N, K).

    Raises:
        UsageError: If the output is no such tensor; the message says how to give `score`.
    """
    output = model(images)
    scores = output if score is None else score(output)
    if not isinstance(scores, Tensor):
        raise UsageError(f"{_described(model, output)}; pass score=..., a function from that to (N, classes).")
    if scores.is_complex():
        raise UsageError("the scores are complex numbers; pass score=..., a function from them to real ones.")
    if scores.dim() == 1 and len(scores) == len(images):
        scores = scores.unsqueeze(1)
    if scores.dim() != 2 or len(scores) != len(images):
        raise UsageError(
            f"the scores have shape {tuple(scores.shape)} for {len(images)} images; (N, classes) is needed: "
            f"pass score=..., a function from the model's output to that."
        )
    return scores


def resolve_target(scores: Tensor, target: Target) -> Tensor:
    """One class index per image.

    Args:
        scores: (N, K).
        target: A class index for all images, N indices, or None for the class with the highest score.

    Returns:
        (N,) int64, on the device of `scores`.

    Raises:
        UsageError: If an index is out of range or their number is not N.
    """
    count, classes = scores.shape
    if target is None:
        return scores.argmax(dim=1)
    indices = torch.as_tensor(target, device=scores.device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise UsageError(f"target must hold class indices (integers), got {indices.dtype}.")
    # A copy: autograd keeps indices, and refuses those made in inference mode.
    indices = indices.to(torch.int64, copy=True)
    if indices.dim() == 0:
        indices = indices.expand(count)
    if indices.shape != (count,):
        raise UsageError(f"target has shape {tuple(indices.shape)} for {count} images; give one index or {count}.")
    bad = (indices < 0) | (indices >= classes)
    if bad.any():
        raise UsageError(
            f"class index {int(indices[bad][0])} is out of range: the model has {classes} classes, 0 to {classes - 1}."
        )
    return indices


def probabilities(scores: Tensor) -> Tensor:
    """Softmax over (N, K) scores, at least in float32; the logistic function where K is 1.

    Scores that are probabilities already (none negative, and each row adds up to 1) stay as they are.
    """
    scores = as_float(scores)
    if scores.shape[1] > 1 and bool((scores >= 0).all() and ((scores.sum(dim=1) - 1).abs() < 1e-3).all()):
        return scores
    return scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(dim=1)


def as_float(scores: Tensor) -> Tensor:
    """Scores at least in float32."""
    return scores if scores.dtype == torch.float64 else scores.float()


def check_images(images: Tensor) -> Tensor:
    """Returns `images` if they are a floating-point batch (N, C, H, W); says what to do otherwise."""
    if not isinstance(images, Tensor) or images.dim() != 4:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        hint = "; add the batch dimension with images[None]" if isinstance(images, Tensor) and images.dim() == 3 else ""
        raise UsageError(f"images must be a tensor (N, C, H, W), got {got}{hint}.")
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}; give them as the network takes them, as floating point.")
    if images.numel() == 0:
        raise UsageError(f"images are empty: {tuple(images.shape)}.")
    return images


def _described(model: Model, output: Any) -> str:
    name = type(model).__name__
    if isinstance(output, Mapping):
        return f"{name} returned a dict with keys {list(output)}"
    if isinstance(output, (tuple, list)):
        return f"{name} returned a {type(output).__name__} of {len(output)}"
    return f"{name} returned {type(output).__name__}"
