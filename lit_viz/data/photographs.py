"""Ten photographs that come with scikit-image and scikit-learn: a data set that needs no download."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from skimage import data as skimage_data
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from lit_viz.data.base import UNLABELLED, ImageDataModule
from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace

SOURCES: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": skimage_data.astronaut,
    "chelsea the cat": skimage_data.chelsea,
    "coffee": skimage_data.coffee,
    "rocket": skimage_data.rocket,
    "motorcycle": lambda: skimage_data.stereo_motorcycle()[0],
    "hubble deep field": skimage_data.hubble_deep_field,
    "immunohistochemistry": skimage_data.immunohistochemistry,
    "retina": skimage_data.retina,
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
}

_SHORT_SIDE = 400
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Photographs(ImageDataModule):
    """Patches of ten colour photographs; the class of a patch is the photograph it was cut from.

    The left part of each photograph, three quarters, is for training and the right one for validation, so no
    pixel is in both. Training patches are cut anew each time, with random flips and colours: as a patch's
    colours say little, a network must use edges and texture, and its first layer shows it. Validation patches
    are always the same ones.

    Patches are cut and recoloured a batch at a time, which is quicker than worker processes. Randomness comes
    from torch's global generator: the same seed gives the same patches.

    With `whole=True` each image is a whole photograph, resized and cropped to a square, and unlabelled: input
    for a look into a network that knows other classes, say ImageNet's.

    Args:
        size: Side of the images in pixels; by default 64, and 224 for whole photographs.
        whole: Whole photographs instead of patches.
        batch_size: Images per batch.
        patches_per_epoch: Training patches in an epoch.
        val_patches: Validation patches, shared out evenly among the photographs.
        val_fraction: Part of the width of each photograph that is for validation, between 0 and 1; larger for patches
            of more than 100 px.
        jitter: Strength of the colour changes in training, from 0 (none) to 1; from 0.5 on, any hue.
        grey: Probability that a training patch loses its colour, from 0 to 1.
        num_workers: Processes that prepare batches.
        mean: Per-channel mean to subtract, in colour units, from 0 to 1.
        std: Per-channel standard deviation to divide by, in colour units.

    Raises:
        UsageError: For sizes that don't fit into the photographs, and values out of range.
    """

    def __init__(
        self,
        size: int | None = None,
        whole: bool = False,
        batch_size: int = 64,
        patches_per_epoch: int = 6400,
        val_patches: int = 1000,
        jitter: float = 0.5,
        grey: float = 0.3,
        num_workers: int = 0,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.25, 0.25, 0.25),
        val_fraction: float = 0.25,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.mean, self.std = tuple(mean), tuple(std)
        for name, value in (("patches_per_epoch", patches_per_epoch), ("val_patches", val_patches)):
            if value < len(SOURCES):
                raise UsageError(f"{name} must be at least {len(SOURCES)}, one per photograph, got {value}.")
        for name, value in (("jitter", jitter), ("grey", grey)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} must lie between 0 and 1, got {value}.")
        self.size = size if size is not None else (224 if whole else 64)
        if not 0 < val_fraction < 1:
            raise UsageError(f"val_fraction must lie between 0 and 1, got {val_fraction}.")
        if self.size < 1:
            raise UsageError(f"size must be at least 1 pixel, got {size}.")
        self.whole = whole
        self.patches_per_epoch = patches_per_epoch
        self.val_patches = val_patches
        self.val_fraction = val_fraction
        self.jitter = jitter
        self.grey = grey
        self.class_names = [] if whole else list(SOURCES)

    def setup(self, stage: str) -> None:
        if self.val_set is not None:
            return
        photographs = [torch.from_numpy(np.array(load())).permute(2, 0, 1) for load in SOURCES.values()]
        space = PixelSpace(self.mean, self.std, "from Photographs")
        if self.whole:
            self.train_set = self.val_set = _Whole(photographs, self.size, space)
        else:
            # Cut first and shrink after: shrinking mixes neighbouring pixels.
            cuts = [int((1 - self.val_fraction) * p.shape[2]) for p in photographs]
            left = [_shrink(p[:, :, :cut], p.shape[1]) for p, cut in zip(photographs, cuts, strict=True)]
            right = [_shrink(p[:, :, cut:], p.shape[1]) for p, cut in zip(photographs, cuts, strict=True)]
            self.train_set = _Patches(left, self.patches_per_epoch, self.size, space, self.jitter, self.grey)
            self.val_set = _Patches(right, self.val_patches, self.size, space)
        self.test_set = self.predict_set = self.val_set


class _Patches(Dataset):
    """Square patches; number i comes from photograph `i % len(photographs)`.

    Args:
        photographs: uint8 (3, H, W), sizes may differ.
        count: Number of patches.
        size: Side of a patch in pixels.
        space: How to normalise.
        jitter: Strength of the random colour changes; None means fixed patches in their own colours.
        grey: Probability of a patch without colour.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        count: int,
        size: int,
        space: PixelSpace,
        jitter: float | None = None,
        grey: float = 0.0,
    ) -> None:
        room = min(min(p.shape[1:]) for p in photographs)
        if size > room:
            raise UsageError(
                f"patches of {size} pixels don't fit: the smallest part is {room} pixels wide. "
                f"Take size={room} or less, a larger val_fraction, or whole=True."
            )
        self.photographs = photographs
        self.size = size
        self.space = space
        self.jitter = jitter
        self.grey = grey
        # A generator of its own: runs with different seeds validate on the same patches.
        self.places = torch.rand(count, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        places = self.places[indices] if self.jitter is None else torch.rand(len(indices), 2)
        labels = [i % len(self.photographs) for i in indices]
        patches = torch.stack(
            [self._cut(self.photographs[k], y, x) for k, (y, x) in zip(labels, places.tolist(), strict=True)]
        )
        colors = patches.float().div_(255)
        if self.jitter is not None:
            mirrored = torch.rand(len(colors), 1, 1, 1) < 0.5
            colors = torch.where(mirrored, colors.flip(-1), colors)
            colors = recolor(colors, self.jitter, self.grey)
        return list(zip(self.space.from_color(colors), labels, strict=True))

    def _cut(self, photograph: Tensor, y: float, x: float) -> Tensor:
        top = int(y * (photograph.shape[1] - self.size + 1))
        left = int(x * (photograph.shape[2] - self.size + 1))
        return photograph[:, top : top + self.size, left : left + self.size]


class _Whole(Dataset):
    """Whole photographs, resized and cropped to squares, with their names."""

    def __init__(self, photographs: Sequence[Tensor], size: int, space: PixelSpace) -> None:
        self.captions = list(SOURCES)
        self.images = [space.from_color(_square(p, size)) for p in photographs]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], UNLABELLED


