"""When to look, at which images, and what happens when a look fails: the base of all visualization callbacks."""

from __future__ import annotations

import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.nn.parameter import is_lazy

from lit_viz.budget import Budget
from lit_viz.callbacks.look import Look, TargetChoice
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.classes import names_of
from lit_viz.functional.scores import Score
from lit_viz.layers import find_layer
from lit_viz.pixels import find_pixel_space, given_pixel_space, guess_pixel_space
from lit_viz.probing import (
    BatchToImages,
    Forward,
    Probe,
    dataloader,
    load_probe,
    looking,
    probe_from_batch,
    to_network,
)
from lit_viz.write_behind import WriteBehind
from lit_viz.writer import Writer


class VisualizationCallback(Callback):
    """Looks at a model while it trains, validates or is tested, and logs pictures.

    Training with such a callback ends in bit-identical weights to training without it. Pictures are drawn while
    validation runs, so that they show the same weights as the validation metrics (averaged ones included), or at the
    end of the epoch where there is no validation.

    Args:
        every_n_epochs: Look every so many epochs; None for never.
        every_n_steps: Look every so many optimizer steps instead.
        at_start: Also look before the first step, at the untrained network.
        at_end: Also look after the last step, if the last look is older.
        budget: Share of the time of a run that looks may take, 0.05 for 5 %: a look that is due but would take it over
            that is left out (see `Budget`; one given to several callbacks is an account they share). Which looks are
            taken then depends on how fast the machine is. None to take them all.
        num_images: How many probe images; they stay the same over the run.
        target: Which class to ask about: "label" (the true class, or the predicted one where there is no label that
            the network knows), "predicted", a class index or name (or a word that only one name has), or one of these
            for each image.
        class_names: Names of the classes; by default those of the module, data module or data set.
        mean: Mean of the normalisation that the images went through, in colour units (0 to 1), one value or one for
            each channel; by default found in the data module or the data set's transforms.
        std: Standard deviation, likewise.
        batch_to_images: From a batch to images or (images, labels), for batches in which they can't be found.
        score: From what the module returns to class scores (N, K), for modules that return anything else.
        forward: How to run the module on images (N, C, H, W), where `module(images)` is not it; for instance
            `lambda module, images: module.net(images, None)`.
        dataloader_idx: Which validation (or test) loader to look at.
        on_error: "warn": a look that fails is left out, with one warning that says why, and training goes on.
            "raise": for tests.
        name: First part of the tags; give one to use two callbacks of a class side by side.
        folder: Also write PNG files here.
        seed: For the choices at random inside a look; the same at every step.

    Raises:
        UsageError: From the constructor, or before the first training step, for what can't work.
    """

    tag: ClassVar[str]
    """First part of the tags, `<visualization>/<layer or variant>`."""

    needs: ClassVar[Literal["weights", "images", "scores"]] = "scores"
    """What must be had for it to make sense: the network alone, images too, or also a class score for each image."""

    def __init__(
        self,
        *,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        budget: float | Budget | None = None,
        num_images: int = 8,
        target: TargetChoice = "label",
        class_names: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        batch_to_images: BatchToImages | None = None,
        score: Score | None = None,
        forward: Forward | None = None,
        dataloader_idx: int = 0,
        on_error: Literal["warn", "raise"] = "warn",
        name: str | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        for label, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None:
                check_at_least(label, value, 1, " or null for never")
        check_at_least("num_images", num_images, 1)
        check_at_least("dataloader_idx", dataloader_idx, 0)
        check_choice("on_error", on_error, ("warn", "raise"))
        if (mean is None) != (std is None):
            raise UsageError("give mean and std together, or neither to have them found.")
        for label, function in (("batch_to_images", batch_to_images), ("score", score), ("forward", forward)):
            if function is not None and not callable(function):
                raise UsageError(f"{label} must be a function, got {function!r}.")
        self.every_n_epochs = None if every_n_steps else every_n_epochs
        self.every_n_steps = every_n_steps
        self.at_start, self.at_end = at_start, at_end
        self.budget = budget if budget is None or isinstance(budget, Budget) else Budget(budget)
        self.num_images, self.target = num_images, target
        self.class_names = None if class_names is None else list(class_names)
        self.pixels = None if mean is None or std is None else given_pixel_space(mean, std)
        self.batch_to_images, self.score, self.forward = batch_to_images, score, forward
        self.dataloader_idx, self.on_error, self.folder, self.seed = dataloader_idx, on_error, folder, seed
        self.name = name or self.tag
        self.written: Counter[str] = Counter()
        self.seconds = 0.0
        self._probe: Probe | None = None
        self._state = "new"  # the same on all ranks: "new", "waiting" for a batch, "ready", "failed"
        self._last: tuple[int, int] | None = None  # step and epoch of the last look
        self._due = self._left_out = 0  # looks, where there is a budget
        self._warned: set[str] = set()
        # What became of pictures, told by the thread that writes: tag, seconds, failure.
        self._outcomes: deque[tuple[str | None, float, Exception | None]] = deque()
        self._unwritten: Exception | None = None

    # What a visualization says of itself.

    def layer_names(self) -> Sequence[str]:
        """Layers given by name: looked up before anything else happens."""
        return ()

    def check(self, look: Look) -> None:
        """Raises `UsageError` for what can't work on this model and these images; called before the first step."""

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        """Draws.

        Args:
            look: The model, the probe images and what is known of them, inside the guard.

        Returns:
            Pictures, uint8 (H, W, 3), and numbers, which become curves over the run, by the last part of their tag
            ("probe" becomes "saliency/probe").
        """
        raise NotImplementedError(f"{type(self).__name__} must override visualize().")

    # When.

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback: tensors and plain values by name; nothing by default."""
        return {}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes back what `memory` gave."""

    # Under a key of our own: Lightning wants those of `state_dict` unique before two of a class can be told apart.

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        memory = self.memory()
        if memory:
            checkpoint.setdefault("lit_viz", {})[self.name] = memory

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        memory = checkpoint.get("lit_viz", {}).get(self.name)
        if memory:
            self.attempt(trainer, lambda: self.remember(memory), "take its memory from the checkpoint")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Two of a class: the second writes beside the first, not over it.
        taken = {c.name for c in _visualizations(trainer)[: _visualizations(trainer).index(self)]}
        base, number = self.name, 2
        while self.name in taken:
            self.name, number = f"{base}-{number}", number + 1
        self._state, self._probe, self._last = "new", None, None
        self._due = self._left_out = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.loggers and self.folder is None:
            rank_zero_warn(f"{self.name}: without a logger its pictures go nowhere; give folder=... for PNG files.")
        for layer in self.layer_names():
            find_layer(pl_module, layer)
        if self.budget is not None:
            self.budget.open(self.name, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.prepare(trainer, pl_module)
        self._draw_at_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._state == "waiting" and trainer.val_dataloaders is None:
            self.prepare(trainer, pl_module, batch)
            self._draw_at_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step > 0 and not self._drawn(step):
            self.take_turn(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and dataloader_idx == self.dataloader_idx:
            self.prepare(trainer, pl_module, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != 0 or dataloader_idx != self.dataloader_idx or trainer.sanity_checking:
            return
        if trainer.state.fn != "fit" or self.epoch_due(trainer):
            self.take_turn(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epoch_due(trainer):
            self.take_turn(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_end and not self._drawn(trainer.global_step):
            self.take_turn(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.on_fit_start(trainer, pl_module)
            self.prepare(trainer, pl_module)

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def _draw_at_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_start and trainer.global_step == 0 and self._state == "ready":
            self.take_turn(trainer, pl_module)
            self._last = (0, -1)  # the look that epoch 0 has coming is another one

    def epoch_due(self, trainer: Trainer) -> bool:
        """Whether this epoch has a look coming."""
        if self.every_n_epochs is None:
            return False
        last = -1 if self._last is None else self._last[1]
        return (trainer.current_epoch + 1) // self.every_n_epochs > (last + 1) // self.every_n_epochs

    def _drawn(self, step: int) -> bool:
        return self._last is not None and self._last[0] == step

    def take_turn(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A look that is due: taken, if it is within the budget."""
        self._last = (trainer.global_step, trainer.current_epoch)
        if self._state == "ready" and self.granted(trainer):
            self.draw(trainer, pl_module)

    def granted(self, trainer: Trainer) -> bool:
        """Whether the look that is due is within the budget, on all ranks; with a budget a collective."""
        if self.budget is None or trainer.state.fn != "fit":
            return True
        self._book_written()  # what the background took since the last look counts
        granted = not _largest(trainer, int(not self.budget.allows(self.name)))
        self.budget.settle(self.name, granted)
        self._due += 1
        self._left_out += not granted
        return granted

    # How.

    def prepare(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        """Takes the probe images and checks, once, that the visualization makes sense for them.

        A collective until it went well or failed: every rank must come here, and all go on with the same outcome.
        """
        if self._state in ("ready", "failed"):
            return
        failure = None
        try:
            with self.timed():
                state = "ready" if self._prepared(trainer, pl_module, batch) else "waiting"
        except Exception as error:
            failure = error
            begun = trainer.state.fn == "fit" and trainer.global_step > 0
            fatal = self.on_error == "raise" or (isinstance(error, UsageError) and not begun)
            state = "fatal" if fatal else "failed"
        states = ("ready", "waiting", "failed", "fatal")
        agreed = states[_largest(trainer, states.index(state))]
        self._state = "failed" if agreed == "fatal" else agreed
        try:
            if agreed == "fatal":
                raise failure or RuntimeError(f"{type(self).__name__} failed on another rank.")
            if failure is not None:
                self._warn(failure, "prepare", "and is left out")
            elif agreed == "failed":
                rank_zero_warn(f"{type(self).__name__} failed on another rank and is left out.")
        finally:
            del failure  # its traceback holds the tensors of the look, and this frame holds it

    def _prepared(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        if any(is_lazy(parameter) for parameter in pl_module.parameters()):
            return False  # the first pass gives them their values, which must be the run's own
        if self.needs != "weights" and self._probe is None:
            loader = dataloader(trainer, self.dataloader_idx)
            find = {"batch_to_images": self.batch_to_images}
            self._probe = load_probe(trainer, pl_module, loader, self.num_images, seed=self.seed, **find)
            if self._probe is None and batch is not None:
                self._probe = probe_from_batch(batch, self.num_images, **find)
            if self._probe is None:
                return False
        with self.looking(trainer, pl_module):
            look = self.look(trainer, pl_module)
            if len(look.images):
                look.pixels.to_color(look.images)  # a mean or std of another length is told here
            self.check(look)
        return True

    def looking(self, trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
        """The guard around a look at the model."""
        return looking(trainer, pl_module, seed=self.seed, forward=self.forward)

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Look:
        """Runs the model on the probe images, inside the guard."""
        images = torch.zeros(0, 0, 0, 0) if self._probe is None else self._probe.images
        labels = None if self._probe is None else self._probe.labels
        data = _data_sources(trainer, self.dataloader_idx)
        told = find_pixel_space(*data, getattr(pl_module, "pixel_space", None), channels=images.shape[1] or None)
        look = Look(
            model=pl_module,
            images=to_network(trainer, pl_module, images),
            labels=labels,
            names=None if self._probe is None else self._probe.names,
            class_names=self.class_names or next((n for n in map(names_of, data) if n), None),
            pixels=self.pixels or told or guess_pixel_space(images),
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            score=self.score,
            scores=torch.zeros(len(images), 0),
            targets=torch.zeros(0, dtype=torch.int64),
        )
        if self.needs == "scores":
            look.ask(self.target, self.class_names)
        return look

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One look, and its pictures."""

        def run() -> None:
            with self.looking(trainer, pl_module):
                drawn = self.visualize(self.look(trainer, pl_module))
            self.write(trainer, drawn)

        if self.budget is not None and torch.accelerator.is_available():
            torch.accelerator.synchronize()  # what training has queued is not the look's time
        self.attempt(trainer, run, "draw")
        if self.budget is not None and trainer.state.fn == "fit":
            cost = {f"cost/{self.name}": self.budget.cost(self.name)}
            self.attempt(trainer, lambda: self._write_numbers(trainer, cost, trainer.global_step), "write its cost")

    def writer(self, trainer: Trainer) -> Writer:
        """To all loggers of the run, and the folder."""
        return Writer(trainer.loggers, self.folder)

    def write(self, trainer: Trainer, drawn: Mapping[str, np.ndarray | float], step: int | None = None) -> None:
        """Rank zero writes numbers to all loggers, and pictures, in the background where loggers allow it."""
        if not trainer.is_global_zero:
            return
        writer, behind = self.writer(trainer), WriteBehind.of(trainer)
        step = trainer.global_step if step is None else step
        tagged = {f"{self.name}/{variant}": value for variant, value in drawn.items()}
        numbers = {tag: float(value) for tag, value in tagged.items() if np.ndim(value) == 0}
        self._write_numbers(trainer, numbers, step)
        for tag, picture in tagged.items():
            if tag not in numbers:
                writer.picture_behind(tag, picture, step, behind.submit, partial(self._note_written, tag))
        writer.flush_behind(behind.submit, partial(self._note_written, None))

    def _write_numbers(self, trainer: Trainer, numbers: dict[str, float], step: int) -> None:
        if numbers and trainer.is_global_zero:
            self.writer(trainer).scalars(numbers, step)

    def _note_written(self, tag: str | None, seconds: float, failure: Exception | None) -> None:
        """What became of a picture, told by whichever thread wrote it."""
        self._outcomes.append((tag, seconds, failure))

    def _book_written(self) -> None:
        """Counts what was written by now, and keeps the first failure."""
        while self._outcomes:
            tag, seconds, failure = self._outcomes.popleft()
            self._spend(seconds)
            if failure is None and tag is not None:
                self.written[tag] += 1
            self._unwritten = self._unwritten or failure

    def _settle_written(self) -> Exception | None:
        """Counts what was written by now; returns the first failure since the last time."""
        self._book_written()
        try:
            return self._unwritten
        finally:
            self._unwritten = None

    def attempt(self, trainer: Trainer, run: Callable[[], None], what: str) -> bool:
        """Runs something that may fail without harm to the run.

        Every rank must come here, since with `on_error="raise"` ranks agree on whether one of them failed. What failed
        to be written in the background since the last time is told here as well.

        Args:
            trainer: The trainer.
            run: What to do.
            what: In words, for the warning.

        Returns:
            Whether it went well on this rank.
        """
        failure = None
        with self.timed():
            try:
                run()
            except Exception as error:
                failure = error
        well = failure is None
        unwritten = self._settle_written()
        if failure is None and unwritten is not None:
            failure, what = unwritten, "write"
        try:
            if self.on_error == "raise":
                if _largest(trainer, int(failure is not None)):
                    raise failure or RuntimeError(f"{type(self).__name__} failed on another rank.")
            elif failure is not None:
                self._warn(failure, what)
        finally:
            del failure, unwritten  # their tracebacks hold the tensors of the look, and this frame holds them
        return well

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the time as the visualization's."""
        clock = time.perf_counter if self.budget is None else self.budget.clock
        started = clock()
        try:
            yield
        finally:
            self._spend(clock() - started)

    def _spend(self, seconds: float) -> None:
        self.seconds += seconds
        if self.budget is not None:
            self.budget.spend(self.name, seconds)

    def _warn(self, failure: Exception, what: str, outcome: str = "and is left out here") -> None:
        cause = f"{type(failure).__name__}: {failure}"
        # The message of a full disk may name the file, another one each time.
        code = failure.errno if isinstance(failure, OSError) else None
        kind = cause if code is None else f"{type(failure).__name__} {code}"
        if kind in self._warned:
            return
        self._warned.add(kind)
        frames = traceback.extract_tb(failure.__traceback__)
        # The last place in code of the user's or ours, not inside of torch; none where nothing was raised.
        frame = next((f for f in reversed(frames) if "site-packages" not in f.filename), (frames or [None])[-1])
        place = "" if frame is None else f"  at {frame.filename}:{frame.lineno}: {frame.line}\n"
        calls = isinstance(failure, TypeError) and "argument" in str(failure)
        hint = "  (forward=lambda module, images: ... says how to run the module on images alone)\n" if calls else ""
        rank_zero_warn(
            f"{self.name}: {type(self).__name__} could not {what} {outcome}; the run goes on.\n  {cause}\n"
            f"{place}{hint}  (on_error='raise' stops with the full traceback)"
        )

    # At the end.

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        WriteBehind.of(trainer).finish()  # for all visualizations; loggers are closed after this
        self.attempt(trainer, lambda: None, "write")
        self._report()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Likewise, but for what ranks would have to agree on: the others may be elsewhere.
        WriteBehind.of(trainer).finish()
        failure = self._settle_written()
        if failure is not None:
            self._warn(failure, "write")
        self._report()

    def _report(self) -> None:
        if self.budget is not None and self._left_out:
            rank_zero_info(
                f"{self.name}: {self._left_out} of {self._due} looks left out to stay within "
                f"{self.budget.share * 100:g} % of the time."
            )


def layer_list(layers: str | Sequence[str] | None) -> list[str] | None:
    """Layer names as a list; None stays, for "choose some".

    Raises:
        UsageError: For anything else, or an empty list.
    """
    names = [layers] if isinstance(layers, str) else layers
    if names is None:
        return None
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"layers are given by their dotted names, one or a list of them, not {layers!r}.")
    return list(names)


def _largest(trainer: Trainer, value: int) -> int:
    """The largest value over all ranks; a collective."""
    if trainer.world_size == 1:
        return value
    tensor = torch.tensor(float(value), device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(tensor, reduce_op="max"))


def _visualizations(trainer: Trainer) -> list[VisualizationCallback]:
    return [c for c in trainer.callbacks if isinstance(c, VisualizationCallback)]


def _data_sources(trainer: Trainer, index: int) -> list[Any]:
    """Where class names and normalisation may stand, best first."""
    loader = dataloader(trainer, index)
    return [getattr(trainer, "datamodule", None), getattr(loader, "dataset", None), loader]
