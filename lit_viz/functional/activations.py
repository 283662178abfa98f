"""Activation maps: what each channel of a layer responds to, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from lit_viz.errors import UsageError
from lit_viz.functional.scores import check_images
from lit_viz.functional.units import the_call
from lit_viz.guard import untouched
from lit_viz.layers import as_maps, capture, first_tensor, named_layers, spatial_maps


@dataclass(frozen=True)
class LayerMaps:
    """What a layer puts out for some images.

    Attributes:
        maps: (N, C, h, w), channels at the places of the image.
        extra: (N, E, C), tokens that stand for no place: the class token first, then registers; E is 0 without any.
    """

    maps: Tensor
    extra: Tensor


def activations(model: nn.Module, images: Tensor, layer: str, *, call: int | None = None) -> Tensor:
    """Activation maps of a layer.

    Args:
        model: Any module. Left as it was found.
        images: (N, C, H, W), as the network takes them.
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        call: Which call of the layer, where a forward pass calls it several times; −1 for the last.

    Returns:
        (N, channels, h, w). Tokens of a vision transformer are folded into maps, without class and register tokens,
        which `layer_maps` gives apart; (N, h, w, channels) is permuted; vectors have a single place; tokens that lie on
        no grid have one row each.

    Raises:
        UsageError: If there is no such layer, it doesn't take part in the forward pass or does so several times (and
            `call` doesn't say which), or its output has no channels or isn't one entry per image.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> activations(net, torch.zeros(5, 1, 4, 4), "1").shape, activations(net, torch.zeros(5, 1, 4, 4), "3").shape
    (torch.Size([5, 4, 2, 2]), torch.Size([5, 2, 1, 1]))
    """
    (found,) = layer_maps(model, images, [layer], call=call).values()
    return found.maps


def layer_maps(
    model: nn.Module, images: Tensor, layers: Sequence[str], *, call: int | None = None
) -> dict[str, LayerMaps]:
    """Maps of several layers from one forward pass, with the class token apart.

    Args:
        model: As for `activations`, like all others.
        images: (N, C, H, W).
        layers: Dotted names.
        call: Which call of the layers.

    Returns:
        By full layer name.

    Raises:
        UsageError: As `activations`.
    """
    check_images(images)
    # Copies at once: a following in-place ReLU would change what is read here.
    with untouched(model), torch.no_grad(), capture(model, layers, reduce=torch.clone) as values:
        model(images.detach().clone())
    size = (images.shape[2], images.shape[3])
    return {name: _folded(the_call(calls, name, call), name, len(images), size) for name, calls in values.items()}


def telling_layers(model: nn.Module, images: Tensor, count: int = 4) -> list[str]:
    """Some layers worth looking at, spread over the depth of a network.

    Candidates are layers that are called once and put out maps or tokens of more than one place: ReLUs and the blocks
    that end in one, whose activations are never negative, or, where there are less than two of these, the most frequent
    kind of block.

    Args:
        model: Any module.
        images: (N, C, H, W); the first one is tried.
        count: How many layers at most, first and last among them.

    Returns:
        Dotted names in the order of their calls.

    Raises:
        UsageError: If no layer has places.
    """
    image = check_images(images)[:1].detach()
    size = (image.shape[2], image.shape[3])
    layers = named_layers(model)
    names = {module: name for name, module in layers.items() if not isinstance(module, torch.jit.ScriptModule)}
    inputs: dict[nn.Module, bool] = {}  # whether negative values go in
    calls: dict[str, list[_Seen]] = {}

    def before(module: nn.Module, args: Any) -> None:
        tensor = first_tensor(args)
        inputs[module] = tensor is None or bool((tensor < 0).any())

    def after(module: nn.Module, args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        maps = None if tensor is None or len(tensor) != 1 else spatial_maps(tensor, image_size=size)
        placed = maps is not None and maps.shape[2] * maps.shape[3] > 1
        # Pooling, padding and dropout behind a ReLU only hand on what it did; a block does more.
        rectified = placed and not bool((tensor < 0).any()) and (inputs[module] or any(module.children()))
        calls.setdefault(names[module], []).append(_Seen(tensor, placed, rectified))

    with untouched(model), torch.no_grad():
        handles: list[RemovableHandle] = []
        try:
            for module in names:
                handles.append(module.register_forward_pre_hook(before))
                handles.append(module.register_forward_hook(after))
            model(image.clone())
        finally:
            for handle in handles:
                handle.remove()
    once = {name: seen[0] for name, seen in calls.items() if len(seen) == 1 and seen[0].placed}
    if not once:
        raise UsageError(f"{type(model).__name__} calls no layer (once) that has maps; name the layers to look at.")
    # A block and the ReLU at its end put out the same tensor: the outermost name.
    outermost: dict[int, str] = {}
    for name, seen in once.items():
        if seen.rectified:
            key = id(seen.tensor)
            outermost[key] = min(outermost.get(key, name), name, key=lambda n: n.count("."))
    chosen = list(outermost.values()) if len(outermost) > 1 else _blocks({name: layers[name] for name in once})
    picks = np.unique(np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int))
    return [chosen[i] for i in picks]


@dataclass(frozen=True)
class _Seen:
    """A call of a layer: what it put out, whether that has places, and whether it is rectified."""

    tensor: Tensor | None
    placed: bool
    rectified: bool


def _blocks(layers: dict[str, nn.Module]) -> list[str]:
    """Layers of the kind that has most, the outer one of two that have equally many; all of them without any blocks."""
    kinds: dict[type, list[str]] = {}
    for name, module in layers.items():
        if any(module.children()) and type(module) is not nn.Sequential and not isinstance(module, _ConvNd):
            kinds.setdefault(type(module), []).append(name)
    if not kinds:
        return list(layers)
    return max(kinds.values(), key=lambda found: (len(found), -found[0].count(".")))


def _folded(values: Tensor, name: str, count: int, size: tuple[int, int]) -> LayerMaps:
    if values.dim() == 0 or len(values) != count:
        entries = "a single number" if values.dim() == 0 else f"{len(values)} entries"
        raise UsageError(f"layer '{name}' puts out {entries} for {count} images.")
    maps = spatial_maps(values, image_size=size)
    if maps is None:
        maps = as_maps(values, image_size=size)
        return LayerMaps(maps, maps.new_zeros(count, 0, maps.shape[1]))
    places = maps.shape[2] * maps.shape[3]
    extra = values[:, : values.shape[1] - places] if values.dim() == 3 else maps.new_zeros(count, 0, maps.shape[1])
    return LayerMaps(maps, extra)
