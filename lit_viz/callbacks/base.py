"""When to look, at which images, and what happens when a look fails: the base of all visualization callbacks."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy

from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.classes import class_index, names_of, two_classes
from lit_viz.functional.scores import Score, class_scores, probabilities, resolve_target
from lit_viz.layers import convolutions, find_layer
from lit_viz.pixels import PixelSpace, find_pixel_space, given_pixel_space, guess_pixel_space
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
from lit_viz.writer import Writer

TargetChoice = Literal["label", "predicted"] | int | str | Sequence[int | str]


@dataclass
class Look:
    """All that a visualization needs of one look at a model.

    Attributes:
        model: Maps images to the model's output; in evaluation mode, gradients on.
        images: (N, C, H, W) on the model's device; (0, 0, 0, 0) for a visualization that needs the weights alone.
        labels: (N,) int64 in the classes of `class_names`, −1 where unknown, or None.
        names: What the data set calls the images, or None.
        class_names: Names of the classes, or None.
        pixels: How network input relates to colours.
        step: The trainer's global step.
        epoch: The trainer's epoch.
        score: From what the model returns to scores (N, K), or None where it returns these.
        scores: (N, K), detached; empty, (N, 0), for a visualization that needs none.
        targets: (N,) int64, the class of each image that is asked about; empty, (0,), likewise.
    """

    model: LightningModule
    images: Tensor
    labels: Tensor | None
    names: list[str] | None
    class_names: list[str] | None
    pixels: PixelSpace
    step: int
    epoch: int
    score: Score | None
    scores: Tensor
    targets: Tensor

    @property
    def when(self) -> str:
        """Epoch and step in words, for titles; for a finished model what is done with it."""
        stage = self.model.trainer.state.fn
        if stage != "fit":
            return str(stage.value)
        return f"epoch {self.epoch} · step {self.step:,}".replace(",", " ")

    def class_name(self, index: int) -> str:
        """Name of a class, or "class 7" where names are unknown."""
        return self.class_names[index] if self.class_names else f"class {index}"

    def captions(self) -> list[tuple[str, str, bool | None]]:
        """For each image a caption (the target and its probability), a detail line, and whether the network is right.

        Scores that are not finite are said, not drawn over.
        """
        out = []
        p = probabilities(self.scores).cpu()
        for i, target in enumerate(self.targets.tolist()):
            name = self.class_name(target)
            if not torch.isfinite(self.scores[i]).all():
                out.append((name, "scores are NaN or infinite", None))
                continue
            best = int(self.scores[i].argmax())
            label = None if self.labels is None or self.labels[i] < 0 else int(self.labels[i])
            details = []
            if best != target:
                details.append(f"predicted {self.class_name(best)}  {p[i, best]:.2f}")
            if label is not None and label != target:
                details.append(f"label {self.class_name(label)}")
            if self.names:
                details.append(self.names[i])
            out.append((f"{name}  {p[i, target]:.2f}", " · ".join(details), None if label is None else best == label))
        return out


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
        self._warned: set[str] = set()

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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.loggers and self.folder is None:
            rank_zero_warn(f"{self.name}: without a logger its pictures go nowhere; give folder=... for PNG files.")
        for layer in self.layer_names():
            find_layer(pl_module, layer)

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
            self.draw(trainer, pl_module)

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
            self.draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.epoch_due(trainer):
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_end and not self._drawn(trainer.global_step):
            self.draw(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self.on_fit_start(trainer, pl_module)
            self.prepare(trainer, pl_module)

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def _draw_at_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.at_start and trainer.global_step == 0 and self._state == "ready":
            self.draw(trainer, pl_module)
            self._last = (0, -1)  # the look that epoch 0 has coming is another one

    def epoch_due(self, trainer: Trainer) -> bool:
        """Whether this epoch has a look coming."""
        if self.every_n_epochs is None:
            return False
        last = -1 if self._last is None else self._last[1]
        return (trainer.current_epoch + 1) // self.every_n_epochs > (last + 1) // self.every_n_epochs

    def _drawn(self, step: int) -> bool:
        return self._last is not None and self._last[0] == step

    # How.

    def prepare(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        """Takes the probe images and checks, once, that the visualization makes sense for them.

        A collective until it went well or failed: every rank must come here, and all go on with the same outcome.
        """
        if self._state in ("ready", "failed"):
            return
        started, failure = time.perf_counter(), None
        try:
            state = "ready" if self._prepared(trainer, pl_module, batch) else "waiting"
        except Exception as error:
            failure = error
            begun = trainer.state.fn == "fit" and trainer.global_step > 0
            fatal = self.on_error == "raise" or (isinstance(error, UsageError) and not begun)
            state = "fatal" if fatal else "failed"
        self.seconds += time.perf_counter() - started
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
            self._add_scores(look)
        return look

    def _add_scores(self, look: Look) -> None:
        """Runs the model, and finds out what its classes and targets are."""
        try:
            with torch.no_grad():
                look.scores = class_scores(look.model, look.images, score=look.score)
        except RuntimeError as error:
            first = next(iter(convolutions(look.model).items()), None)
            if first is None or first[1].in_channels == look.images.shape[1]:
                raise
            raise UsageError(
                f"the images have {look.images.shape[1]} channel(s), but the first convolution '{first[0]}' takes "
                f"{first[1].in_channels}; convert the images, or give the network another first layer."
            ) from error
        labels, of_data = look.labels, look.class_names
        binary = labels is not None and bool((labels <= 1).all())
        if look.scores.shape[1] == 1 and (binary if of_data is None else len(of_data) == 2):
            # Two classes by one logit: scores whose softmax is its logistic function.
            look.score, one = two_classes(look.score), look.scores
            look.scores = torch.cat([-one / 2, one / 2], dim=1)
        classes = look.scores.shape[1]
        if self.class_names is not None and len(self.class_names) != classes:
            raise UsageError(f"{len(self.class_names)} class_names given for {classes} classes.")
        if of_data is None or len(of_data) != classes:
            of_model = (names_of(m) for m in (look.model, *look.model.children()))
            look.class_names = next((n for n in of_model if n and len(n) == classes), None)
            # Ten photographs say nothing about the classes of an ImageNet network.
            look.labels = look.labels if of_data is None else None
        if look.labels is not None:
            known = (look.labels >= 0) & (look.labels < classes)
            look.labels = look.labels.masked_fill(~known, -1).to(look.scores.device) if known.any() else None
        look.targets = resolve_target(look.scores, self._target(look))

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One look, and its pictures."""
        self._last = (trainer.global_step, trainer.current_epoch)
        if self._state != "ready":
            return

        def run() -> None:
            with self.looking(trainer, pl_module):
                drawn = self.visualize(self.look(trainer, pl_module))
            self.write(trainer, drawn)

        self.attempt(trainer, run, "draw")

    def writer(self, trainer: Trainer) -> Writer:
        """To all loggers of the run, and the folder."""
        return Writer(trainer.loggers, self.folder)

    def write(self, trainer: Trainer, drawn: Mapping[str, np.ndarray | float], step: int | None = None) -> None:
        """Rank zero writes pictures and numbers to all loggers."""
        if not trainer.is_global_zero:
            return
        writer = self.writer(trainer)
        step = trainer.global_step if step is None else step
        tagged = {f"{self.name}/{variant}": value for variant, value in drawn.items()}
        numbers = {tag: float(value) for tag, value in tagged.items() if np.ndim(value) == 0}
        if numbers:
            writer.scalars(numbers, step)
        for tag, picture in tagged.items():
            if tag in numbers:
                continue
            writer.picture(tag, picture, step)
            if writer.active:
                self.written[tag] += 1
        writer.flush()

    def attempt(self, trainer: Trainer, run: Callable[[], None], what: str) -> bool:
        """Runs something that may fail without harm to the run.

        Every rank must come here, since with `on_error="raise"` ranks agree on whether one of them failed.

        Args:
            trainer: The trainer.
            run: What to do.
            what: In words, for the warning.

        Returns:
            Whether it went well on this rank.
        """
        started, failure = time.perf_counter(), None
        try:
            run()
        except Exception as error:
            failure = error
        self.seconds += time.perf_counter() - started
        well = failure is None
        try:
            if self.on_error == "raise":
                if _largest(trainer, int(not well)):
                    raise failure or RuntimeError(f"{type(self).__name__} failed on another rank.")
            elif failure is not None:
                self._warn(failure, what)
        finally:
            del failure  # its traceback holds the tensors of the look, and this frame holds it
        return well

    def _warn(self, failure: Exception, what: str, outcome: str = "and is left out here") -> None:
        cause = f"{type(failure).__name__}: {failure}"
        if cause in self._warned:
            return
        self._warned.add(cause)
        frames = traceback.extract_tb(failure.__traceback__)
        # The last place in code of the user's or ours, not inside of torch.
        frame = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
        calls = isinstance(failure, TypeError) and "argument" in str(failure)
        hint = "  (forward=lambda module, images: ... says how to run the module on images alone)\n" if calls else ""
        rank_zero_warn(
            f"{self.name}: {type(self).__name__} could not {what} {outcome}; the run goes on.\n  {cause}\n"
            f"  at {frame.filename}:{frame.lineno}: {frame.line}\n{hint}"
            f"  (on_error='raise' stops with the full traceback)"
        )

    def _target(self, look: Look) -> Tensor | None:
        target, scores = self.target, look.scores
        if isinstance(target, (np.ndarray, np.generic, Tensor)):
            target = target.tolist()
        if target == "predicted" or (target == "label" and look.labels is None):
            return None
        if target == "label":
            assert look.labels is not None
            return torch.where(look.labels < 0, scores.argmax(dim=1), look.labels)
        if isinstance(target, (int, str)):
            return torch.tensor(class_index(target, look.class_names))
        if not isinstance(target, Sequence):
            raise UsageError(f"a target is 'label', 'predicted', a class index or a class name, not {target!r}.")
        if len(target) != len(scores):
            raise UsageError(f"{len(target)} targets given for {len(scores)} probe images.")
        return torch.tensor([class_index(t, look.class_names) for t in target])


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
