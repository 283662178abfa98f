"""Insertion and deletion: does the score rise and fall with the pixels that a map calls important?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError, check_at_least, check_choice
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


@dataclass(frozen=True)
class Curves:
    """What a network says while pixels come or go in the order of a map.

    Attributes:
        fraction: (steps + 1,), share of the pixels that have come or gone, from 0 to 1.
        insertion: (N, steps + 1), the output as the most important pixels come first.
        deletion: (N, steps + 1), the output as the most important pixels go first.
    """

    fraction: Tensor
    insertion: Tensor
    deletion: Tensor

    @property
    def insertion_area(self) -> Tensor:
        """Area under each insertion curve by the trapezoidal rule, (N,); larger is better."""
        return torch.trapezoid(self.insertion, self.fraction, dim=1)

    @property
    def deletion_area(self) -> Tensor:
        """Area under each deletion curve, (N,); smaller is better."""
        return torch.trapezoid(self.deletion, self.fraction, dim=1)


def insertion_deletion(
    model: Model,
    images: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    steps: int = 50,
    start: Baseline = "blur",
    end: Baseline = 0.0,
    output: Literal["probability", "score"] = "probability",
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
    score: Score | None = None,
) -> Curves:
    r"""The output of a network as pixels come, or go, the most important ones of a map first.

    From Petsiuk, Das & Saenko, *RISE: Randomized Input Sampling for Explanation of Black-box Models* (2018). With
    $m_k$ the mask of the first $n_k = \lfloor k P / K \rfloor$ of $P$ pixels after $k$ of $K$ steps,

    $$I_k = f\bigl(m_k \odot x + (1 - m_k) \odot x_\text{start}\bigr), \qquad
      D_k = f\bigl((1 - m_k) \odot x + m_k \odot x_\text{end}\bigr)$$

    A faithful map brings $I$ up and $D$ down early. As in that paper insertion starts from a blurred image, where
    pixels that come on a flat one would have sharp edges of their own, and deletion ends in a flat image, since a
    network can still make out what is blurred.

    Pixels of equal value come in a random order that `seed` decides, so that a map without a say (constant, or zero
    over large parts) gets what chance gives, not what the order of rows happens to give. Compare with maps of noise:
    single pixels taken out at random are an unusual texture, and some networks lose the class in it sooner than by
    losing the object, and then a low deletion area says little.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        maps: (N, H, W), larger for more important, in any unit: only the order of its pixels counts.
        target: Class index, N indices, or None for the class predicted for the whole image.
        steps: In how many steps the pixels come, at most H · W.
        start: Where insertion starts, in units of network input: a number, a tensor that broadcasts to `images`, or
            "blur" (Gaussian, σ a tenth of the longer side), "mean" or "noise", of the image itself.
        end: Where deletion ends, likewise; 0 is the mean colour of a normalised data set.
        output: The class probability (softmax), or the raw score.
        batch_size: Copies in one forward pass; by default as many as fit 16 images of 3×224×224, so that memory is
            bounded whatever `steps` is. Halved whenever memory runs out.
        seed: Of the order among equals, the same for all images, and of the noise.
        progress: Show a progress bar when it takes longer than three seconds.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        The curves, on the device of `images`; in [0, 1] for a probability.

    Raises:
        UsageError: For maps of another size than the images or with values that are not finite, fewer steps than one or
            more than pixels, a baseline that doesn't fit, or a bad target.

    >>> total = lambda x: x.flatten(1).sum(1, keepdim=True)      # a model that adds up its pixels
    >>> image = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    >>> curves = insertion_deletion(total, image, image[:, 0], 0, steps=4, start=0.0, output="score")
    >>> curves.insertion, curves.deletion
    (tensor([[ 0.,  4.,  7.,  9., 10.]]), tensor([[10.,  6.,  3.,  1.,  0.]]))
    >>> curves.insertion_area, curves.deletion_area
    (tensor([6.2500]), tensor([3.7500]))
    """
    check_images(images)
    check_at_least("steps", steps, 1)
    check_choice("output", output, ("probability", "score"))
    if batch_size is not None:
        check_at_least("batch_size", batch_size, 1)
    size = images.shape[-2:]
    pixels = size[0] * size[1]
    if steps > pixels:
        raise UsageError(f"{steps} steps are more than the {pixels} pixels of an image; take at most {pixels}.")
    maps = _checked(maps, images)
    link = probabilities if output == "probability" else as_float
    with untouched(model), torch.no_grad():
        images = images.detach()
        ends = [baseline_images(images, b, sigma=max(size) / 10, seed=seed) for b in (start, end)]
        batch_size = batch_size or fitting(images[0])

        def whole(which: Tensor) -> Tensor:
            return class_scores(model, images[which], score=score)

        full = in_batches(whole, len(images), batch_size, images.device)
        chosen = resolve_target(full, target)
        places = _places(maps, seed)
        counts = torch.arange(steps + 1, device=images.device) * pixels // steps

        def mixed(copies: Tensor) -> Tensor:
            """The output for some of the copies, numbered by game, image and step."""
            pairs, step = copies // (steps + 1), copies % (steps + 1)
            deletes, which = pairs // len(images) == 1, pairs % len(images)
            come = places[which] < counts[step][:, None, None]
            shown = (come ^ deletes[:, None, None])[:, None]
            other = torch.where(deletes[:, None, None, None], ends[1][which], ends[0][which])
            scores = class_scores(model, torch.where(shown, images[which], other), score=score)
            return link(scores).gather(1, chosen[which][:, None])[:, 0]

        values = in_batches(
            mixed,
            2 * len(images) * (steps + 1),
            batch_size,
            images.device,
            description="insertion and deletion",
            unit="copy",
            progress=progress,
        )
    insertion, deletion = values.reshape(2, len(images), steps + 1)
    return Curves(counts.to(values) / pixels, insertion, deletion)


def _checked(maps: Tensor, images: Tensor) -> Tensor:
    """Maps that can be put in order, on the device of the images."""
    wanted = (len(images), *images.shape[-2:])
    if not isinstance(maps, Tensor) or maps.shape != wanted:
        got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise UsageError(f"maps must be a tensor {wanted}, one map of the images' size for each, got {got}.")
    bad = ~torch.isfinite(maps).flatten(1).all(dim=1)
    if bad.any():
        raise UsageError(f"map {int(bad.nonzero()[0])} holds NaN or infinite values, so its pixels have no order.")
    return maps.detach().to(images.device)


def _places(maps: Tensor, seed: int) -> Tensor:
    """The place of each pixel in the order of its map, (N, H, W) from 0; equals in a random order."""
    flat = maps.flatten(1)
    shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
    order = shuffle[flat[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    numbers = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, numbers).reshape(maps.shape)
