"""Perceptual features: what a frozen network makes of images, for losses that compare images as networks see them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from lit_viz.errors import UsageError, check_choice
from lit_viz.functional.synthesis import reading
from lit_viz.guard import isolated_rng, untouched
from lit_viz.layers import convolutions, find_layer
from lit_viz.networks.frozen import FrozenConv2d
from lit_viz.networks.loading import load_network
from lit_viz.networks.vgg_names import dotted_name
from lit_viz.pixels import PixelSpace, pixel_space_of, usual_pixel_space

Pooling = Literal["max", "average"]

_SIDE = 128  # of the photographs that random weights are scaled by, px


class PerceptualNetwork(nn.Module):
    """Features of images at named layers of a frozen network, for colours from 0 to 1.

    Images are normalised inside, and the network is run no further than to the deepest of the layers. Its weights are
    no part of this module: not of its parameters, nor of its state dict, so that they are in no optimizer and no
    checkpoint; devices and types are followed. It stays in evaluation mode.

    Attributes:
        layers: The layers' names, as they were given.
        told: What the network is, in words, for captions: whether its weights were learned, and from what.
        pixel_space: How its input relates to colours.

    Args:
        layers: Dotted names, or those that papers have for VGG networks (relu2_2, pool3).
        network: Name or dotted path for `load_network`, or a module.
        weights: For a name: "DEFAULT" or another name, the path of a checkpoint, or None for random ones, see
            `scale_to_unit_variance`.
        options: More arguments for the network's constructor.
        pooling: "average" takes the place of max pooling: smoother gradients, and images with fewer artefacts (Gatys,
            Ecker & Bethge 2015).
        pixel_space: Instead of the one that the weights tell, or ImageNet's.
        seed: Of random weights.

    Raises:
        UsageError: For networks, weights and layers that can't be had.

    >>> network = PerceptualNetwork(["relu1_1", "relu2_1"], "vgg11", weights=None)
    >>> {name: tuple(values.shape) for name, values in network(torch.rand(1, 3, 32, 32)).items()}
    {'relu1_1': (1, 64, 32, 32), 'relu2_1': (1, 128, 16, 16)}
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        network: str | nn.Module = "vgg16",
        weights: str | None = "DEFAULT",
        *,
        options: dict[str, Any] | None = None,
        pooling: Pooling = "max",
        pixel_space: PixelSpace | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("pooling", pooling, ("max", "average"))
        self.layers = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
        if not self.layers:
            raise UsageError("give at least one layer to compare images at.")
        if isinstance(network, str):
            with isolated_rng(seed):
                loaded = load_network(network, weights=weights, options=options)
            module, known = loaded.module, loaded.pixel_space
            random = weights is None
            self.told = f"{network}, " + (
                f"random weights (seed {seed}), not trained" if random else f"weights {Path(str(weights)).name}"
            )
        else:
            module, known, random = network, None, False
            self.told = type(network).__name__
        self.pixel_space = pixel_space or known or pixel_space_of(module) or usual_pixel_space(_channels(module))
        names = {layer: find_layer(module, dotted_name(module, layer))[0] for layer in self.layers}
        module.eval().requires_grad_(False)
        for name, layer in list(module.named_modules()):
            if pooling == "average" and isinstance(layer, nn.MaxPool2d):
                average = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
                _replace(module, name, average)
            elif isinstance(layer, (nn.ReLU, nn.ReLU6, nn.LeakyReLU)):
                layer.inplace = False  # what is read in front of it stays as it is
        if random:
            scale_to_unit_variance(module, self.pixel_space, layers=list(names.values()))
        chain = _chain(module, names)
        # Out of sight of PyTorch: neither in checkpoints nor in training mode. Of a chain, what lies behind is let go.
        held = module if chain is None else nn.Sequential(*chain[0]).eval()
        # Of a module that was given, only where the chain is our own.
        ours = convolutions(held) if isinstance(network, str) else dict(held.named_children()) if chain else {}
        frozen = [n for n, m in ours.items() if n and isinstance(m, nn.Conv2d) and FrozenConv2d.suits(m)]
        for name in frozen:
            _replace(held, name, FrozenConv2d(held.get_submodule(name)))  # type: ignore[arg-type]
        self._channels_last = bool(frozen)  # the order of memory that these want
        self._held = (held,)
        self._names, self._steps = names, None if chain is None else chain[1]

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return _channels(self.module)

    @property
    def module(self) -> nn.Module:
        """The network, as far as it is needed."""
        return self._held[0]

    @property
    def is_chain(self) -> bool:
        """Whether its layers are called one after the other, without hooks, so that it can be compiled."""
        return self._steps is not None

    @property
    def layers_inside(self) -> dict[str, str]:
        """Dotted names of the layers in `module`."""
        return self._names if self._steps is None else {name: str(step) for name, step in self._steps.items()}

    def forward(self, colors: Tensor, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Features of images.

        Args:
            colors: (N, C, H, W), from 0 to 1.
            layers: Only these, so that the network is run no further than to the deepest of them.

        Returns:
            What each layer puts out, (N, channels, h, w) for convolutional networks, by name, in the order given.
        """
        wanted = self.layers if layers is None else list(layers)
        space = self.pixel_space
        parameter = next(self.module.parameters(), colors)
        images = space.from_color(colors).to(parameter.dtype)
        if self._channels_last and images.dim() == 4 and images.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        if self._steps is None:
            names = [self._names[layer] for layer in wanted]
            with reading(self.module, names, needs_scores=False) as read:
                found = read(images, torch.arange(len(images), device=images.device))
            return {layer: found.layer(self._names[layer], -1) for layer in wanted}
        steps = [self._steps[layer] for layer in wanted]
        features: dict[int, Tensor] = {}
        assert isinstance(self.module, nn.Sequential)
        for step, layer in enumerate(self.module[: max(steps) + 1]):
            images = layer(images)
            if step in steps:
                features[step] = images
        return {layer: features[step] for layer, step in zip(wanted, steps, strict=True)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerceptualNetwork:
        self.module._apply(fn, recurse)  # goes where this goes
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.told}; {', '.join(self.layers)}"


def scale_to_unit_variance(module: nn.Module, space: PixelSpace, *, layers: Sequence[str]) -> None:
    r"""Scales random weights, so that a network without training passes on what it sees.

    With the usual random weights a signal fades or explodes from layer to layer. Here, one after the other, the output
    of each convolution gets variance 1 over patches of photographs, $w \leftarrow w / \sigma$ (Mishkin & Matas, *All
    You Need Is a Good Init*, 2016; that random networks serve for textures is from Ustyuzhaninov, Brendel, Gatys &
    Bethge, *Texture Synthesis Using Shallow Convolutional Networks with Random Filters*, 2016). One σ serves all
    channels of a layer: with one for each, those that see hardly anything in photographs would see noise above all. The
    photographs come with scikit-image, so that the same seed gives the same network everywhere.

    Args:
        module: In evaluation mode; changed in place.
        space: How its input relates to colours.
        layers: Dotted names; nothing is changed behind the last of them.
    """
    found = convolutions(module)
    colors = _photographs(next(iter(found.values())).in_channels if found else 3)
    handles = []

    def scaled(layer: nn.Conv2d, args: Any, output: Tensor) -> Tensor:
        if layer.bias is not None:
            output = output - layer.bias.reshape(-1, 1, 1)
            layer.bias.zero_()
        std = output.float().std().clamp(min=1e-6)
        layer.weight.div_(std)
        return output / std

    with torch.no_grad():
        for layer in found.values():
            handles.append(layer.register_forward_hook(scaled))
        try:
            with reading(module, layers, needs_scores=False) as read, contextlib.suppress(UsageError):
                read(space.from_color(colors), torch.arange(len(colors)))
        finally:
            for handle in handles:
                handle.remove()


def _photographs(channels: int) -> Tensor:
    """Patches of photographs that come with scikit-image, (N, C, 128, 128), colours from 0 to 1."""
    patches = []
    for load in (data.astronaut, data.chelsea, data.coffee, data.immunohistochemistry):
        colors = torch.from_numpy(np.ascontiguousarray(load())).permute(2, 0, 1)[None].float() / 255
        scale = 2 * _SIDE / min(colors.shape[2:])
        colors = F.interpolate(colors, scale_factor=scale, mode="bilinear", antialias=True, align_corners=False)
        patches += [colors[..., y : y + _SIDE, x : x + _SIDE] for y in (0, _SIDE) for x in (0, _SIDE)]
    colors = torch.cat([patch for patch in patches if patch.shape[2:] == (_SIDE, _SIDE)])
    return colors if channels == 3 else colors.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)


def _channels(module: nn.Module) -> int:
    return next((layer.in_channels for layer in convolutions(module).values()), 3)


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def _chain(module: nn.Module, names: dict[str, str]) -> tuple[list[nn.Module], dict[str, int]] | None:
    """The layers of a network that is a chain up to the deepest one that is asked for, and which of them are.

    Called one after the other they need no hooks, so that torch.compile and ONNX can follow. Whether a network is such
    a chain is not told by its type, but tried.
    """
    for prefix, chain in (("", module), ("features.", getattr(module, "features", None))):
        if not isinstance(chain, nn.Sequential):
            continue
        places = {f"{prefix}{name}": i for i, (name, _) in enumerate(chain.named_children())}
        if not all(name in places for name in names.values()):
            continue
        steps = {layer: places[name] for layer, name in names.items()}
        layers = list(chain)[: max(steps.values()) + 1]
        parameter = next(module.parameters(), torch.zeros(()))
        with untouched(module), torch.no_grad(), reading(module, names.values(), needs_scores=False) as read:
            trial = torch.rand(1, _channels(module), 64, 64, generator=torch.Generator().manual_seed(0)).to(parameter)
            found, x = read(trial, torch.zeros(1, dtype=torch.int64)), trial
            same = True
            for step, layer in enumerate(layers):
                x = layer(x)
                same &= all(torch.equal(x, found.layer(names[n], -1)) for n, s in steps.items() if s == step)
        if same:
            return layers, steps
    return None