def recolor(colors: Tensor, strength: float, grey: float) -> Tensor:
    """Random brightness, contrast, saturation and hue for each image, as one affine map of its colours.

    Args:
        colors: (N, 3, H, W), in [0, 1].
        strength: From 0 (nothing changes) to 1 (factors between 0 and 2); from 0.5 on, any hue.
        grey: Probability that an image loses its colour.

    Returns:
        Same shape, clipped to [0, 1].
    """
    n = len(colors)
    brightness, contrast, saturation, angle = (strength * (2 * torch.rand(4, n, 1, 1) - 1)).unbind()
    saturation = torch.where(torch.rand(n, 1, 1) < grey, 0.0, 1 + saturation)
    angle = math.pi * (2 * angle).clamp(-1, 1)
    identity, ones = torch.eye(3), torch.ones(3, 3)
    # Rodrigues' formula for a turn about the axis of greys, which keeps greys grey.
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    hue = angle.cos() * identity + (1 - angle.cos()) / 3 * ones + angle.sin() * cross
    fade = saturation * identity + (1 - saturation) * torch.tensor(_LUMINANCE).expand(3, 3)
    recolored = torch.bmm(fade @ hue, colors.flatten(2))
    middle = recolored.mean(dim=(1, 2), keepdim=True)
    recolored = ((recolored - middle) * (1 + contrast) + middle) * (1 + brightness)
    return recolored.clamp_(0.0, 1.0).view_as(colors)


def _shrink(part: Tensor, height: int) -> Tensor:
    """Shrinks a uint8 part of a photograph of that height, so that patches of large ones show something."""
    scale = _SHORT_SIDE / height
    if scale >= 1:
        return part
    size = [round(s * scale) for s in part.shape[1:]]
    return interpolate(part[None], size, mode="bilinear", antialias=True)[0]


def _square(photograph: Tensor, size: int) -> Tensor:
    """The middle square of a uint8 photograph at `size` pixels, as colours in [0, 1]."""
    height, width = photograph.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = photograph[None, :, top : top + side, left : left + side].float() / 255
    return interpolate(middle, (size, size), mode="bicubic", antialias=True)[0].clamp_(0.0, 1.0)
