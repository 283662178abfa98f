"""One look at a model: its images, what the network says of them, and which classes are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.classes import class_index, names_of, two_classes
from lit_viz.functional.scores import Score, class_scores, probabilities, resolve_target
from lit_viz.layers import convolutions
from lit_viz.pixels import PixelSpace

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

    def ask(self, target: TargetChoice, given: Sequence[str] | None = None) -> None:
        """Runs the model, and finds out what its classes are and which is asked about, for each image.

        Args:
            target: Which class.
            given: The class names that the user gave, or None.

        Raises:
            UsageError: For images or names that don't fit the model, or a target that it doesn't have.
        """
        try:
            with torch.no_grad():
                self.scores = class_scores(self.model, self.images, score=self.score)
        except RuntimeError as error:
            first = next(iter(convolutions(self.model).items()), None)
            if first is None or first[1].in_channels == self.images.shape[1]:
                raise
            raise UsageError(
                f"the images have {self.images.shape[1]} channel(s), but the first convolution '{first[0]}' takes "
                f"{first[1].in_channels}; convert the images, or give the network another first layer."
            ) from error
        labels, of_data = self.labels, self.class_names
        binary = labels is not None and bool((labels <= 1).all())
        if self.scores.shape[1] == 1 and (binary if of_data is None else len(of_data) == 2):
            # Two classes by one logit: scores whose softmax is its logistic function.
            self.score, one = two_classes(self.score), self.scores
            self.scores = torch.cat([-one / 2, one / 2], dim=1)
        classes = self.scores.shape[1]
        if given is not None and len(given) != classes:
            raise UsageError(f"{len(given)} class_names given for {classes} classes.")
        if of_data is None or len(of_data) != classes:
            of_model = (names_of(m) for m in (self.model, *self.model.children()))
            self.class_names = next((n for n in of_model if n and len(n) == classes), None)
            # Ten photographs say nothing about the classes of an ImageNet network.
            self.labels = self.labels if of_data is None else None
        if self.labels is not None:
            known = (self.labels >= 0) & (self.labels < classes)
            self.labels = self.labels.masked_fill(~known, -1).to(self.scores.device) if known.any() else None
        self.targets = resolve_target(self.scores, self._target(target))

    def _target(self, target: TargetChoice) -> Tensor | None:
        if isinstance(target, (np.ndarray, np.generic, Tensor)):
            target = target.tolist()
        if target == "predicted" or (target == "label" and self.labels is None):
            return None
        if target == "label":
            assert self.labels is not None
            return torch.where(self.labels < 0, self.scores.argmax(dim=1), self.labels)
        if isinstance(target, (int, str)):
            return torch.tensor(class_index(target, self.class_names))
        if not isinstance(target, Sequence):
            raise UsageError(f"a target is 'label', 'predicted', a class index or a class name, not {target!r}.")
        if len(target) != len(self.scores):
            raise UsageError(f"{len(target)} targets given for {len(self.scores)} probe images.")
        return torch.tensor([class_index(t, self.class_names) for t in target])
