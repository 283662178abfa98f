"""What all data modules have in common: loaders, and the facts about the images that others ask for."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lit_viz.errors import UsageError
from lit_viz.pictures import eight_bit
from lit_viz.pixels import PixelSpace

UNLABELLED = -1
"""The label of an image that belongs to none of the network's classes, or whose class isn't known."""


class ImageDataModule(LightningDataModule):
    """Base of the data modules: a subclass fills in the facts and, in `setup`, the data sets.

    Every data set is map-style: `dataset[i]` is an image, float32 (C, H, W), normalised, and its label, an
    int (`UNLABELLED`, -1, where there is none).

    Attributes:
        class_names: One name per label; empty for unlabelled images.
        num_classes: Number of classes, None for unlabelled images.
        in_channels: 3 for colour, 1 for grey.
        mean: Per-channel mean that is subtracted, in colour units: 0 is black and 1 is full intensity.
        std: Per-channel standard deviation that is divided by, in colour units.
        train_set: Images to train on, None before `setup`; and so the next three.
        val_set: Images to validate on.
        test_set: Images to test on.
        predict_set: Images to predict.

    Args:
        batch_size: Images per batch.
        num_workers: Processes that prepare batches; 0 prepares them in the training process.
    """

    class_names: list[str]
    in_channels: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise UsageError(f"num_workers must be 0 or more, got {num_workers}.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_set: Dataset | None = None
        self.val_set: Dataset | None = None
        self.test_set: Dataset | None = None
        self.predict_set: Dataset | None = None

    @property
    def num_classes(self) -> int | None:
        return len(self.class_names) or None

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_set, "training", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.val_set, "validation")

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.test_set, "test")

    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.predict_set, "prediction")

    def _loader(self, dataset: Dataset | None, name: str, shuffle: bool = False) -> DataLoader:
        if dataset is None:
            raise UsageError(f"{type(self).__name__} has no {name} images yet: call setup(), or use a Trainer.")
        # A last batch of one image would upset batch normalisation; but a single short batch must not vanish.
        drop_last = shuffle and isinstance(dataset, Sized) and len(dataset) >= self.batch_size
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            drop_last=drop_last,
        )


class PictureSource(Protocol):
    """Anything that gives pictures and labels by index, such as a torchvision data set."""

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]: ...


class PreparedImages(Dataset):
    """Pictures of any kind made into normalised tensors.

    Random crops and flips draw from torch's global generator.

    Attributes:
        mean: Per-channel mean that is subtracted, in colour units from 0 to 1.
        std: Per-channel standard deviation that is divided by.
        captions: One text per image, such as a file name; None where the source has none.

    Args:
        source: Gives pictures and labels.
        indices: Which of them, in what order.
        space: How to normalise.
        channels: 3 for colour, 1 for grey; pictures are converted.
        size: Side of the square images in pixels: the shorter side of a picture is resized to it, the longer
            cropped to its middle. None leaves the size of pictures as it is.
        random_crop: Take a random part instead of the middle: half of the area or more, stretched by up to
            4 : 3. Needs `size`.
        random_flip: Mirror left and right at random.

    Raises:
        UsageError: For a size that isn't positive, random crops without a size, and a mean or standard
            deviation that doesn't fit the channels.
    """

    def __init__(
        self,
        source: PictureSource,
        indices: Sequence[int],
        space: PixelSpace,
        *,
        channels: int = 3,
        size: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
    ) -> None:
        if size is not None and size < 1:
            raise UsageError(f"size must be at least 1 pixel, got {size}.")
        if random_crop and size is None:
            raise UsageError("random_crop needs a size, the side of the images in pixels.")
        if any(len(values) not in (1, channels) for values in (space.mean, space.std)):
            raise UsageError(f"mean and std need one value, or {channels}: got {space.mean} and {space.std}.")
        self.source = source
        self.indices = list(indices)
        self.channels = channels
        self.mean, self.std = space.mean, space.std
        self._space = space
        steps: list[v2.Transform] = []
        if random_crop:
            steps.append(v2.RandomResizedCrop(size, scale=(0.5, 1.0)))
        elif size is not None:
            steps += [v2.Resize(size), v2.CenterCrop(size)]
        if random_flip:
            steps.append(v2.RandomHorizontalFlip())
        self._geometry = v2.Compose(steps) if steps else None

    @property
    def captions(self) -> list[str] | None:
        captions = getattr(self.source, "captions", None)
        return None if captions is None else [captions[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self.source[self.indices[index]]
        picture = eight_bit(picture, self.channels)
        if self._geometry is not None:
            picture = self._geometry(picture)
        # A copy, since the array of a picture is read-only.
        colors = torch.from_numpy(np.array(picture)).view(picture.height, picture.width, self.channels)
        return self._space.from_color(colors.permute(2, 0, 1) / 255), int(label)


def split_indices(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divides `range(count)` at random into the larger rest and a held-out `fraction`, each in order.

    Both get at least one where there are two or more. The same seed gives the same division.
    """
    held_out = min(max(round(count * fraction), 1), count - 1) if count > 1 else 0
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])
