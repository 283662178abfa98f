"""What a pixel means: the way from the numbers a network eats to colours in [0, 1] and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError


@dataclass(frozen=True)
class PixelSpace:
    """An affine relation per channel between network input `x` and colour `c`: `c = x * std + mean`.

    Attributes:
        mean: Per-channel mean, in colour units, where 0 is black and 1 is full intensity. One value serves all
            channels.
        std: Per-channel standard deviation, in colour units.
        source: Where the numbers came from, in words, for captions and debugging.

    >>> space = PixelSpace(mean=(0.5,), std=(0.25,))
    >>> space.to_color(torch.tensor([[[[-2.0, 0.0, 2.0]]]])).tolist()
    [[[[0.0, 0.5, 1.0]]]]
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    source: str = "given"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _floats("mean", self.mean))
        object.__setattr__(self, "std", _floats("std", self.std))
        if any(s <= 0 for s in self.std):
            raise UsageError(f"std must be positive, got {self.std}.")

    def to_color(self, images: Tensor) -> Tensor:
        """Network input to colours.

        Args:
            images: (..., C, H, W), as the network takes them.

        Returns:
            Same shape, float32, clipped to [0, 1]; NaN becomes 0.
        """
        mean, std = self._shaped(images)
        return (images.float() * std).add_(mean).nan_to_num_(nan=0.0).clamp_(0.0, 1.0)

    def from_color(self, colors: Tensor) -> Tensor:
        """Colours in [0, 1], (..., C, H, W), to network input of the same shape."""
        mean, std = self._shaped(colors)
        return (colors.float() - mean) / std

    def _shaped(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = images.shape[-3]
        out = []
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise UsageError(
                    f"{name} has {len(values)} values ({self.source}) but the images have {channels} channels; "
                    f"give one value, or one per channel."
                )
            out.append(torch.tensor(values, device=images.device, dtype=torch.float32).reshape(-1, 1, 1))
        return out[0], out[1]


def given_pixel_space(mean: Any, std: Any) -> PixelSpace:
    """A normalisation that the user told.

    Args:
        mean: One number, or one per channel, in colour units from 0 to 1.
        std: Likewise.

    Raises:
        UsageError: For values that are no such numbers, or stand for colours from 0 to 255.
    """
    try:
        space = PixelSpace(mean, std)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"mean and std are numbers, one or one per channel, not {mean!r} and {std!r}: {error}"
        ) from None
    if _of_bytes(space):
        raise UsageError(
            f"mean and std are in colour units, where 1 is full intensity: divide {space.mean} and {space.std} by 255."
        )
    return space


def find_pixel_space(*sources: Any, channels: int | None = None) -> PixelSpace | None:
    """Looks for a normalisation in data modules, data sets, transforms or models.

    The first hit that suits the images counts: attributes `mean` and `std` (our data modules, timm-like
    configurations), or the last `Normalize`-like transform inside `transform`, `transforms`, `dataset(s)`. Values for
    colours from 0 to 255 are divided by 255.

    Args:
        *sources: Objects to search, best first. None is skipped.
        channels: Of the images; None takes whatever is found.

    Returns:
        What was found, or None.
    """
    for source in sources:
        found = _search(source, depth=0)
        if found is None or not (channels is None or {len(found.mean), len(found.std)} <= {1, channels}):
            continue
        if not _of_bytes(found):
            return found
        if max(found.mean) <= 255:
            mean, std = (tuple(v / 255 for v in values) for values in (found.mean, found.std))
            return PixelSpace(mean, std, found.source)
    return None


def pixel_space_of(model: Any) -> PixelSpace | None:
    """The normalisation that a network, or one inside it, tells about.

    That is an attribute `pixel_space` or `mean` and `std`, or the configuration of a network of timm's; buffers `mean`
    and `std` mean that the network normalises by itself.

    Args:
        model: A module; of anything else nothing is known.
    """
    if not isinstance(model, nn.Module):
        return None
    parts = (model, *model.children())
    told = find_pixel_space(*(getattr(part, "pixel_space", None) for part in parts))
    if told is not None:
        return replace(told, source=told.source.replace("from PixelSpace", "from the model"))
    if {"mean", "std"} <= {name for name, _ in model.named_buffers(recurse=False)}:
        # Numbers among the weights are there to be used: it does so itself.
        return PixelSpace(source="none: the model holds mean and std, and normalises by itself")
    configuration = timm_configuration(model)
    return find_pixel_space(model, SimpleNamespace(**configuration)) if configuration else find_pixel_space(model)


