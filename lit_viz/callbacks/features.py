"""What needs a feature vector of each validation image: which layer, which images, and how they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from lit_viz.callbacks.base import Look, layer_list
from lit_viz.callbacks.collecting import Batch, CollectingCallback, Tap
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.scores import class_scores
from lit_viz.layers import as_maps, capture, find_layer, head_of
from lit_viz.pixels import PixelSpace
from lit_viz.probing import dataloader
from lit_viz.state import Accumulator, FeatureBank, Features


class FeatureCallback(CollectingCallback):
    """A visualization of the feature space of one or more layers.

    After each pass `features` holds the vectors of up to `max_samples` validation images, side by side where there are
    several layers (see `by_layer`), with labels and thumbnails.

    Args:
        layer: Dotted name of a layer whose output to take, or a list of them; by default the input of the classifier
            head. Maps are averaged over places, tokens over tokens.
        max_samples: How many validation images at most, chosen at random (always the same) from those that a validation
            pass goes through.
        thumbnail_size: Side of a thumbnail in pixels.
        **kwargs: See `CollectingCallback`.
    """

    def __init__(
        self,
        layer: str | Sequence[str] | None = None,
        *,
        max_samples: int = 1000,
        thumbnail_size: int = 48,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_at_least("max_samples", max_samples, 5)
        check_at_least("thumbnail_size", thumbnail_size, 4)
        self.layer, self.max_samples, self.thumbnail_size = layer_list(layer), max_samples, thumbnail_size
        self.features: Features | None = None
        self._where: Literal["output", "input"] = "output" if self.layer else "input"
        self._dimensions: dict[str, int] = {}  # of each layer, by full name
        self._size = (0, 0)
        self._bank: FeatureBank | None = None
        self._wanted: Tensor | None = None
        self._pixels = PixelSpace()
        self._class_names: list[str] | None = None

    def layer_names(self) -> Sequence[str]:
        return self.layer or ()

    def check(self, look: Look) -> None:
        self._size = (look.images.shape[2], look.images.shape[3])
        self._pixels, self._class_names = look.pixels, look.class_names
        names = self.layer or [_head(look)]
        self._dimensions = dict.fromkeys((find_layer(look.model, name)[0] for name in names), 0)
        self._dimensions = {name: values.shape[1] for name, values in self.vectors_of(look).items()}

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._probe is not None
        thumbnail = self.thumbnail_shape(*self._probe.images.shape[1:])
        dimensions = sum(self._dimensions.values())
        self._bank = FeatureBank(self.max_samples, dimensions, thumbnail).to(pl_module.device)
        passing = _passing(trainer, self.dataloader_idx)
        self._wanted = None
        if passing > self.max_samples:
            self._wanted = torch.zeros(passing, dtype=torch.bool)
            # At random, since classes often come in turn; with a generator of its own, and always the same.
            order = torch.randperm(passing, generator=torch.Generator().manual_seed(self.seed))
            self._wanted[order[: self.max_samples]] = True

    def taps(self) -> Sequence[Tap]:
        return [Tap(name, self._where, self._vectors) for name in self._dimensions]

    def update(self, batch: Batch, values: Sequence[Any]) -> None:
        assert self._bank is not None and self.indices is not None
        keep = torch.ones(len(batch.images), dtype=torch.bool)
        if self._wanted is not None:
            # Where their index is unknown samples are numbered as they come, over all ranks.
            keep = self._wanted[batch.samples.cpu().clamp(max=len(self._wanted) - 1)]
        keep = keep.to(batch.images.device)
        if not keep.any():
            return
        thumbnails = self.thumbnails_of(batch.images[keep])
        labels = batch.labels if batch.labels is not None else torch.full_like(batch.samples, -1)
        self._bank.update(torch.cat(list(values), dim=1)[keep], labels[keep], batch.samples[keep], thumbnails)

    def metrics(self) -> dict[str, Accumulator]:
        assert self._bank is not None
        return {"features": self._bank}

    def finish(self, results: dict[str, Any]) -> None:
        found: Features = results["features"]
        count = self.max_samples
        self.features = Features(
            found.values[:count].cpu(),
            found.labels[:count].cpu(),
            found.samples[:count].cpu(),
            found.thumbnails[:count].cpu(),
        )

    def by_layer(self, values: Tensor) -> dict[str, Tensor]:
        """From vectors of all layers side by side, (N, sum of D), to those of each, (N, D), by full name."""
        parts = values.split(list(self._dimensions.values()), dim=1)
        return dict(zip(self._dimensions, parts, strict=True))

    def vectors_of(self, look: Look) -> dict[str, Tensor]:
        """The features of the probe images, (N, D), by full name; a forward pass.

        Raises:
            UsageError: If a layer takes no part in it.
        """
        names = list(self._dimensions)
        with capture(look.model, names, where=self._where, reduce=self._vectors) as values, torch.no_grad():
            look.model(look.images)
        for name, calls in values.items():
            if not calls:
                raise UsageError(f"layer '{name}' takes no part in the forward pass, so it has no features.")
        return {name: calls[0] for name, calls in values.items()}

    def thumbnail_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the thumbnail of an image (C, H, W)."""
        scale = self.thumbnail_size / max(height, width)
        return channels, max(1, round(height * scale)), max(1, round(width * scale))

    def thumbnails_of(self, images: Tensor) -> Tensor:
        """From images as the network takes them, (N, C, H, W), to colours, uint8 (N, C, h, w)."""
        size = self.thumbnail_shape(*images.shape[1:])[1:]
        small = F.interpolate(images.float(), size=size, mode="area")
        return (self._pixels.to_color(small) * 255).round().to(torch.uint8)

    def names_of(self, labels: Tensor) -> list[str] | None:
        """Names of the classes, unless labels go beyond them."""
        names = self._class_names
        return names if names is not None and len(labels) and int(labels.max()) < len(names) else None

    def _vectors(self, values: Tensor) -> Tensor:
        """One float32 vector for each image, a copy: maps are averaged over places, tokens over tokens."""
        if values.dim() == 2:
            return values.to(torch.float32, copy=True)
        return as_maps(values, image_size=self._size).float().mean(dim=(2, 3))

    @property
    def counted(self) -> str:
        """What is to be said where the order of the samples is unknown."""
        assert self.indices is not None
        return "" if self.indices.exact else " Samples are counted as seen: their order in the data set is unknown."


def _head(look: Look) -> str:
    """The layer whose input is "the features" of the lecture."""
    try:
        with torch.no_grad():
            scores = class_scores(look.model, look.images, score=look.score)
            return head_of(look.model, lambda: look.model(look.images), scores.shape[1])
    except UsageError as error:
        raise UsageError(f"{error} Or name the layer whose output to show: layer=...") from error


def _passing(trainer: Trainer, index: int) -> int:
    """How many samples a validation (or test) pass goes through, over all ranks; 0 where that is unknown."""
    loader = dataloader(trainer, index)
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    size = getattr(loader, "batch_size", None)
    try:
        length = len(loader.dataset)
    except (AttributeError, TypeError):
        return 0
    batches = batches[index] if isinstance(batches, (list, tuple)) else batches
    if size is None or batches == float("inf"):
        return length
    return min(length, int(batches) * size * trainer.world_size)
