"""What accumulates over a data set, and over ranks: torchmetrics that hold tensors of fixed shape.

Their `result` is a dataclass; `compute`, which torchmetrics wraps for numbers, only counts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_viz.functional.patches import TopResponses, merge


class Accumulator(Metric):
    """A metric whose result is not a number."""

    full_state_update = False

    @abstractmethod
    def result(self) -> Any:
        """What was accumulated, over all ranks. A collective: every rank must call it."""


@dataclass(frozen=True)
class Patches:
    """The strongest responses of a layer and what the shown channels saw.

    Attributes:
        top: Of all channels, see `TopResponses`.
        shown: int64 (S,), the channels whose patches are kept.
        images: uint8 (S, k, C, h, w), what the unit saw, in colours.
        inside: bool (S, k, h, w), false where the receptive field reaches beyond the image.
    """

    top: TopResponses
    shown: Tensor
    images: Tensor
    inside: Tensor


class TopK(Accumulator):
    """The k strongest responses of each channel, with the image patches of some channels.

    O(channels × k) memory, whatever the size of the data set; on several ranks `result` gives all of them the merged
    result, each sample once.

    Args:
        channels: Number of channels.
        k: How many responses to keep for each.
        shown: int64 (S,), channels whose patches to keep.
        patch: (C, h, w) of a patch.
    """

    top_values: Tensor
    top_samples: Tensor
    top_places: Tensor
    images: Tensor
    inside: Tensor

    def __init__(self, channels: int, k: int, shown: Tensor, patch: tuple[int, int, int]) -> None:
        super().__init__()
        empty = TopResponses.empty(channels, k)
        self.k = k
        self.register_buffer("shown", shown.clone(), persistent=False)
        colors, height, width = patch
        for name, value in (
            ("top_values", empty.values),
            ("top_samples", empty.samples),
            ("top_places", empty.places),
            ("images", torch.zeros(len(shown), k, colors, height, width, dtype=torch.uint8)),
            ("inside", torch.zeros(len(shown), k, height, width, dtype=torch.bool)),
        ):
            self.add_state(name, value, dist_reduce_fx=None)

    @property
    def floor(self) -> Tensor:
        """(channels,) the weakest response kept so far: what a new one must pass."""
        return self.top_values[:, -1]

    def update(self, new: TopResponses) -> None:
        """Takes in the strongest responses of one batch, from `strongest`."""
        rows = (new.samples >= 0).any(dim=1).nonzero()[:, 0]
        if len(rows) == 0:
            return
        old = TopResponses(self.top_values[rows], self.top_samples[rows], self.top_places[rows])
        part = TopResponses(new.values[rows], new.samples[rows], new.places[rows])
        merged, _ = merge(old, part, k=self.k)
        self.top_values[rows] = merged.values
        self.top_samples[rows] = merged.samples
        self.top_places[rows] = merged.places

    def fill(self, cut: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        """Adds the patches of the shown channels, once the pass is over and before `result`.

        Args:
            cut: From channels, samples and places, (M,) each, to patches uint8 (M, C, h, w) and masks (M, h, w).
        """
        for slot, channel in enumerate(self.shown.tolist()):
            samples, places = self.top_samples[channel], self.top_places[channel]
            seen = samples >= 0
            if seen.any():
                images, inside = cut(torch.full_like(samples[seen], channel), samples[seen], places[seen])
                self.images[slot, seen] = images.to(self.images)
                self.inside[slot, seen] = inside.to(self.inside)

    def compute(self) -> Tensor:
        """Number of responses kept."""
        return (self.top_samples >= 0).sum()

    def result(self) -> Patches:
        """The patches of all ranks; a collective, so every rank must call it."""
        with self.sync_context():
            return self._merged()

    def _merged(self) -> Patches:
        if self.top_values.dim() == 2:
            top = TopResponses(self.top_values, self.top_samples, self.top_places)
            return Patches(top, self.shown, self.images, self.inside)
        # Gathered: (ranks, …).
        top = TopResponses(self.top_values[0], self.top_samples[0], self.top_places[0])
        images, inside = self.images[0], self.inside[0]
        for rank in range(1, len(self.top_values)):
            other = TopResponses(self.top_values[rank], self.top_samples[rank], self.top_places[rank])
            top, order = merge(top, other, k=self.k)
            pick = torch.arange(len(self.shown), device=order.device)[:, None], order[self.shown]
            images = torch.cat([images, self.images[rank]], dim=1)[pick]
            inside = torch.cat([inside, self.inside[rank]], dim=1)[pick]
        return Patches(top, self.shown, images, inside)


@dataclass(frozen=True)
class Features:
    """Features of a data set, in the order of its samples.

    Attributes:
        values: float32 (N, D).
        labels: int64 (N,), −1 where unknown.
        samples: int64 (N,), which sample of the data set.
        thumbnails: uint8 (N, C, h, w), in colours.
    """

    values: Tensor
    labels: Tensor
    samples: Tensor
    thumbnails: Tensor


class FeatureBank(Accumulator):
    """Keeps features, labels and thumbnails of up to `capacity` samples on each rank.

    Args:
        capacity: Most samples kept; further ones are ignored.
        dimensions: Length of a feature vector.
        thumbnail: (C, h, w).
    """

    count: Tensor
    values: Tensor
    labels: Tensor
    samples: Tensor
    thumbnails: Tensor

    def __init__(self, capacity: int, dimensions: int, thumbnail: tuple[int, int, int]) -> None:
        super().__init__()
        self.capacity = capacity
        for name, value in (
            ("count", torch.zeros((), dtype=torch.int64)),
            ("values", torch.zeros(capacity, dimensions, dtype=torch.float32)),
            ("labels", torch.full((capacity,), -1)),
            ("samples", torch.full((capacity,), -1)),
            ("thumbnails", torch.zeros(capacity, *thumbnail, dtype=torch.uint8)),
        ):
            self.add_state(name, value, dist_reduce_fx=None)

    def update(self, values: Tensor, labels: Tensor, samples: Tensor, thumbnails: Tensor) -> None:
        """Adds samples: (n, D), (n,), (n,), uint8 (n, C, h, w)."""
        start = int(self.count)
        n = min(len(values), self.capacity - start)
        place = slice(start, start + n)
        self.values[place] = values[:n].float()
        self.labels[place] = labels[:n]
        self.samples[place] = samples[:n]
        self.thumbnails[place] = thumbnails[:n]
        self.count += n

    def compute(self) -> Tensor:
        """Number of samples kept."""
        return self.count.sum()

    def result(self) -> Features:
        """All samples of all ranks, each once, in the order of the data set; a collective."""
        with self.sync_context():
            return self._merged()

    def _merged(self) -> Features:
        values, labels = self.values.flatten(0, -2), self.labels.flatten()
        samples, thumbnails = self.samples.flatten(), self.thumbnails.flatten(0, -4)
        order = samples.argsort(stable=True)
        ordered = samples[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        order = order[first & (ordered >= 0)]
        return Features(values[order], labels[order], samples[order], thumbnails[order])