def usual_pixel_space(channels: int) -> PixelSpace:
    """The normalisation that is likeliest where nothing tells about it: ImageNet's for three channels, else none."""
    if channels == 3:
        return PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "guessed: ImageNet's")
    return PixelSpace(source="guessed: colours from 0 to 1")


def timm_configuration(model: nn.Module) -> dict[str, Any]:
    """`mean`, `std` and `input_size` that a network of timm's, or one inside it, was trained with; empty for others."""
    for part in (model, *model.children()):
        told = getattr(part, "pretrained_cfg", None)
        if isinstance(told, dict) and told.get("mean") is not None and told.get("std") is not None:
            sizes = told.get("input_size")
            return {"mean": tuple(told["mean"]), "std": tuple(told["std"]), "input_size": sizes}
    return {}


def _of_bytes(space: PixelSpace) -> bool:
    # No image of colours up to 1 has a mean or a deviation that large.
    return max(*space.mean, *space.std) > 2


def guess_pixel_space(images: Tensor) -> PixelSpace:
    """Guesses from the value range of a batch, for data that tell nothing about their normalisation.

    [0, 1] is taken as it is, [0, 255] is divided by 255, [-1, 1] is shifted; any other range is stretched.

    Args:
        images: (N, C, H, W).
    """
    finite = images[torch.isfinite(images)].float()
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    if low >= 0.0 and high <= 1.0:
        return PixelSpace((0.0,), (1.0,), "guessed from the range: [0, 1]")
    if low >= 0.0 and high <= 255.0:
        return PixelSpace((0.0,), (1 / 255,), "guessed from the range: [0, 255]")
    if low >= -1.0 and high <= 1.0:
        return PixelSpace((0.5,), (0.5,), "guessed from the range: [-1, 1]")
    width = max(high - low, 1e-12)
    return PixelSpace((-low / width,), (1 / width,), f"stretched from the range [{low:.2g}, {high:.2g}]")


def _search(source: Any, depth: int) -> PixelSpace | None:
    if source is None or depth > 12 or isinstance(source, (str, bytes, Tensor)):
        return None
    if _is_normalization(source):
        return _space(source, f"from {type(source).__name__}")
    if depth and isinstance(source, nn.Sequential):  # how torchvision has transforms written for TorchScript
        source = list(source)
    if isinstance(source, (list, tuple)):
        # The last one decides what reaches the network.
        for item in reversed(source[:64]):
            found = _search(item, depth + 1)
            if found is not None:
                return found
        return None
    for attribute in ("transform", "transforms", "dataset", "datasets"):
        # `vars` rather than `getattr`: data modules raise from properties before `setup`.
        child = getattr(source, "__dict__", {}).get(attribute)
        if child is not None and child is not source:
            found = _search(child, depth + 1)
            if found is not None:
                return found
    return None


def _is_normalization(source: Any) -> bool:
    try:
        mean, std = getattr(source, "mean", None), getattr(source, "std", None)
    except Exception:  # properties of data modules raise what they like before `setup`
        return False
    return all(isinstance(v, (Sequence, Tensor)) or hasattr(v, "tolist") for v in (mean, std)) and not isinstance(
        source, Tensor
    )


def _space(source: Any, where: str) -> PixelSpace | None:
    try:
        return PixelSpace(source.mean, source.std, where)
    except (TypeError, ValueError):
        return None


def _floats(name: str, values: Any) -> tuple[float, ...]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (int, float)):
        values = (values,)
    out = tuple(float(v) for v in values)
    if not out:
        raise UsageError(f"{name} is empty; give one value, or one per channel.")
    return out
