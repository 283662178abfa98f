"""Class activation maps: where in a layer the evidence for a class lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError
from lit_viz.functional.guided import guided_backprop
from lit_viz.functional.scores import Score, Target, check_images, class_scores, resolve_target
from lit_viz.functional.spatial_layer import last_spatial_layer
from lit_viz.functional.units import the_call
from lit_viz.guard import untouched
from lit_viz.layers import find_layer, first_tensor, spatial_maps

Weighting = Callable[[Tensor, Tensor], Tensor]
"""From activations and gradients, (N, C, h, w) each, to the evidence (N, C, h, w) that is summed over channels."""


def grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    signed: bool = False,
    score: Score | None = None,
) -> Tensor:
    r"""Grad-CAM: channels of a layer, weighted by how much the class score depends on each of them.

    $$L = \mathrm{ReLU}\Bigl(\sum_k \alpha_k A^k\Bigr), \qquad
      \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial S_t}{\partial A^k_{ij}}$$

    from Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra, *Grad-CAM* (2017). Sharp about the class, coarse about the
    place. Since gradients are averaged over places first, it can light up places that the score does not use;
    `hires_cam` does not.

    Args:
        model: Maps (N, C, H, W) to (N, K) scores; with `score`, to anything. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        target: Class index, N indices, or None for the predicted class.
        layer: Dotted name of a layer that puts out maps (N, C, h, w) or (N, h, w, C), or tokens, which are folded
            back into a map without the class token; of several maps in its output the first is taken. By default
            `last_spatial_layer`.
        signed: Keep what speaks against the class, instead of the ReLU.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        (N, h, w) at the resolution of the layer, non-negative unless `signed`; `upsampled` brings it to the image's.
        All zeros where the layer holds no evidence for the class.

    Raises:
        UsageError: As `saliency`; for an unknown layer, one that puts out no maps, that is called several times, on
            which the score doesn't depend, or only through its class token.
    """
    return _cam(lambda a, g: g.mean(dim=(2, 3), keepdim=True) * a, model, images, target, layer, signed, score)


def hires_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    signed: bool = False,
    score: Score | None = None,
) -> Tensor:
    r"""HiResCAM: activations times gradients, place by place.

    $$L = \mathrm{ReLU}\Bigl(\sum_k \frac{\partial S_t}{\partial A^k} \odot A^k\Bigr)$$

    from Draelos & Carin, *Use HiResCAM Instead of Grad-CAM for Faithful Explanations of Convolutional Neural Networks*
    (2020). For the last layer of a network that ends in a single linear layer (behind an average pool or none) the
    signed map adds up to the score, less the bias: it shows exactly the places that raised it. Behind an average pool
    it equals Grad-CAM up to a factor. Arguments, result and errors are those of `grad_cam`.
    """
    return _cam(lambda a, g: g * a, model, images, target, layer, signed, score)


def layer_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    signed: bool = False,
    score: Score | None = None,
) -> Tensor:
    r"""LayerCAM: activations weighted by the positive gradient at their own place, for layers of any depth.

    $$L = \mathrm{ReLU}\Bigl(\sum_k \mathrm{ReLU}\Bigl(\frac{\partial S_t}{\partial A^k}\Bigr) \odot A^k\Bigr)$$

    from Jiang, Zhang, Hou, Cheng & Wei, *LayerCAM: Exploring Hierarchical Class Activation Maps for Localization*
    (2021). In shallow layers, where Grad-CAM's mean over places says little, it gives detailed maps. Arguments, result
    and errors are those of `grad_cam`.
    """
    return _cam(lambda a, g: g.clamp(min=0) * a, model, images, target, layer, signed, score)


def guided_grad_cam(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str | None = None,
    score: Score | None = None,
) -> Tensor:
    """Guided Grad-CAM: the detail of guided backprop where Grad-CAM sees the class (Selvaraju et al. 2017).

    Arguments and errors are those of `grad_cam` and `guided_backprop`.

    Returns:
        (N, C, H, W), guided backprop times the map of `grad_cam`, enlarged to its nearest place.
    """
    if target is None:
        with untouched(model), torch.no_grad():
            target = class_scores(model, images.detach(), score=score).argmax(dim=1)
    heat = grad_cam(model, images, target, layer=layer, score=score)
    large = F.interpolate(heat[:, None], size=images.shape[-2:], mode="nearest")
    return large * guided_backprop(model, images, target, score=score)


def upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, h, w) at the size of the image, (N, H, W), bilinear."""
    return F.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def _cam(
    weighted: Weighting,
    model: nn.Module,
    images: Tensor,
    target: Target,
    layer: str | None,
    signed: bool,
    score: Score | None,
) -> Tensor:
    check_images(images)
    layer = layer or last_spatial_layer(model, images, target, score=score)
    activations, gradients = activations_and_gradients(model, images, target, layer=layer, score=score)
    heat = weighted(activations, gradients).sum(dim=1)
    return heat if signed else heat.clamp(min=0)


def activations_and_gradients(
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    layer: str,
    score: Score | None = None,
) -> tuple[Tensor, Tensor]:
    """What a layer puts out, and the gradient of the target's score with respect to it.

    The graph starts at the layer: what lies before it costs a forward pass without one.

    Args:
        model: As for `grad_cam`, like all others.
        images: (N, C, H, W).
        target: Class index, N indices, or None for the predicted class.
        layer: Dotted name.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        Activations and gradients, (N, C, h, w) each; tokens are folded into maps, without the class token.

    Raises:
        UsageError: As `grad_cam`.
    """
    name, module = find_layer(model, layer)
    size = (images.shape[2], images.shape[3])
    leaves: list[Tensor] = []

    def start_here(_: nn.Module, args: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None:
            return None
        leaf = tensor.detach().requires_grad_(True)
        leaves.append(leaf)
        torch.set_grad_enabled(True)
        # A copy goes on: an in-place ReLU that follows may not write into what is kept.
        return _replaced(output, tensor, leaf.clone())

    with untouched(model), torch.no_grad():
        handle = module.register_forward_hook(start_here)
        try:
            scores = class_scores(model, images.detach().clone(), score=score)
        finally:
            handle.remove()
        leaf = the_call(leaves, name, None)
        chosen = scores.gather(1, resolve_target(scores, target)[:, None])
        gradient = None
        if chosen.requires_grad:
            (gradient,) = torch.autograd.grad(chosen.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise UsageError(f"the class score does not depend on layer '{name}' through differentiable operations.")
    if len(leaf) != len(images):
        raise UsageError(f"layer '{name}' puts out {len(leaf)} entries for {len(images)} images.")
    maps = [spatial_maps(value.detach(), image_size=size) for value in (leaf, gradient)]
    if maps[0] is None or maps[1] is None:
        raise UsageError(
            f"layer '{name}' puts out {tuple(leaf.shape)}, which has no places of the image; name a layer with maps."
        )
    if leaf.dim() == 3 and gradient.any() and not maps[1].any():
        raise UsageError(
            f"behind layer '{name}' the class score depends on the class token alone, so that patch tokens say nothing "
            f"about it; name the norm before the last attention, which is the default."
        )
    return maps[0], maps[1]


def _replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """The same output with another tensor in it."""
    if output is old:
        return new
    if isinstance(output, dict):
        return type(output)((k, _replaced(v, old, new)) for k, v in output.items())
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_replaced(v, old, new) for v in output))
    if isinstance(output, (list, tuple)):
        return type(output)(_replaced(v, old, new) for v in output)
    return output
