"""When to look, at which images, and what happens when a look fails: the base of all visualization callbacks."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_viz.errors import UsageError, nearest
from lit_viz.functional.scores import Score, class_scores, probabilities, resolve_target
from lit_viz.layers import find_layer
from lit_viz.pixels import PixelSpace, find_pixel_space, guess_pixel_space
from lit_viz.probing import (
    BatchToImages,
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
        images: (N, C, H, W) on the model's device.
        scores: (N, K), detached.
        targets: (N,) int64, the class of each image that is asked about.
        labels: (N,) int64 in the classes of `class_names`, or None.
        names: What the data set calls the images, or None.
        class_names: K names, or None.
        pixels: How network input relates to colours.
        step: The trainer's global step.
        epoch: The trainer's epoch.
    """

    model: LightningModule
    images: Tensor
    scores: Tensor
    targets: Tensor
    labels: Tensor | None
    names: list[str] | None
    class_names: list[str] | None
    pixels: PixelSpace
    step: int
    epoch: int

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
            label = None if self.labels is None else int(self.labels[i])
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
        target: Which class to ask about: "label" (the true class, or the predicted one where there is no label),
            "predicted", a class index or name, or one of these for each image.
        class_names: Names of the classes; by default those of the module, data module or data set.
        mean: Mean of the normalisation that the images went through, in colour units (0 to 1); by default found in
            the data module or the data set's transforms.
        std: Standard deviation, likewise.
        batch_to_images: From a batch to images or (images, labels), for batches in which they can't be found.
        score: From what the module returns to class scores (N, K), for modules that return anything else.
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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_to_images: BatchToImages | None = None,
        score: Score | None = None,
        dataloader_idx: int = 0,
        on_error: Literal["warn", "raise"] = "warn",
        name: str | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        for label, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise UsageError(f"{label} must be at least 1, or null for never; got {value}.")
        if num_images < 1:
            raise UsageError(f"num_images must be at least 1, got {num_images}.")
        if on_error not in ("warn", "raise"):
            raise UsageError(f"on_error is 'warn' or 'raise', not {on_error!r}.")
        if (mean is None) != (std is None):
            raise UsageError("give mean and std together, or neither to have them found.")
        self.every_n_epochs = None if every_n_steps else every_n_epochs
        self.every_n_steps = every_n_steps
        self.at_start, self.at_end = at_start, at_end
        self.num_images, self.target = num_images, target
        self.class_names = None if class_names is None else list(class_names)
        self.pixels = None if mean is None or std is None else PixelSpace(tuple(mean), tuple(std))
        self.batch_to_images, self.score = batch_to_images, score
        self.dataloader_idx, self.on_error, self.folder, self.seed = dataloader_idx, on_error, folder, seed
        self.name = name or self.tag
        self.written: Counter[str] = Counter()
        self.seconds = 0.0
        self._probe: Probe | None = None
        self._checked = False
        self._last: tuple[int, int] | None = None  # step and epoch of the last look
        self._warned: set[str] = set()

    # What a visualization says of itself.

    def layer_names(self) -> Sequence[str]:
        """Layers given by name: looked up before anything else happens."""
        return ()

    def check(self, look: Look) -> None:
        """Raises `UsageError` for what can't work on this model and these images; called before the first step."""

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        """Draws.

        Args:
            look: The model, the probe images and what is known of them, inside the guard.

        Returns:
            Pictures, uint8 (H, W, 3), by the last part of their tag ("probe" becomes "saliency/probe").
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
        self._checked, self._probe, self._last = False, None, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in self.layer_names():
            find_layer(pl_module, layer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.prepare(trainer, pl_module)
        if self.at_start and trainer.global_step == 0:
            self.draw(trainer, pl_module)
            self._last = (0, -1)  # the look that epoch 0 has coming is another one

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.val_dataloaders is None:
            self.prepare(trainer, pl_module, batch)
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step > 0 and not self._drawn(step):
            self.draw(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx != 0 or dataloader_idx != self.dataloader_idx:
            return
        self.prepare(trainer, pl_module, batch)
        if not trainer.sanity_checking and (trainer.state.fn != "fit" or self.epoch_due(trainer)):
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
    on_test_batch_end = on_validation_batch_end

    def epoch_due(self, trainer: Trainer) -> bool:
        """Whether this epoch has a look coming."""
        if self.every_n_epochs is None:
            return False
        epoch = trainer.current_epoch
        if self._last is not None and self._last[1] == epoch:
            return False
        return (epoch + 1) % self.every_n_epochs == 0

    def _drawn(self, step: int) -> bool:
        return self._last is not None and self._last[0] == step

    # How.

    def prepare(self, trainer: Trainer, pl_module: LightningModule, batch: Any = None) -> None:
        """Takes the probe images and checks, once, that the visualization makes sense for them."""
        if self._checked:
            return

        def run() -> None:
            if self._probe is None:
                loader = dataloader(trainer, self.dataloader_idx)
                find = {"batch_to_images": self.batch_to_images}
                self._probe = load_probe(trainer, pl_module, loader, self.num_images, seed=self.seed, **find)
                if self._probe is None and batch is not None:
                    self._probe = probe_from_batch(batch, self.num_images, **find)
            if self._probe is None:
                return  # iterable data: the first batch will do
            self._checked = True
            with looking(trainer, pl_module, seed=self.seed):
                look = self.look(trainer, pl_module)
                look.pixels.to_color(look.images)  # a mean or std of another length is told here
                self.check(look)

        self.attempt(trainer, run, "prepare", usage_errors=batch is None or trainer.sanity_checking)

    def look(self, trainer: Trainer, pl_module: LightningModule) -> Look:
        """Runs the model on the probe images, inside the guard."""
        probe = self._probe
        assert probe is not None
        images = to_network(trainer, pl_module, probe.images)
        with torch.no_grad():
            scores = class_scores(pl_module, images, score=self.score)
        data = _data_sources(trainer, self.dataloader_idx)
        names, of_labels = self._find_class_names(pl_module, data, scores.shape[1])
        labels = None
        if probe.labels is not None and of_labels and bool((probe.labels >= 0).all()):
            labels = probe.labels.to(scores.device) if int(probe.labels.max()) < scores.shape[1] else None
        told = find_pixel_space(*data, getattr(pl_module, "pixel_space", None))
        pixels = self.pixels or told or guess_pixel_space(probe.images)
        targets = resolve_target(scores, self._target(scores, labels, names))
        return Look(
            pl_module,
            images,
            scores,
            targets,
            labels,
            probe.names,
            names,
            pixels,
            trainer.global_step,
            trainer.current_epoch,
        )

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One look, and its pictures."""
        self._last = (trainer.global_step, trainer.current_epoch)
        if self._probe is None or not self._checked:
            return

        def run() -> None:
            with looking(trainer, pl_module, seed=self.seed):
                pictures = self.visualize(self.look(trainer, pl_module))
            self.write(trainer, pictures)

        self.attempt(trainer, run, "draw")

    def write(self, trainer: Trainer, pictures: Mapping[str, np.ndarray], step: int | None = None) -> None:
        """Rank zero writes pictures to all loggers."""
        if not trainer.is_global_zero:
            return
        writer = Writer(trainer.loggers, self.folder)
        for variant, picture in pictures.items():
            tag = f"{self.name}/{variant}"
            writer.picture(tag, picture, trainer.global_step if step is None else step)
            if writer.active:
                self.written[tag] += 1
        writer.flush()

    def attempt(self, trainer: Trainer, run: Callable[[], None], what: str, *, usage_errors: bool = False) -> bool:
        """Runs something that may fail without harm to the run.

        Every rank must come here, since with `on_error="raise"` ranks agree on whether one of them failed.

        Args:
            trainer: The trainer.
            run: What to do.
            what: In words, for the warning.
            usage_errors: Let `UsageError` pass: the run has not begun and the user can mend it.

        Returns:
            Whether it went well on this rank.
        """
        started, failure = time.perf_counter(), None
        try:
            run()
        except Exception as error:
            failure = error
        self.seconds += time.perf_counter() - started
        fatal = self.on_error == "raise" or (usage_errors and isinstance(failure, UsageError))
        if failure is not None and not fatal:
            self._warn(failure, what)
        if trainer.world_size > 1 and (self.on_error == "raise" or usage_errors):
            others = trainer.strategy.reduce_boolean_decision(not (failure is not None and fatal), all=True)
            if not others and not (failure is not None and fatal):
                raise RuntimeError(f"{type(self).__name__} failed on another rank.")
        if failure is not None and fatal:
            raise failure
        return failure is None

    def _warn(self, failure: Exception, what: str) -> None:
        cause = f"{type(failure).__name__}: {failure}"
        if cause in self._warned:
            return
        self._warned.add(cause)
        where = "".join(traceback.format_tb(failure.__traceback__)[-1:]).strip()
        rank_zero_warn(
            f"{type(self).__name__} could not {what} and is left out here; training goes on. {cause}\n  {where}\n"
            f"  (on_error='raise' stops with the full traceback)"
        )

    def _find_class_names(
        self, module: LightningModule, data: Sequence[Any], classes: int
    ) -> tuple[list[str] | None, bool]:
        """Names of the network's classes, and whether the data's labels index them."""
        if self.class_names is not None:
            if len(self.class_names) != classes:
                raise UsageError(f"{len(self.class_names)} class_names given for {classes} classes.")
            return self.class_names, True
        of_data = next((n for n in map(_names_of, data) if n), None)
        if of_data is not None and len(of_data) == classes:
            return of_data, True
        of_model = next((n for n in map(_names_of, [module, *module.children()]) if n and len(n) == classes), None)
        return of_model, of_data is None

    def _target(self, scores: Tensor, labels: Tensor | None, names: list[str] | None) -> Tensor | None:
        if self.target == "predicted" or (self.target == "label" and labels is None):
            return None
        if self.target == "label":
            return labels
        if isinstance(self.target, (int, str)):
            return torch.tensor(_class_index(self.target, names))
        if len(self.target) != len(scores):
            raise UsageError(f"{len(self.target)} targets given for {len(scores)} probe images.")
        return torch.tensor([_class_index(t, names) for t in self.target])


def _class_index(target: int | str, names: list[str] | None) -> int:
    if isinstance(target, int) or target.isdigit():
        return int(target)
    if names is None:
        raise UsageError(f"target {target!r} can't be found: the classes have no names here; give class_names.")
    folded = [n.casefold() for n in names]
    if target.casefold() not in folded:
        raise UsageError(f"there is no class {target!r}; {nearest(target, names)}")
    return folded.index(target.casefold())


def _visualizations(trainer: Trainer) -> list[VisualizationCallback]:
    return [c for c in trainer.callbacks if isinstance(c, VisualizationCallback)]


def _data_sources(trainer: Trainer, index: int) -> list[Any]:
    """Where class names and normalisation may stand, best first."""
    loader = dataloader(trainer, index)
    return [getattr(trainer, "datamodule", None), getattr(loader, "dataset", None), loader]


def _names_of(source: Any) -> list[str] | None:
    for _ in range(6):
        for attribute in ("class_names", "classes"):
            names = getattr(source, attribute, None)
            if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
                return list(names)
        source = getattr(source, "dataset", None) or next(iter(getattr(source, "datasets", None) or []), None)
        if source is None:
            return None
    return None
