"""Where pictures go: TensorBoard first, then any Lightning logger that takes images, or PNG files."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

FLUSH_SECONDS = 10.0
_flushed: WeakKeyDictionary[TensorBoardLogger, float] = WeakKeyDictionary()

SPRITE_LIMIT = 8192  # pixels along a side of the projector's sprite sheet; beyond it nothing is drawn


class Writer:
    """Writes pictures, numbers and embeddings to all loggers of a run.

    TensorBoard, Weights & Biases and MLflow get images in their own way, and so does any logger with a method
    `log_image(key, images, step)`. A logger that only takes numbers (CSV) gets PNG files beside its own.

    Args:
        loggers: Loggers of the trainer; none means that nothing is written.
        folder: Also writes PNG files here.
    """

    def __init__(self, loggers: Sequence[Logger], folder: str | Path | None = None) -> None:
        self.loggers = [logger for logger in loggers if not isinstance(logger, DummyLogger)]
        self.folder = None if folder is None else Path(folder)

    @property
    def active(self) -> bool:
        """Whether anything is written at all."""
        return bool(self.loggers) or self.folder is not None

    @property
    def folders(self) -> list[Path]:
        """Where PNG files go."""
        beside = [_folder_beside(logger) for logger in self.loggers if not _takes_images(logger)]
        return beside + ([self.folder] if self.folder else [])

    def picture(self, tag: str, picture: np.ndarray, step: int) -> None:
        """Writes one picture.

        Args:
            tag: `<visualization>/<layer or variant>`.
            picture: uint8 (H, W, 3).
            step: The trainer's global step.
        """

        def write(logger: Any) -> None:
            if isinstance(logger, Path):
                save_png(logger, tag, picture, step)
            elif isinstance(logger, TensorBoardLogger):
                # What `add_image` does, in a third of its time: it converts to float and back, and compresses hard.
                height, width = picture.shape[:2]
                image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded(picture))
                summary = Summary(value=[Summary.Value(tag=tag, image=image)])
                logger.experiment._get_file_writer().add_summary(summary, step)
            elif isinstance(logger, WandbLogger):
                logger.log_image(tag, [Image.fromarray(picture)], step=step)
            elif isinstance(logger, MLFlowLogger):
                logger.experiment.log_image(logger.run_id, picture, key=tag, step=step, synchronous=True)
            elif _takes_images(logger):
                logger.log_image(tag, [picture], step=step)
            else:
                save_png(_folder_beside(logger), tag, picture, step)

        _to_each([*self.loggers, *([self.folder] if self.folder else [])], write)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Writes numbers by tag."""
        _to_each(self.loggers, lambda logger: logger.log_metrics(values, step=step))

    def embedding(
        self,
        tag: str,
        features: Tensor,
        names: Sequence[str],
        thumbnails: Tensor,
        step: int,
    ) -> None:
        """Writes features for TensorBoard's projector, with thumbnails; other loggers have none.

        Args:
            tag: Name in the projector.
            features: (N, D).
            names: Class name of each sample.
            thumbnails: uint8 (N, C, h, w); made smaller where the sprite sheet would pass the projector's limit.
            step: The trainer's global step.
        """
        # Two columns, because a header over a single one breaks the projector; tabs and newlines would split fields.
        rows = [[" ".join(name.split()) or "-", str(i)] for i, name in enumerate(names)]
        sprites = thumbnails.float() / 255
        sprites = sprites.expand(-1, 3, -1, -1) if sprites.shape[1] == 1 else sprites[:, :3]
        limit = SPRITE_LIMIT // math.ceil(math.sqrt(len(sprites)))
        height, width = sprites.shape[-2:]
        side = max(height, width)
        if height != width:  # the sheet has room for squares only
            margins = (
                (side - width) // 2,
                (side - width + 1) // 2,
                (side - height) // 2,
                (side - height + 1) // 2,
            )
            sprites = torch.nn.functional.pad(sprites, margins, value=1.0)
        if side > limit:
            sprites = torch.nn.functional.interpolate(sprites, size=(limit, limit), mode="area")

        def write(logger: Any) -> None:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(
                    features.cpu(), rows, sprites.cpu(), step, tag=tag, metadata_header=["class", "sample"]
                )

        _to_each(self.loggers, write)

    def flush(self) -> None:
        """Makes what TensorBoard got visible, if the last time was a while ago: waiting for the disk takes its time.

        At the end of a run its logger does the rest.
        """
        now = time.monotonic()
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and now - _flushed.get(logger, 0.0) > FLUSH_SECONDS:
                logger.experiment.flush()
                _flushed[logger] = now


def _to_each(targets: Sequence[Any], write: Callable[[Any], None]) -> None:
    """Writes to all, also where one of them fails; then raises the first failure."""
    failure: Exception | None = None
    for target in targets:
        try:
            write(target)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure


def encoded(picture: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as PNG: a tenth larger than it could be, in half the time."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png", compress_level=2)
    return file.getvalue()


def save_png(folder: Path, tag: str, picture: np.ndarray, step: int) -> Path:
    """Writes `<folder>/<tag>/step_<step>.png`, whole or not at all, and returns its path."""
    path = folder / tag / f"step_{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(encoded(picture))
    partial.replace(path)
    return path


def _takes_images(logger: Any) -> bool:
    known = (TensorBoardLogger, WandbLogger, MLFlowLogger)
    return isinstance(logger, known) or callable(getattr(logger, "log_image", None))


def _folder_beside(logger: Any) -> Path:
    if isinstance(logger, CSVLogger):
        _ = logger.experiment  # made later, it would warn of the files that we put there
    folder = getattr(logger, "log_dir", None)
    return Path(folder or logger.save_dir or ".") / "pictures"
