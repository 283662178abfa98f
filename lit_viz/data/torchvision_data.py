"""Classification data sets of torchvision, by name."""

from __future__ import annotations

import gzip
import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from PIL import Image
from torch.utils.data import Dataset

from lit_viz.data.base import ImageDataModule, PreparedImages, eight_bit, split_indices
from lit_viz.errors import UsageError, nearest
from lit_viz.pixels import PixelSpace

_FLAG = {"train": {"train": True}, "test": {"train": False}}
_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
_SPLIT_VAL = {**_SPLIT, "val": {"split": "val"}}

# What each data set calls its parts. Where there is no "val", some of "train" is held out.
_PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Caltech101": {"train": {}},
    "Caltech256": {"train": {}},
    "Country211": {**_SPLIT, "val": {"split": "valid"}},
    "DTD": _SPLIT_VAL,
    "EMNIST": _FLAG,
    "EuroSAT": {"train": {}},
    "FER2013": _SPLIT,
    "FGVCAircraft": _SPLIT_VAL,
    "FakeData": {"train": {}},
    "FashionMNIST": _FLAG,
    "Flowers102": _SPLIT_VAL,
    "Food101": _SPLIT,
    "GTSRB": _SPLIT,
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _SPLIT_VAL,
    "QMNIST": _FLAG,
    "RenderedSST2": _SPLIT_VAL,
    "SEMEION": {"train": {}},
    "STL10": _SPLIT,
    "SUN397": {"train": {}},
    "SVHN": _SPLIT,
    "USPS": _FLAG,
}

_GREY = {"EMNIST", "FER2013", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "SEMEION", "USPS"}

# Over all pixels of the training images, in colour units. For other sets they are estimated from a sample.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "MNIST": ((0.1307,), (0.3081,)),
}

# Data sets whose raw files are the four of MNIST.
_IDX = {"FashionMNIST", "KMNIST", "MNIST"}
_IDX_NAMES = {"train": "train", "test": "t10k"}
# Where Debian's package dataset-fashion-mnist puts it.
_DEBIAN = {"FashionMNIST": Path("/usr/share/datasets/fashion-mnist")}


class TorchvisionData(ImageDataModule):
    """A classification data set of torchvision: FashionMNIST, CIFAR10, Flowers102, and so on.

    Files that are there are used, others downloaded. Data sets in MNIST's format are also found where `root`
    itself holds the files `train-images-idx3-ubyte.gz` and so on. An official validation part is used;
    without one, a random part of the training images is held out, the same one for the same `split_seed`.

    `class_names`, `num_classes`, and for sets without published values `mean` and `std`, are read from the
    training images when first asked for, so that no `setup` is needed.

    Args:
        name: Class name in `torchvision.datasets`.
        root: Folder for the files, as torchvision lays them out, or the folder of MNIST's four files.
        download: Download what is missing.
        size: Side of the square images in pixels; None keeps them as they are. Needed where images differ.
        batch_size: Images per batch.
        val_fraction: Part of the training images to hold out where there is no official validation part,
            between 0 and 1.
        split_seed: Chooses which.
        random_crop: Train on random parts of the images; needs `size`.
        random_flip: Mirror training images at random; not for digits or letters.
        num_workers: Processes that prepare batches.
        mean: Values to subtract in place of the data set's own, per channel, from 0 to 1.
        std: Values to divide by in place of the data set's own.
        in_channels: 3 for colour, 1 for grey; None takes the data set's own.
        options: More arguments for the data set, such as `split: letters` for EMNIST.

    Raises:
        UsageError: For unknown names, values out of range, and data that can't be had.
    """

    def __init__(
        self,
        name: str,
        root: str | Path = "datasets",
        download: bool = True,
        size: int | None = None,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        random_crop: bool = False,
        random_flip: bool = False,
        num_workers: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        in_channels: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if name not in _PARTS:
            raise UsageError(f"no classification data set {name!r} in torchvision; {nearest(name, _PARTS)}")
        if not 0 < val_fraction < 1:
            raise UsageError(f"val_fraction must lie between 0 and 1, got {val_fraction}.")
        if in_channels not in (None, 1, 3):
            raise UsageError(f"in_channels must be 3 for colour or 1 for grey, got {in_channels}.")
        if (mean is None) != (std is None):
            raise UsageError("mean and std belong together: give both, or neither.")
        if random_crop and size is None:
            raise UsageError("random_crop needs a size, the side of the images in pixels.")
        self.name = name
        self.root = Path(root)
        self.download = download
        self.size = size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.in_channels = in_channels or (1 if name in _GREY else 3)
        self.options = dict(options or {})
        self._given_space = None if mean is None or std is None else PixelSpace(mean, std, "given")
        self._opened: dict[str, Any] = {}

    @cached_property
    def class_names(self) -> list[str]:
        return _class_names(self._part("train"))

    @property
    def mean(self) -> tuple[float, ...]:
        return self._space.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self._space.std

    @cached_property
    def _space(self) -> PixelSpace:
        if self._given_space is not None:
            return self._given_space
        if self.name in _STATISTICS and len(_STATISTICS[self.name][0]) == self.in_channels:
            return PixelSpace(*_STATISTICS[self.name], f"over {self.name}")
        return _estimate_space(self._part("train"), self.in_channels, self.name)

    def prepare_data(self) -> None:
        for part in _PARTS[self.name]:
            self._part(part)

    def setup(self, stage: str) -> None:
        if self.val_set is not None:
            return
        parts, train = _PARTS[self.name], self._part("train")
        if "val" in parts:
            self.train_set = self._prepared(train, range(len(train)), train=True)
            self.val_set = self._whole("val")
        else:
            kept, held_out = split_indices(len(train), self.val_fraction, self.split_seed)
            self.train_set = self._prepared(train, kept, train=True)
            self.val_set = self._prepared(train, held_out)
        self.test_set = self.predict_set = self._whole("test") if "test" in parts else self.val_set

    def _whole(self, part: str) -> PreparedImages:
        source = self._part(part)
        return self._prepared(source, range(len(source)))

    def _prepared(self, source: Any, indices: Sequence[int], *, train: bool = False) -> PreparedImages:
        if self.size is None and len({source[i][0].size for i in range(min(8, len(source)))}) > 1:
            raise UsageError(f"the images of {self.name} differ in size; give size, in pixels, such as 224.")
        return PreparedImages(
            source,
            indices,
            self._space,
            channels=self.in_channels,
            size=self.size,
            random_crop=train and self.random_crop,
            random_flip=train and self.random_flip,
        )

    def _part(self, part: str) -> Any:
        """The torchvision data set of that part, opened once; downloaded if need be."""
        if part not in self._opened:
            self._opened[part] = self._open(part)
        return self._opened[part]

    def _open(self, part: str) -> Any:
        make = getattr(torchvision.datasets, self.name)
        folders = (self.root, _DEBIAN.get(self.name)) if self.name in _IDX else ()
        for folder in folders:
            if folder is not None and (files := _idx_files(folder, part)) is not None:
                return _IdxImages(*files, make.classes)
        arguments = _PARTS[self.name][part] | self.options
        accepted = inspect.signature(make).parameters
        if "root" in accepted:
            arguments["root"] = self.root
        try:
            return make(**arguments)
        except TypeError as error:
            raise UsageError(f"{self.name} wants other options than {self.options}: {error}.") from error
        except (OSError, RuntimeError) as error:
            # Not there; torchvision has no common way to ask.
            missing = error
        if not self.download:
            raise UsageError(
                f"{self.name} is not in {self.root} ({missing}). Put it there, or let download=True fetch it."
            ) from missing
        try:
            return make(**arguments, download=True)
        except (OSError, RuntimeError, ValueError, ImportError, TypeError) as error:
            raise UsageError(
                f"{self.name} is not in {self.root}, or its files are damaged ({_first_line(missing)}), and it could "
                f"not be downloaded ({_first_line(error)}). "
                f"Download it where there is a connection, with torchvision.datasets.{self.name}(root, "
                f"download=True), and give that folder as root."
            ) from error


class _IdxImages(Dataset):
    """Images and labels of two files in MNIST's format."""

    def __init__(self, images: Path, labels: Path, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.data = _read_idx(images)
        self.targets = _read_idx(labels)
        if self.data.ndim != 3 or len(self.data) != len(self.targets):
            raise UsageError(f"{images} and {labels} don't belong together; download them anew.")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index]), int(self.targets[index])


