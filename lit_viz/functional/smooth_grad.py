"""SmoothGrad: the mean gradient of noisy copies of an image, in which the grain averages out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.saliency import input_gradient, scores_and_targets
from lit_viz.functional.scores import Model, Score, Target, check_images


def smooth_grad(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    samples: int = 25,
    noise: float = 0.15,
    statistic: Literal["mean", "square", "variance"] = "mean",
    absolute: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
    score: Score | None = None,
    progress: bool = False,
) -> Tensor:
    r"""A statistic of the gradient over noisy copies of the image.

    $$\frac1n \sum_{i=1}^n \nabla S_t(x + \varepsilon_i), \qquad \varepsilon_i \sim \mathcal N(0, \sigma^2)$$

    from Smilkov, Thorat, Kim, Viégas & Wattenberg, *SmoothGrad: Removing Noise by Adding Noise* (2017), with σ a
    fraction of the image's range, max − min. For a map take the largest absolute value over channels, as in `saliency`.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        target: Class index, N indices, or None for the class predicted without noise.
        samples: Noisy copies of each image.
        noise: σ as a fraction of the range of each image; 0.1 to 0.2 in the paper.
        statistic: "mean"; "square", the mean of squared gradients (Hooker et al. 2019); or "variance" of the gradients
            (Adebayo et al. 2018), which sums squares over `samples`.
        absolute: Of absolute gradients instead.
        batch_size: Copies in one pass; by default as many as fit 16 images of 3×224×224, so that memory is bounded
            whatever `samples` is. Halved whenever memory runs out.
        seed: Of the noise, which is the same for every image, so that a map depends on neither batch.
        score: See `lit_viz.functional.class_scores`.
        progress: Show a progress bar when it takes longer than three seconds.

    Returns:
        (N, C, H, W), in units of score per unit of network input (squared, for the other two statistics).

    Raises:
        UsageError: As `saliency`; for less than one sample or negative noise.
    """
    check_images(images)
    check_at_least("samples", samples, 1)
    check_choice("statistic", statistic, ("mean", "square", "variance"))
    if not noise >= 0:
        raise UsageError(f"noise is a fraction of the image's range, at least 0; got {noise}.")
    images = images.detach()
    _, chosen = scores_and_targets(model, images, target, score)
    flat = images.flatten(1)
    sigma = noise * (flat.amax(dim=1) - flat.amin(dim=1)).reshape(-1, 1, 1, 1)
    first, second = torch.zeros_like(images), torch.zeros_like(images)

    def run(indices: Tensor) -> Tensor:
        which = indices // samples
        noisy = images[which] + sigma[which] * _noise(indices % samples, images.shape[1:], seed).to(images)
        gradients = input_gradient(model, noisy, chosen[which], score=score)
        gradients = gradients.abs() if absolute else gradients
        # Before anything is added: where memory runs out the copies come once more.
        squares = None if statistic == "mean" else gradients.square()
        first.index_add_(0, which, gradients)
        if squares is not None:
            second.index_add_(0, which, squares)
        return indices

    in_batches(
        run,
        len(images) * samples,
        batch_size or fitting(images[0]),
        images.device,
        description="SmoothGrad",
        unit="copy",
        progress=progress,
    )
    mean = first / samples
    if statistic == "mean":
        return mean
    square = second / samples
    return square if statistic == "square" else (square - mean.square()).clamp(min=0)


def _noise(copies: Tensor, shape: torch.Size, seed: int) -> Tensor:
    """Standard normal noise (copies, C, H, W), float32 on the CPU; each copy by a generator of its own."""
    # The generator takes 32 bits; a prime keeps the copies of different seeds apart.
    seeds = [(seed * 1_000_003 + i) % 2**32 for i in copies.tolist()]
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=torch.float32) for s in seeds]
    )
