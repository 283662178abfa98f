"""Where pictures go: TensorBoard first, then any Lightning logger that takes images, or PNG files."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
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

# A DataLoader may fork while another thread writes: a lock that its first import holds would stay locked in the worker.
Image.preinit()

Task = Callable[[], Any]
Done = Callable[[float, Exception | None], None]
Submit = Callable[[Task, int, Done], None]

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
        here, anywhere = self._tasks(tag, picture, step)
        run_all([*here, *anywhere])

    def picture_behind(self, tag: str, picture: np.ndarray, step: int, submit: Submit, done: Done) -> None:
        """Writes one picture, without waiting for it where the loggers allow that.

        Args:
            tag: As in `picture`.
            picture: As in `picture`; it may be changed afterwards.
            step: As in `picture`.
            submit: Takes what any thread may do later, how many bytes that holds on to, and who is to be told.
            done: Told of the seconds that it took elsewhere, and of the first failure or None; of nothing where there
                is nothing to write to.
        """
        picture = np.array(picture)
        here, anywhere = self._tasks(tag, picture, step)
        failure = first_failure(here)
        if anywhere:
            submit(partial(run_all, anywhere), picture.nbytes, lambda seconds, later: done(seconds, failure or later))
        elif here:
            done(0.0, failure)

    def _tasks(self, tag: str, picture: np.ndarray, step: int) -> tuple[list[Task], list[Task]]:
        """What must be done in this thread to write a picture, and what may be done in any, in order."""
        here: list[Task] = []
        anywhere: list[Task] = []
        for target in [*self.loggers, *([self.folder] if self.folder else [])]:
            try:
                task, bound = _task(target, tag, picture, step)
            except Exception as error:
                task, bound = partial(_raise, error), True
            (here if bound else anywhere).append(task)
        return here, anywhere

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Writes numbers by tag."""
        run_all(partial(logger.log_metrics, values, step=step) for logger in self.loggers)

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

        def write(logger: TensorBoardLogger) -> None:
            logger.experiment.add_embedding(
                features.cpu(), rows, sprites.cpu(), step, tag=tag, metadata_header=["class", "sample"]
            )

        run_all(partial(write, logger) for logger in self.loggers if isinstance(logger, TensorBoardLogger))

    def flush(self) -> None:
        """Makes what TensorBoard got visible, if the last time was a while ago: waiting for the disk takes its time.

        At the end of a run its logger does the rest.
        """
        run_all(self._flushes())

    def flush_behind(self, submit: Submit, done: Done) -> None:
        """Likewise, without waiting."""
        flushes = self._flushes()
        if flushes:
            submit(partial(run_all, flushes), 0, done)

    def _flushes(self) -> list[Task]:
        now, due = time.monotonic(), []
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and now - _flushed.get(logger, 0.0) > FLUSH_SECONDS:
                due.append(logger.experiment.flush)
                _flushed[logger] = now
        return due


def run_all(tasks: Iterable[Task]) -> None:
    """Does all of them, also where one fails; then raises the first failure."""
    failure = first_failure(tasks)
    try:
        if failure is not None:
            raise failure
    finally:
        del failure  # its traceback holds this frame, and with it the pictures


def first_failure(tasks: Iterable[Task]) -> Exception | None:
    """Does all of them, also where one fails; returns the first failure."""
    failure: Exception | None = None
    for task in tasks:
        try:
            task()
        except Exception as error:
            failure = failure or error
    try:
        return failure
    finally:
        del failure  # likewise


def _task(target: Any, tag: str, picture: np.ndarray, step: int) -> tuple[Task, bool]:
    """How to write a picture to a logger or folder, and whether that is bound to the thread of the run."""
    if isinstance(target, Path):
        return partial(save_png, target, tag, picture, step), False
    if isinstance(target, TensorBoardLogger):
        return partial(_to_tensorboard, _event_writer(target), tag, picture, step, time.time()), False
    if isinstance(target, MLFlowLogger):
        # Its client logs from threads itself, where asked not to wait.
        log, now = target.experiment.log_image, int(time.time() * 1000)
        return partial(log, target.run_id, picture, key=tag, step=step, timestamp=now, synchronous=True), False
    if isinstance(target, WandbLogger):
        # Its history counts calls; another thread's would come between those of the run, and not always at one place.
        return partial(target.log_image, tag, [Image.fromarray(picture)], step=step), True
    if _takes_images(target):
        # Nobody knows whether it may be called while the run logs to it.
        return partial(target.log_image, tag, [picture], step=step), True
    return partial(save_png, _folder_beside(target), tag, picture, step), False


def _raise(error: Exception) -> None:
    raise error


def _event_writer(logger: TensorBoardLogger) -> Callable[[], Any]:
    """TensorBoard's writer of events, which has a queue and a lock of its own: any thread may write to it."""
    find: Callable[[], Any] = logger.experiment._get_file_writer
    find()  # made in this thread, so that no two make one; asked for again later, since closing the logger ends it
    return find


def _to_tensorboard(writer: Callable[[], Any], tag: str, picture: np.ndarray, step: int, now: float) -> None:
    # What `add_image` does, in a third of its time: it converts to float and back, and compresses hard.
    height, width = picture.shape[:2]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded(picture))
    writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step, now)


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
