"""The names that papers have for the layers of VGG networks: relu2_2, conv1_1, pool3."""

from __future__ import annotations

import re

from torch import nn
from torchvision.models import VGG

from lit_viz.errors import UsageError, nearest

_NAME = re.compile(r"(conv|norm|relu)\d+_\d+|pool\d+")
_KINDS = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "relu"}


def vgg_names(model: nn.Module) -> dict[str, str]:
    """Dotted names of layers by the names that papers have for them.

    Layers between two poolings are a block: relu3_2 is the second ReLU of the third block, pool3 the pooling behind.

    Args:
        model: A VGG network of torchvision's, or a module with one inside.

    Returns:
        In the order of the layers; empty for other networks.

    >>> from torchvision.models import vgg11
    >>> vgg_names(vgg11())["relu3_2"]
    'features.9'
    """
    found = next(((name, module) for name, module in model.named_modules() if isinstance(module, VGG)), None)
    if found is None:
        return {}
    prefix = f"{found[0]}." if found[0] else ""
    names: dict[str, str] = {}
    block, index = 1, 0
    for i, layer in enumerate(found[1].features):
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            names[f"pool{block}"] = f"{prefix}features.{i}"
            block, index = block + 1, 0
            continue
        index += isinstance(layer, nn.Conv2d)
        kind = next((kind for base, kind in _KINDS.items() if isinstance(layer, base)), None)
        if kind is not None:
            names[f"{kind}{block}_{index}"] = f"{prefix}features.{i}"
    return names


def dotted_name(model: nn.Module, layer: str) -> str:
    """A name that papers have for a layer of a VGG network as a dotted one; any other as it is.

    Raises:
        UsageError: For one that this VGG network has not.
    """
    names = vgg_names(model)
    if layer in names:
        return names[layer]
    if names and _NAME.fullmatch(layer):
        raise UsageError(f"this VGG network has no layer '{layer}'; {nearest(layer, names)}")
    return layer


def short_name(model: nn.Module, layer: str) -> str:
    """The name that papers have for a layer of a VGG network; that of any other as it is."""
    return next((short for short, dotted in vgg_names(model).items() if dotted == layer), layer)
