"""What kinds of images a class has for a network, and an image made for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look
from lit_viz.callbacks.collecting import Batch, Tap
from lit_viz.callbacks.features import FeatureCallback
from lit_viz.draw.text import number
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional import Synthesis
from lit_viz.functional.classes import class_index
from lit_viz.functional.facets import Facets as Found
from lit_viz.functional.scores import Model, class_scores, probabilities
from lit_viz.layers import as_maps, head_of
from lit_viz.pixels import PixelSpace
from lit_viz.state import Accumulator, FeatureBank, Features

MEMORY = 2**28  # bytes of images kept, of all classes together
SHOWN = 4  # members of a facet that are drawn


class Facets(FeatureCallback):
    """The kinds of images that a class has for a network (Nguyen, Yosinski & Clune 2016).

    The validation images of the class are grouped by their features; for each group, or facet, the picture shows the
    images nearest to its middle, their mean, and the image that gradient ascent makes of that. See
    `functional.find_facets` and `functional.facet_images`. At the first look the largest facet is number 1; from then
    on a number stays with the facet that has most images of the one that had it before, also in a run that goes on from
    a checkpoint, see `functional.match_facets`.

    Tag: `facets/<class>`. Curves: `facets/<class>/probability`, the mean probability of the class for the images made.

    Args:
        target: The class, its index or name, or a list of them. Images belong to it by their label; in data without
            labels that the network knows, by its prediction.
        layer: Dotted name of a layer whose output to group by; by default the input of the classifier head. Maps are
            averaged over places, tokens over tokens.
        facets: How many; fewer where there are less than four images for each.
        nearest: How many images at most to average.
        max_images: How many images of a class are kept at most, the first of the pass; fewer where they would take more
            than 256 MiB in all.
        steps: Of the ascent; the paper has 370.
        center_biased: Whether to draw one object in the middle.
        **kwargs: See `CollectingCallback`, without `target`.
    """

    tag = "facets"
    needs = "scores"

    def __init__(
        self,
        target: int | str | Sequence[int | str],
        layer: str | None = None,
        *,
        facets: int = 4,
        nearest: int = 15,
        max_images: int = 300,
        steps: int = 100,
        center_biased: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, target="predicted", **kwargs)
        if layer is not None and not isinstance(layer, str):
            raise UsageError(f"layer is the dotted name of a layer, not {layer!r}.")
        wanted = [target] if isinstance(target, (int, str)) else target
        if not isinstance(wanted, Sequence) or not wanted:
            raise UsageError(f"target is a class index or name, or a list of them, not {target!r}.")
        for name, value in (("facets", facets), ("nearest", nearest), ("max_images", max_images), ("steps", steps)):
            check_at_least(name, value, 1)
        self.wanted, self.count, self.nearest = list(wanted), facets, nearest
        self.max_images, self.steps, self.center_biased = max_images, steps, center_biased
        self.found: dict[str, Found] = {}  # the last ones, by class
        self.made: dict[str, Synthesis] = {}
        self._kinds: dict[str, list[Tensor]] = {}  # samples of the facets of the last look, by class
        self._of: dict[int, Features] = {}
        self._names: dict[int, str] = {}
        self._head: str | None = None  # to predict by, where there are no labels
        self._banks: dict[int, FeatureBank] = {}
        self._missing: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._kinds = {}  # the data may be others

    def thumbnail_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        return channels, height, width  # they are averaged as the network takes them

    def check(self, look: Look) -> None:
        super().check(look)
        classes = look.scores.shape[1]
        indices = [class_index(target, look.class_names) for target in self.wanted]
        bad = [i for i in indices if not 0 <= i < classes]
        if bad:
            raise UsageError(f"there is no class {bad[0]}: the network has {classes} classes, 0 to {classes - 1}.")
        self._names = {i: look.class_name(i) for i in indices}
        self._head = None
        if look.labels is None:
            with torch.no_grad():
                outputs = class_scores(look.model, look.images, score=self.score).shape[1]
                self._head = head_of(look.model, lambda: look.model(look.images), outputs)

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._probe is not None
        shape = tuple(self._probe.images.shape[1:])
        room = MEMORY // (int(np.prod(shape)) * len(self._names))
        self._capacity = max(1, min(self.max_images, room))
        dimensions = sum(self._dimensions.values())
        self._banks = {
            i: FeatureBank(self._capacity, dimensions, self.thumbnail_shape(*shape)).to(pl_module.device)
            for i in self._names
        }

    def taps(self) -> Sequence[Tap]:
        return [*super().taps(), *([] if self._head is None else [Tap(self._head, "output", _predicted)])]

    def update(self, batch: Batch, values: Sequence[Any]) -> None:
        labels = batch.labels if self._head is None else values[-1]
        if labels is None:
            raise UsageError("the batches of this pass have no labels, but the probe images had some.")
        labels = labels.to(batch.images.device)
        for index, bank in self._banks.items():
            keep = labels == index
            if keep.any() and int(bank.count) < bank.capacity:
                images = self.thumbnails_of(batch.images[keep])
                bank.update(values[0][keep], labels[keep], batch.samples[keep], images)

    def metrics(self) -> dict[str, Accumulator]:
        return {str(index): bank for index, bank in self._banks.items()}

    def finish(self, results: dict[str, Any]) -> None:
        # Each rank kept as many as one alone would have.
        count = self._capacity
        self._of = {
            int(index): Features(
                all_.values[:count].cpu(),
                all_.labels[:count].cpu(),
                all_.samples[:count].cpu(),
                all_.thumbnails[:count].cpu(),
            )
            for index, all_ in results.items()
        }

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        drawn: dict[str, np.ndarray | float] = {}
        for index, features in self._of.items():
            name = self._names[index]
            if not len(features.values):
                self._tell_missing(name)
                continue
            pictures = features.thumbnails
            found, made, p = class_facets(
                look.model,
                features.values,
                pictures,
                index,
                samples=features.samples,
                before=self._kinds.get(name, ()),
                count=self.count,
                nearest=self.nearest,
                seed=self.seed,
                pixels=look.pixels,
                steps=self.steps,
                center_biased=self.center_biased,
                score=look.score,
                progress=look.model.trainer.progress_bar_callback is not None,
                interruptible=False,
            )
            self.found[name], self.made[name] = found, made
            self._kinds[name] = [features.samples[members] for members in found.members]
            tag = name.replace("/", "-")
            drawn[f"{tag}/probability"] = float(np.mean(p))
            if look.model.trainer.is_global_zero:
                most = " first" if len(pictures) == self._capacity else ""
                drawn[tag] = facet_sheet(
                    found,
                    made,
                    p,
                    pictures,
                    look.pixels,
                    title=f"Facets of {name} · {look.when}",
                    of=f"the{most} {len(pictures)} validation images {'predicted as' if self._head else 'of'} {name}",
                    told=self.counted,
                )
        return drawn

    def memory(self) -> dict[str, Any]:
        return {name: list(kinds) for name, kinds in self._kinds.items()}

    def remember(self, memory: dict[str, Any]) -> None:
        self._kinds = {name: list(kinds) for name, kinds in memory.items()}

    def _tell_missing(self, name: str) -> None:
        if name not in self._missing:
            self._missing.add(name)
            rank_zero_warn(f"{self.name}: no image of the validation pass is {name}; it has no facets to draw.")


def class_facets(
    model: Model,
    features: Tensor,
    images: Tensor,
    target: int,
    *,
    count: int,
    nearest: int,
    seed: int,
    pixels: PixelSpace,
    samples: Tensor | None = None,
    before: Sequence[Tensor] = (),
    **ascent: Any,
) -> tuple[Found, Synthesis, list[float]]:
    """The facets of a class, an image made for each, and the probability of the class for these.

    Args:
        model: See `functional.facet_images`.
        features: (N, D), of the images of the class.
        images: uint8 (N, C, H, W), in colours.
        target: The class.
        count: How many facets.
        nearest: How many images to average.
        seed: Of all that is at random.
        pixels: How network input relates to colours.
        samples: (N,), which samples of the data the images are, with `before`, see `functional.match_facets`.
        before: The samples of earlier facets.
        **ascent: See `functional.facet_images`.
    """
    found = functional.find_facets(features, images, count=count, nearest=nearest, seed=seed)
    found = replace(found, means=pixels.from_color(found.means / 255))
    if samples is not None:
        found = functional.match_facets(found, samples, before)
    made = functional.facet_images(model, found, target, seed=seed, pixels=pixels, **ascent)
    assert made.scores is not None
    return found, made, probabilities(made.scores)[:, target].tolist()


def facet_sheet(
    found: Found,
    made: Synthesis,
    p: Sequence[float],
    images: Tensor,
    pixels: PixelSpace,
    *,
    title: str,
    of: str,
    told: str = "",
) -> np.ndarray:
    """The facets of a class as a sheet, one card each.

    Args:
        found: The facets, their means as the network takes images.
        made: What was made of these.
        p: The probability of the class for each image made.
        images: uint8 (N, C, H, W), the images that they are of, in colours.
        pixels: How network input relates to colours.
        title: Of the sheet.
        of: What the images are, in words.
        told: What else is to be said.
    """
    means, pictures = (draw.to_uint8(pixels.to_color(shown)) for shown in (found.means, made.images))
    cards = []
    for k, members in enumerate(found.members):
        nearest = list(draw.to_uint8(images[members[:SHOWN]] / 255))
        side = max(images.shape[2:])
        # As large as the others, whatever the number of members.
        group = draw.mosaic(nearest + [np.full_like(nearest[0], 255)] * (SHOWN - len(nearest)), side=side, gap=2)
        count = f"{len(members)} of {len(images)} images"
        detail = " · ".join(filter(None, (count, made.notes[k])))
        cards.append(draw.Card([group, means[k], pictures[k]], f"facet {k + 1}  p = {_probability(p[k])}", detail))
    note = f" {found.note}." if found.note else ""
    return draw.sheet(
        cards,
        columns=("nearest", "mean", "made"),
        title=title,
        subtitle=f"Kinds of images among {of}, grouped by their features: the images in the middle of each kind, the "
        f"mean of up to {found.averaged}, and what gradient ascent towards the class makes of that mean.{note}{told}",
    )


def _probability(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else number(p)


def _predicted(outputs: Tensor) -> Tensor:
    """Class of each image, int64 (N,), from what the head puts out; of one logit, whether it is positive."""
    scores = as_maps(outputs).float().mean(dim=(2, 3))
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(dim=1)
