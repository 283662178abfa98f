"""Folders of images: one folder per class, or one flat folder without classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image
from torch.utils.data import Dataset

from lit_viz.data.base import UNLABELLED, ImageDataModule, PreparedImages, split_indices
from lit_viz.errors import UsageError, nearest
from lit_viz.pixels import PixelSpace

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_Sample = tuple[Path, int]


class ImageFolderData(ImageDataModule):
    """Images from folders.

    A folder with a subfolder per class gives labelled images, the classes in alphabetical order; a flat
    folder gives unlabelled ones. Without `val_dir`, a random part of each class in `train_dir` is held out,
    the same one for the same `split_seed`. With `val_dir` alone, there is nothing to train on, but all to
    look at.

    Images may be grey, colour, with palette, transparent (which becomes white), CMYK, of 16 bits, or turned
    by a camera (EXIF). Broken files are named: those that don't even open are found in `setup` (about 0.1 ms
    a file) and left out; one that opens but breaks off is found when it is read, and the next file stands in
    for it, always the same one, so that indices and the length of an epoch stay as they are.

    Attributes:
        skipped: Files that were left out by `setup`.

    Args:
        train_dir: Folder of training images.
        val_dir: Folder of validation images.
        test_dir: Folder of test images; None takes the validation images.
        size: Side of the square images in pixels.
        batch_size: Images per batch.
        val_fraction: Part of the training images to hold out where there is no `val_dir`, between 0 and 1.
        split_seed: Chooses which.
        random_crop: Train on random parts of the images.
        random_flip: Mirror training images at random.
        on_corrupt: What to do with a broken file: "skip" it with a warning, or "raise" an error.
        num_workers: Processes that prepare batches.
        mean: Per-channel mean to subtract, in colour units from 0 to 1; by default ImageNet's.
        std: Per-channel standard deviation to divide by; by default ImageNet's.
        in_channels: 3 for colour, 1 for grey; images are converted.
        labels: False leaves the names of subfolders out of account: images to look at with a network that has classes
            of its own.

    Raises:
        UsageError: For folders that aren't there, are empty, or mix loose images with classes; for an empty
            class; and for broken files, if so chosen.
    """

    def __init__(
        self,
        train_dir: str | Path | None = None,
        val_dir: str | Path | None = None,
        test_dir: str | Path | None = None,
        size: int = 224,
        batch_size: int = 32,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        random_crop: bool = False,
        random_flip: bool = False,
        on_corrupt: Literal["skip", "raise"] = "skip",
        num_workers: int = 0,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        in_channels: int = 3,
        labels: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if train_dir is None and val_dir is None:
            raise UsageError("give train_dir, or val_dir if there is nothing to train on.")
        if not 0 < val_fraction < 1:
            raise UsageError(f"val_fraction must lie between 0 and 1, got {val_fraction}.")
        if on_corrupt not in ("skip", "raise"):
            raise UsageError(f"on_corrupt must be 'skip' or 'raise', got {on_corrupt!r}.")
        if in_channels not in (1, 3):
            raise UsageError(f"in_channels must be 3 for colour or 1 for grey, got {in_channels}.")
        self.size = size
        self.random_crop = random_crop
        self.random_flip = random_flip
        self.on_corrupt = on_corrupt
        self.in_channels = in_channels
        if in_channels == 1:
            # The defaults are for colour.
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        self.mean, self.std = tuple(mean), tuple(std)
        self.skipped: list[Path] = []

        first = train_dir if train_dir is not None else val_dir
        self.class_names = _class_folders(Path(first))
        self.labels = labels
        self._samples: dict[str, list[_Sample]] = {}
        if train_dir is not None:
            self._samples["train"] = _list(Path(train_dir), self.class_names)
        if val_dir is not None:
            self._samples["val"] = _list(Path(val_dir), self.class_names)
        else:
            self._samples["train"], self._samples["val"] = _split(self._samples["train"], val_fraction, split_seed)
        if test_dir is not None:
            self._samples["test"] = _list(Path(test_dir), self.class_names)
        if not labels:
            self.class_names = []
            self._samples = {part: [(f, UNLABELLED) for f, _ in files] for part, files in self._samples.items()}

    def setup(self, stage: str) -> None:
        if self.val_set is not None:
            return
        sets = {part: self._prepared(part) for part in self._samples}
        if self.skipped:
            warnings.warn(f"left out {len(self.skipped)} broken image files: {_some(self.skipped)}.", stacklevel=2)
        self.train_set = sets.get("train")
        self.val_set = sets["val"]
        self.test_set = self.predict_set = sets.get("test", sets["val"])

    def _prepared(self, part: str) -> PreparedImages:
        readable = []
        for file, label in self._samples[part]:
            if (fault := _fault(file)) is None:
                readable.append((file, label))
            elif self.on_corrupt == "raise":
                raise _broken(file, fault)
            else:
                self.skipped.append(file)
        lost = {label for _, label in self._samples[part]} - {label for _, label in readable}
        if lost and self.class_names and part == "train":
            names = ", ".join(self.class_names[label] for label in sorted(lost))
            raise UsageError(f"no readable image in class {names}; mend the files, or remove the folder.")
        if not readable:
            raise UsageError(f"no readable {part} image, among them {self._samples[part][0][0]}.")
        return PreparedImages(
            _Files(readable, self.on_corrupt),
            range(len(readable)),
            PixelSpace(self.mean, self.std, "from ImageFolderData"),
            channels=self.in_channels,
            size=self.size,
            random_crop=part == "train" and self.random_crop,
            random_flip=part == "train" and self.random_flip,
        )


class _Files(Dataset):
    """Image files and labels; the next readable file stands in for one that can't be read."""

    def __init__(self, samples: Sequence[_Sample], on_corrupt: Literal["skip", "raise"]) -> None:
        self.samples = list(samples)
        self.captions = [file.name for file, _ in samples]
        self.on_corrupt = on_corrupt
        self._told: set[Path] = set()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        for step in range(len(self)):
            file, label = self.samples[(index + step) % len(self)]
            try:
                with Image.open(file) as picture:
                    picture.load()
                    return picture, label
            except _BROKEN as error:
                if self.on_corrupt == "raise":
                    raise _broken(file, error) from error
                if file not in self._told:
                    self._told.add(file)
                    warnings.warn(f"broken image file {file} ({error}); the next stands in.", stacklevel=2)
        raise UsageError(f"none of {len(self)} image files can be read, among them {self.samples[0][0]}.")


