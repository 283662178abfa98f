"""What the commands share: which network, how it takes images, and where results go."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

import lit_viz.data  # noqa: F401  so that short class names in configurations work
from lit_viz import draw
from lit_viz.errors import UsageError
from lit_viz.functional.classes import class_index, names_of
from lit_viz.networks import InputFacts, Network, input_facts, load_network
from lit_viz.pixels import PixelSpace, find_pixel_space
from lit_viz.writer import Writer, encoded


def parser_for(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for a command of that name, with the arguments that say which network is meant and where results go."""
    parser = argparse.ArgumentParser(f"{Path(sys.argv[0]).name} {name}", description=description)
    parser.add_argument(
        "--model",
        help="name of a network (efficientnet_lite0, resnet18, small_cnn …) or dotted path; not needed where --weights "
        "is a checkpoint of ImageClassifier, which tells it",
    )
    parser.add_argument(
        "--weights", default="DEFAULT", help="name of pretrained weights, path of a checkpoint, or none (%(default)s)"
    )
    parser.add_argument("--out", default="pictures", help="folder for what is made (%(default)s)")
    parser.add_argument("--size", type=int, help="side of the square that images are brought to, px")
    parser.add_argument("--mean", type=numbers, help="of the normalisation, from 0 to 1: one number, or 0.5,0.4,0.4")
    parser.add_argument("--std", type=numbers, help="likewise, the standard deviation")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (%(default)s)")
    return parser


def numbers(text: str) -> float | list[float]:
    """One number, or several with commas between."""
    values = [float(v) for v in text.split(",")]
    return values if len(values) > 1 else values[0]


def listed(text: str) -> list[str]:
    """Words with commas between."""
    return [word.strip() for word in text.split(",") if word.strip()]


def chosen_network(given: argparse.Namespace) -> tuple[Network, InputFacts]:
    """The network that the arguments of `parser_for` name, on its device, and how it takes images.

    Raises:
        UsageError: If it, its weights or the device can't be had.
    """
    network = load(given.model, None if given.weights.casefold() == "none" else given.weights)
    try:
        network.module.to(torch.device(given.device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {given.device!r} can't be had: {str(error).splitlines()[0]}") from error
    return network, input_facts(network, mean=given.mean, std=given.std, size=given.size)


def classes_of(words: str, facts: InputFacts) -> list[int]:
    """Indices of classes given by index, name or a word of it, with commas between.

    A name that holds commas is taken whole where there is one.
    """
    if facts.class_names and words in facts.class_names:
        return [facts.class_names.index(words)]
    return [class_index(int(word) if word.isdigit() else word, facts.class_names) for word in listed(words)]


def load(model: str | None, weights: str | None) -> Network:
    """A network by name, or that of a checkpoint of ImageClassifier with what is known about its data."""
    if weights is None or not Path(weights).is_file():
        if model is None:
            raise UsageError(
                "give --model, such as efficientnet_lite0, or a checkpoint of ImageClassifier as --weights."
                if weights in (None, "DEFAULT")
                else f"there is no checkpoint at {weights}; give --model as well for weights of that name."
            )
        return load_network(model, weights=weights)
    options = None
    if model is None:
        try:
            told = torch.load(weights, map_location="cpu", weights_only=True).get("hyper_parameters", {})
        except Exception as error:
            raise UsageError(f"{weights} can't be read as a checkpoint ({str(error).splitlines()[0]}).") from error
        model, options = told.get("model"), told.get("options")
        if not isinstance(model, str):
            raise UsageError(f"{weights} does not tell which network it is of; give --model.")
    network = load_network(model, weights=weights, options=options)
    data = _data_beside(Path(weights))
    return replace(
        network,
        class_names=tuple(names_of(data) or ()) or None,
        pixel_space=find_pixel_space(data),
        image_size=getattr(data, "size", None),
    )


def _data_beside(checkpoint: Path) -> LightningDataModule | None:
    """The data of the run that left a checkpoint, from the configuration beside it, or None."""
    for folder in checkpoint.resolve().parents[:2]:
        try:
            section = yaml.safe_load((folder / "config.yaml").read_text())["data"]
            parser = LightningArgumentParser()
            parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
            return parser.instantiate_classes(parser.parse_object({"data": section})).data
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, SystemExit, argparse.ArgumentError):
            continue  # a folder that was moved; the sheet says that normalisation is a guess
    return None


class Results:
    """PNG files in a folder, and the same pictures and numbers as TensorBoard entries beside them.

    Args:
        folder: Made where it is missing.

    Raises:
        UsageError: If it can't be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the folder {folder} can't be made: {error.strerror}; give another one as --out."
            ) from error
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """To TensorBoard; whoever writes nothing leaves no files there."""
        if self._writer is None:
            self._writer = Writer([TensorBoardLogger(str(self.folder), name=None, version="tensorboard")])
        return self._writer

    def picture(self, name: str, picture: np.ndarray, *, tag: str | None = None, step: int = 0) -> Path:
        """Writes a picture, uint8 (H, W, 3), as `<name>.png` and under a tag, by default the name; says where."""
        path = self.folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(encoded(picture))
        partial.replace(path)
        self.writer.picture(tag or name, picture, step)
        return path

    def image(self, name: str, image: Tensor, space: PixelSpace, *, tag: str | None = None, step: int = 0) -> Path:
        """Writes one image (C, H, W), as the network takes it, pixel by pixel."""
        return self.picture(name, draw.to_uint8(space.to_color(image)), tag=tag, step=step)

    def scalars(self, values: dict[str, float], step: int = 0) -> None:
        """Writes numbers by tag."""
        self.writer.scalars(values, step)

    def close(self) -> None:
        """Makes all visible, and says how to look at it."""
        if self._writer is not None:
            for logger in self._writer.loggers:
                logger.experiment.close()
            print(how_to_look(self.folder / "tensorboard"), flush=True)


def output_paths(given: argparse.Namespace, images: list[str], names: list[str]) -> list[Path]:
    """Paths of results in the folder `--out`.

    Raises:
        UsageError: If one of them would take the place of an image that is read.
    """
    paths, inputs = [Path(given.out) / name for name in names], {Path(image).resolve() for image in images}
    for path in paths:
        if path.resolve() in inputs:
            raise UsageError(f"{path} would take the place of the image; give another folder as --out.")
    return paths


def how_to_look(folder: str | Path) -> str:
    """The command that shows what TensorBoard got."""
    # Only inside `uv run` does the path lead to what uv installed.
    prefix = "uv run " if "UV_RUN_RECURSION_DEPTH" in os.environ else ""
    return f"Look at them with:\n  {prefix}tensorboard --logdir {short_path(folder)} --samples_per_plugin images=1000"


def short_path(path: str | Path) -> Path:
    """A path as it is told, from where we are."""
    path = Path(path).resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
