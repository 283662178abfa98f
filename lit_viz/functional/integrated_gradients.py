"""Integrated gradients: the change of a score from a baseline to the image, shared out among the pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lit_viz.errors import check_at_least
from lit_viz.functional.baselines import baseline_like
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.saliency import input_gradient, scores_and_targets
from lit_viz.functional.scores import Model, Score, Target, check_images, class_scores
from lit_viz.guard import untouched


def integrated_gradients(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    baseline: float | Tensor = 0.0,
    steps: int = 50,
    batch_size: int | None = None,
    score: Score | None = None,
    progress: bool = False,
) -> Tensor:
    r"""Pixels times the mean gradient on the straight way from a baseline $x'$ to the image $x$.

    $$A = (x - x') \odot \int_0^1 \nabla S_t\bigl(x' + a\,(x - x')\bigr)\,da, \qquad \sum A = S_t(x) - S_t(x')$$

    from Sundararajan, Taly & Yan, *Axiomatic Attribution for Deep Networks* (2017). The integral is a Gauss–Legendre
    sum; how far the second equation is from true, `completeness_error` says: raise `steps` until it is small.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        target: Class index, N indices, or None for the class predicted for the image.
        baseline: Where the way starts, in units of network input: a number, or a tensor that broadcasts to `images`.
            0 is the mean colour of a normalised data set.
        steps: Points on the way.
        batch_size: Copies in one pass; by default as many as fit 16 images of 3×224×224, so that memory is bounded
            whatever `steps` is. Halved whenever memory runs out.
        score: See `lit_viz.functional.class_scores`.
        progress: Show a progress bar when it takes longer than three seconds.

    Returns:
        (N, C, H, W), signed, in units of score.

    Raises:
        UsageError: As `saliency`; for less than one step, or a baseline of the wrong shape.

    >>> linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
    >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> torch.allclose(integrated_gradients(linear, image, 0), linear[1].weight.reshape(1, 1, 2, 2) * image)
    True
    """
    check_images(images)
    check_at_least("steps", steps, 1)
    images = images.detach()
    start = baseline_like(images, baseline)
    _, chosen = scores_and_targets(model, images, target, score)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    at = torch.tensor((1 + nodes) / 2, dtype=torch.float64).to(images)
    weight = torch.tensor(weights / 2, dtype=torch.float64).to(images)
    total = torch.zeros_like(images)

    def run(indices: Tensor) -> Tensor:
        which, step = indices // steps, indices % steps
        fraction = at[step].reshape(-1, 1, 1, 1)
        points = start[which] + fraction * (images - start)[which]
        gradients = input_gradient(model, points, chosen[which], score=score)
        total.index_add_(0, which, gradients * weight[step].reshape(-1, 1, 1, 1))
        return indices

    in_batches(
        run,
        len(images) * steps,
        batch_size or fitting(images[0]),
        images.device,
        description="integrated gradients",
        unit="point",
        progress=progress,
    )
    return total * (images - start)


def completeness_error(
    model: Model,
    images: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    baseline: float | Tensor = 0.0,
    score: Score | None = None,
) -> Tensor:
    r"""How much of a score's change an attribution leaves unexplained.

    $$e = \frac{\left| \sum A - (S_t(x) - S_t(x')) \right|}{\left| S_t(x) - S_t(x') \right|}$$

    Args:
        model: As for `integrated_gradients`, like all others.
        images: (N, C, H, W).
        attributions: (N, C, H, W).
        target: Class index, N indices, or None for the predicted class.
        baseline: That of the attributions.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        (N,), 0 where nothing is missing; infinite where the score does not change, but the attributions do not add up
        to nothing.
    """
    images = images.detach()
    scores, chosen = scores_and_targets(model, images, target, score)
    with untouched(model), torch.no_grad():
        other = class_scores(model, baseline_like(images, baseline).clone(), score=score)
    change = (scores - other).gather(1, chosen[:, None])[:, 0]
    missing = (attributions.flatten(1).sum(dim=1) - change).abs()
    return torch.where(missing == 0, 0.0, missing / change.abs())
