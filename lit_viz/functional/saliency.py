"""Saliency maps: which pixels, if changed a little, change the class score most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.batches import fitting, in_batches
from lit_viz.functional.scores import Model, Score, Target, check_images, class_scores, resolve_target
from lit_viz.guard import untouched


def saliency(model: Model, images: Tensor, target: Target = None, *, score: Score | None = None) -> Tensor:
    r"""Absolute gradient of a class score with respect to the pixels, maximum over channels.

    $$M_{ij} = \max_c \left| \partial S_t(x) / \partial x_{cij} \right|$$

    from Simonyan, Vedaldi & Zisserman, *Deep Inside Convolutional Networks* (2014), section 3. $S_t$ is the raw
    score before any softmax, whose gradient would mix in the other classes.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        target: Class index, N indices, or None for the predicted class.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        (N, H, W), non-negative, in units of score per unit of network input. NaN where the network gives NaN.

    Raises:
        UsageError: For a target out of range, input of the wrong shape, or a score that doesn't depend on the
            pixels through differentiable steps.

    >>> linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    >>> with torch.no_grad():
    ...     _ = linear[1].weight.copy_(torch.tensor([[1., -2., 3., -4.], [0., 0., 0., 0.]]))
    >>> saliency(linear, torch.zeros(1, 1, 2, 2), target=0)
    tensor([[[1., 2.],
             [3., 4.]]])
    """
    return input_gradient(model, images, target, score=score).abs().amax(dim=1)


def input_x_gradient(model: Model, images: Tensor, target: Target = None, *, score: Score | None = None) -> Tensor:
    """Pixels times gradient, signed, (N, C, H, W): what each pixel adds to the score of a network without biases.

    The first-order estimate of what changes when a pixel becomes 0 (Shrikumar, Greenside & Kundaje 2017). Arguments
    and errors are those of `saliency`; in units of score.

    >>> linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    >>> image = torch.randn(1, 1, 2, 2)
    >>> torch.allclose(input_x_gradient(linear, image, 1).sum(), linear(image)[0, 1])
    True
    """
    return input_gradient(model, images, target, score=score) * images.detach()


def input_gradient(
    model: Model,
    images: Tensor,
    target: Target = None,
    *,
    score: Score | None = None,
    on_graph: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Gradient of the target's score with respect to the pixels, (N, C, H, W); arguments as in `saliency`.

    Args:
        model: As for `saliency`.
        images: As for `saliency`.
        target: As for `saliency`.
        score: As for `saliency`.
        on_graph: Called with the chosen scores (N, 1) before their gradient is taken, to place hooks in their graph.
    """
    check_images(images)
    with untouched(model):
        pixels = images.detach().clone().requires_grad_(True)
        # A copy goes in: a network that starts with an in-place operation may not write into a leaf.
        scores = class_scores(model, pixels.clone(), score=score)
        chosen = scores.gather(1, resolve_target(scores, target)[:, None])
        if not chosen.requires_grad:
            raise UsageError("the class score does not depend on the pixels through differentiable operations.")
        if on_graph is not None:
            on_graph(chosen)
        (gradient,) = torch.autograd.grad(chosen.sum(), pixels, allow_unused=True)
    if gradient is None:
        raise UsageError("the class score does not depend on the pixels.")
    return gradient.detach()


def scores_and_targets(model: Model, images: Tensor, target: Target, score: Score | None) -> tuple[Tensor, Tensor]:
    """Scores (N, K) of images as they are, in batches, and the class (N,) of each that is asked about."""
    with untouched(model), torch.no_grad():
        scores = in_batches(
            lambda which: class_scores(model, images[which], score=score),
            len(images),
            fitting(images[0]),
            images.device,
        )
    return scores, resolve_target(scores, target)