def _class_folders(folder: Path) -> list[str]:
    """Names of the subfolders that are classes; none in a flat folder of images."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}.")
    classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and not d.name.startswith((".", "_")))
    loose = [f for f in sorted(folder.iterdir()) if _is_image(f)]
    if classes and loose:
        raise UsageError(f"{folder} holds class folders and loose images, such as {loose[0].name}; move these away.")
    if not classes and not loose:
        raise UsageError(
            f"{folder} is empty: it needs a subfolder per class, or images ({', '.join(sorted(_SUFFIXES))})."
        )
    return classes


def _list(folder: Path, class_names: Sequence[str]) -> list[_Sample]:
    """Files of a folder, class by class, each in alphabetical order."""
    own = _class_folders(folder)
    if not class_names:
        if own:
            raise UsageError(f"{folder} holds classes ({_some(own)}), the other folder none; they must agree.")
        return [(f, UNLABELLED) for f in sorted(folder.iterdir()) if _is_image(f)]
    if not own:
        return [(f, UNLABELLED) for f in sorted(folder.iterdir()) if _is_image(f)]
    strangers = [name for name in own if name not in class_names]
    if strangers:
        raise UsageError(
            f"{folder / strangers[0]} is a class that the training images lack; {nearest(strangers[0], class_names)}"
        )
    samples = []
    for name in own:
        files = [f for f in sorted((folder / name).rglob("*")) if _is_image(f)]
        if not files:
            raise UsageError(f"the class folder {folder / name} holds no image; fill or remove it.")
        samples += [(f, class_names.index(name)) for f in files]
    return samples


def _split(samples: list[_Sample], fraction: float, seed: int) -> tuple[list[_Sample], list[_Sample]]:
    """Holds out a part of each class."""
    train: list[_Sample] = []
    val: list[_Sample] = []
    for label in sorted({label for _, label in samples}):
        of_class = [s for s in samples if s[1] == label]
        kept, held_out = split_indices(len(of_class), fraction, seed)
        train += [of_class[i] for i in kept]
        val += [of_class[i] for i in held_out]
    if not val:
        raise UsageError("too few images to hold some out; give val_dir, or more images.")
    return train, val


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()


def _fault(file: Path) -> str | None:
    """Why a file is no image, or None; reads headers and, where there are any, checksums."""
    try:
        with Image.open(file) as picture:
            picture.verify()
    except _BROKEN as error:
        return str(error)
    return None


def _broken(file: Path, fault: object) -> UsageError:
    return UsageError(f"broken image file {file} ({fault}); mend or remove it, or let on_corrupt='skip' it.")


def _some(items: Sequence[object], n: int = 5) -> str:
    return ", ".join(str(i) for i in items[:n]) + (f" and {len(items) - n} more" if len(items) > n else "")
