"""Which layer a class activation map is taken from, where nobody says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lit_viz.errors import UsageError
from lit_viz.functional.scores import Score, Target, check_images, class_scores, resolve_target
from lit_viz.guard import untouched
from lit_viz.layers import first_tensor, named_layers, spatial_maps

# They only move or thin out what another layer computed.
_PASSIVE = (
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
)


def last_spatial_layer(model: nn.Module, images: Tensor, target: Target = None, *, score: Score | None = None) -> str:
    """The last layer that still knows where things are: the usual one for class activation maps.

    That is the last one called, once in a forward pass, which puts out maps or tokens of more than one place, and on
    several of whose places and channels the score depends. So left out are pooling layers, layers whose channels are
    the classes (segmentation heads, SqueezeNet's last convolution; taken only where there is no other) and, in vision
    transformers, those behind the last attention, on whose patch tokens the score doesn't depend, and the projections
    to queries, keys and values: there it is the norm before that attention.

    Of several branches (Inception on small images) one would tell only a part, so that a layer through which all of
    the image goes is preferred to later ones at its resolution. A layer that puts out several maps (the backbone of a
    detector) is none; the one is, inside of it, on whose map the score depends.

    Args:
        model: Any module.
        images: (N, C, H, W); the first one is tried.
        target: Class index, N indices, or None for the predicted class.
        score: See `lit_viz.functional.class_scores`.

    Returns:
        Its dotted name.

    Raises:
        UsageError: If there is none.
    """
    check_images(images)
    image = images[:1].detach()
    size = (image.shape[2], image.shape[3])
    calls: list[_Call] = []
    counts: dict[str, int] = {}
    inputs: list[Tensor] = []  # of layers that may be the head
    layers = named_layers(model).items()
    names = {module: name for name, module in layers if not isinstance(module, torch.jit.ScriptModule)}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        name, tensor = names[module], first_tensor(output)
        taken = first_tensor(args) if isinstance(module, (nn.Linear, nn.Conv2d)) else None
        if taken is not None and taken.requires_grad:
            inputs.append(taken)
        counts[name] = counts.get(name, 0) + 1
        if tensor is None or tensor.dim() < 3 or len(tensor) != 1 or not tensor.requires_grad or _several(output):
            return
        maps = spatial_maps(tensor, image_size=size)
        if maps is not None and maps.shape[2] * maps.shape[3] > 1 and _lies_on_image(maps, size):
            calls.append(_Call(name, module, tensor))

    with untouched(model):
        handles: list[RemovableHandle] = []
        try:
            for module in names:
                handles.append(module.register_forward_hook(keep))
            pixels = image.clone().requires_grad_(True)
            scores = class_scores(model, pixels.clone(), score=score)
        finally:
            for handle in handles:
                handle.remove()
        chosen = scores.gather(1, resolve_target(scores, _first(target))[:, None])
        once = [call for call in calls if counts[call.name] == 1]
        found = _last_placed(once, calls, chosen, pixels, size)
        if found is None and (features := _into_head_of_zeros(inputs, chosen)) is not None:
            found = _last_placed(once, calls, features, pixels, size)
        if found is not None:
            return found
    raise UsageError(
        f"{type(model).__name__} has no layer with places on which the score depends, for a class activation map; "
        f"name one with layer=..., or take saliency or occlusion."
    )


def _last_placed(
    once: list[_Call], calls: list[_Call], chosen: Tensor, pixels: Tensor, size: tuple[int, int]
) -> str | None:
    """Of the layers called once the last one on several of whose places `chosen` depends, see `last_spatial_layer`."""
    branch, spare, finest = None, None, 0
    for call in reversed(once):
        if _is_passive(call, calls):
            continue
        shape = spatial_maps(call.tensor, image_size=size).shape
        if branch is not None and (call.tensor.dim() != 4 or shape[2] * shape[3] > finest):
            break
        if branch is not None and _is_bypassed(call.tensor, chosen, pixels):
            continue
        (gradient,) = torch.autograd.grad(chosen.sum(), call.tensor, retain_graph=True, allow_unused=True)
        places, channels = (0, 0) if gradient is None else _reach(spatial_maps(gradient, image_size=size))
        if places <= 1:
            continue
        # The outermost name of what is the same tensor: "layer4", not "layer4.1.relu".
        same = [c.name for c in once if c.tensor is call.tensor]
        name = min(reversed(same), key=lambda name: name.count("."))
        if channels == 1 or (call.tensor.dim() == 3 and isinstance(call.module, nn.Linear)):
            spare = spare or name
        elif branch is not None or call.tensor.dim() == 3 or not _carries_around(call.tensor, chosen, pixels):
            return name
        else:
            branch, finest = name, shape[2] * shape[3]
    return branch or spare


def _into_head_of_zeros(inputs: list[Tensor], chosen: Tensor) -> Tensor | None:
    """A number that depends on all that goes into the head, where its weights are zero and no gradient comes through.

    Vision transformers start like that; once they have learned a step the same layer is the last one.
    """
    for taken in reversed(inputs):
        (gradient,) = torch.autograd.grad(chosen.sum(), taken, retain_graph=True, allow_unused=True)
        if gradient is not None:
            noise = torch.randn(taken.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
            return None if gradient.any() else (taken * noise.to(taken)).sum()
    return None


@dataclass(frozen=True)
class _Call:
    """What a layer put out."""

    name: str
    module: nn.Module
    tensor: Tensor


def _is_passive(call: _Call, calls: list[_Call]) -> bool:
    """Whether a layer that computes nothing new made that tensor, perhaps the last one inside of a container."""
    first = next(c for c in calls if c.tensor is call.tensor)
    return isinstance(first.module, _PASSIVE) or type(first.module).__name__ == "Permute"


def _several(output: Any) -> bool:
    """Whether an output holds more than one map."""
    maps = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.dim() > 2]
    return sum(leaf.is_floating_point() for leaf in maps) > 1


def _lies_on_image(maps: Tensor, size: tuple[int, int]) -> bool:
    """Whether maps (N, C, h, w) have about the shape of the image; queries (N, heads, tokens, features) have not."""
    return 0.5 <= maps.shape[2] * size[1] / (maps.shape[3] * size[0]) <= 2


def _is_bypassed(tensor: Tensor, output: Tensor, pixels: Tensor) -> bool:
    """Whether the graph of `output` has a way to the pixels around a layer's output."""
    wall, start = tensor.grad_fn, output.grad_fn
    # Python's objects for nodes must stay alive, or the same node comes as another object.
    seen, stack = {wall, start}, [start] * (start is not wall)
    while stack:
        for node, _ in stack.pop().next_functions:
            if getattr(node, "variable", None) is pixels:
                return True
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    return False


def _carries_around(tensor: Tensor, output: Tensor, pixels: Tensor) -> bool:
    """Whether such a way carries anything: that of a detector's box over another level of its pyramid does not."""
    if not _is_bypassed(tensor, output, pixels):
        return False
    handle = tensor.register_hook(torch.zeros_like)
    try:
        (gradient,) = torch.autograd.grad(output.sum(), pixels, retain_graph=True)
    finally:
        handle.remove()
    return bool(gradient.any())


def _reach(maps: Tensor | None) -> tuple[int, int]:
    """How many places and how many channels a gradient (1, C, h, w) reaches."""
    if maps is None:
        return 0, 0
    used = maps[0] != 0
    return int(used.any(dim=0).sum()), int(used.flatten(1).any(dim=1).sum())


def _first(target: Target) -> Target:
    """The target of the first image."""
    if target is None or isinstance(target, int):
        return target
    values = torch.as_tensor(target)
    return int(values if values.dim() == 0 else values[0])
