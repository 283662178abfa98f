"""How a network takes images, and images of any kind brought to that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.classes import names_of
from lit_viz.layers import WRAPPER, convolutions
from lit_viz.networks.loading import Network, load_network
from lit_viz.pictures import eight_bit, read_picture
from lit_viz.pixels import (
    PixelSpace,
    given_pixel_space,
    guess_pixel_space,
    pixel_space_of,
    timm_configuration,
    usual_pixel_space,
)

_SIDE = 224


@dataclass(frozen=True)
class InputFacts:
    """What is known of how a network takes images.

    Attributes:
        class_names: Names of its classes, or None.
        space: The normalisation, or None where it has to be guessed.
        size: Shorter side that files and pictures are brought to, px; None to keep theirs.
        channels: Of an image.
        device: Of the network.
        dtype: Of its weights.
        crop: Whether files and pictures are cropped to the middle square.
    """

    class_names: list[str] | None
    space: PixelSpace | None
    size: int | None
    channels: int
    device: torch.device
    dtype: torch.dtype
    crop: bool = True


def network_of(model: Any, weights: str | Path | None = "DEFAULT") -> tuple[Network, str]:
    """A network, and what to call it.

    Args:
        model: A module, a `Network`, or a name for `load_network`.
        weights: For a name.

    Raises:
        UsageError: For anything else.
    """
    if isinstance(model, str):
        network = load_network(model, weights=weights)
        return network, f"{model}, {'random start' if weights is None else f'weights {Path(weights).name}'}"
    network = model if isinstance(model, Network) else Network(model)
    if not isinstance(network.module, nn.Module):
        raise UsageError(
            f"the model is a torch.nn.Module or the name of a network, such as 'resnet18', not a "
            f"{type(network.module).__name__}."
        )
    return network, type(getattr(network.module, WRAPPER, network.module)).__name__


def input_facts(
    network: Network,
    *,
    class_names: Sequence[str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    size: int | None = None,
) -> InputFacts:
    """Finds out how a network takes images.

    Args:
        network: The network, with what is known of it from its weights.
        class_names: Instead of those found.
        mean: Of the normalisation in colour units, one number or one for each channel, instead of what is found.
        std: Likewise.
        size: Side that files and pictures are brought to, instead of what is found, or 224.
    """
    module = network.module
    parts = (module, *module.children())
    if (mean is None) != (std is None):
        raise UsageError("mean and std belong together: give both, or neither.")
    if size is not None:
        check_at_least("size", size, 1, " pixel")
    first = next(iter(convolutions(module).values()), None)
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    names = class_names if class_names is not None else network.class_names
    if names is None:
        names = next((n for n in map(names_of, parts) if n), None)
    sizes = (network.image_size, *(getattr(part, "image_size", None) for part in parts), _timm_side(module))
    return InputFacts(
        class_names=None if names is None else list(names),
        space=given_pixel_space(mean, std) if mean is not None else network.pixel_space or pixel_space_of(module),
        size=size or next((s for s in sizes if isinstance(s, int) and s > 0), _SIDE),
        channels=first.in_channels if first is not None and first.in_channels else 3,
        device=tensors[0].device if tensors else torch.device("cpu"),
        dtype=tensors[0].dtype if tensors else torch.float32,
    )


def _timm_side(module: nn.Module) -> int | None:
    return (timm_configuration(module).get("input_size") or (None,))[-1]


def network_inputs(image: Any, facts: InputFacts) -> list[tuple[Tensor, PixelSpace, str]]:
    """Images of any kind as a network takes them.

    Args:
        image: A file, a picture of Pillow's, an array (H, W, 3) of bytes or of numbers in [0, 1], a tensor (C, H, W) of
            bytes; or a floating-point tensor (C, H, W) or (N, C, H, W) as the network takes it.
        facts: How it takes images.

    Returns:
        For each image network input (1, C, H, W), how it relates to colours, and the name of the file.

    Raises:
        UsageError: For anything else, and files that can't be read.
    """
    if isinstance(image, Tensor) and image.dtype != torch.uint8:
        if image.dim() not in (3, 4) or not image.is_floating_point() or 0 in image.shape:
            raise UsageError(
                f"a tensor of an image is (C, H, W) or (N, C, H, W), of floating-point numbers as the network takes "
                f"them or of bytes; got {tuple(image.shape)} {image.dtype}."
            )
        with torch.inference_mode(False):
            batch = image.detach().to(facts.device, facts.dtype, copy=True)
        batch = batch if batch.dim() == 4 else batch[None]
        return [(one[None], _usable(facts.space, one) or guess_pixel_space(one[None]), "") for one in batch]
    named = isinstance(image, (str, os.PathLike))
    return [(*_prepared(p, facts), Path(image).name if named else "") for p in _pictures(image)]


def _pictures(image: Any) -> list[Image.Image]:
    """Pictures of Pillow's, from anything but network input."""
    if isinstance(image, Image.Image):
        return [image]
    if isinstance(image, (str, os.PathLike)):
        return [read_picture(image)]
    if isinstance(image, Tensor):
        if image.dim() not in (3, 4) or 0 in image.shape:
            raise UsageError(f"a tensor of an image is (C, H, W) or (N, C, H, W), got {tuple(image.shape)}.")
        batch = image if image.dim() == 4 else image[None]
        return [picture for one in batch.detach().cpu() for picture in _pictures(one.permute(1, 2, 0).numpy())]
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"an image is a file, a picture of Pillow's, an array, a tensor or a list of these, not a "
            f"{type(image).__name__}."
        )
    array = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        hint = "; (C, H, W) comes as a tensor" if array.ndim == 3 and array.shape[0] in (1, 3) else ""
        raise UsageError(f"an array of an image is (H, W), (H, W, 3) or (H, W, 4), got {image.shape}{hint}.")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UsageError("an array of floating-point numbers holds colours from 0 to 1; give bytes, or a tensor.")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UsageError(f"an array of an image holds bytes (uint8), or colours from 0 to 1, not {array.dtype}.")
    return [Image.fromarray(np.ascontiguousarray(array))]


def _prepared(picture: Image.Image, facts: InputFacts) -> tuple[Tensor, PixelSpace]:
    """A picture as the network takes it: resized, cropped, normalised."""
    if facts.channels not in (1, 3):
        raise UsageError(
            f"the network takes images of {facts.channels} channels, which no picture has; give a tensor (C, H, W) "
            f"as the network takes it."
        )
    picture = eight_bit(picture, facts.channels)
    if facts.size is not None:
        picture = v2.Resize(facts.size)(picture)
        picture = v2.CenterCrop(facts.size)(picture) if facts.crop else picture
    space = facts.space or usual_pixel_space(facts.channels)
    with torch.inference_mode(False):
        # A copy, since the array of a picture is read-only.
        colors = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, facts.channels)
        image = space.from_color(colors.permute(2, 0, 1) / 255)
        return image[None].to(facts.device, facts.dtype), space


def _usable(space: PixelSpace | None, image: Tensor) -> PixelSpace | None:
    """A normalisation, unless it is one of images with another number of channels that nobody gave."""
    if space is None or space.source == "given" or {len(space.mean), len(space.std)} <= {1, image.shape[0]}:
        return space
    return None