def _idx_files(folder: Path, part: str) -> tuple[Path, Path] | None:
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        plain = folder / f"{_IDX_NAMES[part]}-{kind}"
        packed = plain.with_name(plain.name + ".gz")
        file = next((f for f in (plain, packed) if f.is_file()), None)
        if file is None:
            return None
        found.append(file)
    return found[0], found[1]


def _read_idx(file: Path) -> np.ndarray:
    """Bytes in MNIST's format: two zeros, type 8, number of axes, big-endian lengths, values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        axes = content[3]
        shape = np.frombuffer(content, ">u4", axes, offset=4)
        if content[:3] != b"\0\0\x08":
            raise ValueError("another kind of file")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise UsageError(f"{file} can't be read ({error}); download it anew.") from error


def _class_names(dataset: Any) -> list[str]:
    for attribute in ("classes", "categories"):
        names = getattr(dataset, attribute, None)
        if names:
            return [", ".join(n) if isinstance(n, tuple) else str(n) for n in names]
    if isinstance(number := getattr(dataset, "num_classes", None), int):
        return [str(i) for i in range(number)]
    for attribute in ("targets", "labels", "_labels"):
        labels = getattr(dataset, attribute, None)
        if labels is not None:
            break
    else:
        # GTSRB and its like list files and labels; the rest has to be read through.
        labels = [label for _, label in getattr(dataset, "_samples", dataset)]
    return [str(i) for i in range(int(np.max(np.asarray(labels))) + 1)]


def _estimate_space(dataset: Any, channels: int, name: str, sample: int = 500) -> PixelSpace:
    """Mean and standard deviation over the pixels of evenly spread images."""
    count = min(sample, len(dataset))
    total, square, pixels = np.zeros(channels), np.zeros(channels), 0
    for i in range(count):
        picture = eight_bit(dataset[i * len(dataset) // count][0], channels)
        colors = np.asarray(picture, dtype=np.float64).reshape(-1, channels) / 255
        total += colors.sum(0)
        square += (colors**2).sum(0)
        pixels += len(colors)
    mean = total / pixels
    std = np.sqrt(np.maximum(square / pixels - mean**2, 1e-6))
    return PixelSpace(tuple(mean.tolist()), tuple(std.tolist()), f"over {count} images of {name}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
