"""What accumulates over a data set, and over ranks: torchmetrics that hold tensors of fixed shape.

Their `result` is a dataclass; `compute`, which torchmetrics wraps for numbers, only counts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_viz.functional.patches import Responses, TopResponses, merge


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


@dataclass(frozen=True)
class Kept:
    """What `TopK` keeps of a layer.

    Attributes:
        channels: Number of channels.
        shown: int64 (S,), channels whose patches to keep.
        patch: (C, h, w) of a patch.
    """

    channels: int
    shown: Tensor
    patch: tuple[int, int, int]


Cutter = Callable[[str, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class TopK(Accumulator):
    """The k strongest responses of each channel of some layers, with the image patches of some channels.

    O(channels × k) memory, whatever the size of the data set; on several ranks `result` gives all of them the merged
    result, each sample once. The channels of all layers lie in one table, and what is new is merged into it once there
    is enough of it: late in a pass, when few responses pass the floor, a batch costs next to nothing.

    Args:
        layers: What to keep of each layer, by name.
        k: How many responses to keep for each channel.
    """

    top_values: Tensor
    top_samples: Tensor
    top_places: Tensor

    def __init__(self, layers: Mapping[str, Kept], k: int) -> None:
        super().__init__()
        self.layers, self.k = dict(layers), k
        self._rows: dict[str, slice] = {}
        count, shown = 0, []
        for number, (name, kept) in enumerate(self.layers.items()):
            self._rows[name] = slice(count, count + kept.channels)
            shown.append(kept.shown + count)
            count += kept.channels
            colors, height, width = kept.patch
            images = torch.zeros(len(kept.shown), k, colors, height, width, dtype=torch.uint8)
            self.add_state(f"images_{number}", images, dist_reduce_fx=None)
            self.add_state(f"inside_{number}", images[:, :, 0].bool(), dist_reduce_fx=None)
        self.register_buffer("_shown", torch.cat(shown), persistent=False)
        self.register_buffer("_is_shown", torch.zeros(count, dtype=torch.bool), persistent=False)
        self._is_shown[self._shown] = True
        self._pending: list[Responses] = []
        empty = TopResponses.empty(count, k)
        for name in ("values", "samples", "places"):
            self.add_state(f"top_{name}", getattr(empty, name), dist_reduce_fx=None)

    def floor(self, layer: str) -> Tensor:
        """(channels,) the weakest response in the table, which a new one must pass; a view that stays up to date."""
        return self.top_values[self._rows[layer], -1]

    def update(self, new: Mapping[str, Responses]) -> None:
        """Takes in the strongest responses of one batch by layer, from `strongest`."""
        parts = [new[name] for name in self._rows]
        channels = torch.cat([p.channels + r.start for p, r in zip(parts, self._rows.values(), strict=True)])
        values, samples, places = (torch.cat([getattr(p, f) for p in parts]) for f in ("values", "samples", "places"))
        self._pending.append(Responses(channels, values, samples, places))
        if sum(len(part.values) for part in self._pending) > self.top_values.numel() // 4:
            self.settle()

    @property
    def settled(self) -> bool:
        """Whether all that is new is in the table."""
        return not self._pending

    def latest(self) -> Tensor:
        """Samples of the last batch that have a response of a shown channel, int64; not once `settled`."""
        last = self._pending[-1]
        return last.samples[self._is_shown[last.channels]].unique()

    def leading(self) -> Tensor:
        """Samples that have a response among those of the shown channels, int64."""
        self.settle()
        samples = self.top_samples[self._shown]
        return samples[samples >= 0].unique()

    def settle(self) -> None:
        """Merges what is new into the table."""
        pending, self._pending = self._pending, []
        if not sum(len(part.values) for part in pending):
            return
        names = [f.name for f in fields(Responses)]
        new = Responses(*(torch.cat([getattr(part, name) for part in pending]) for name in names))
        if len(pending) > 1:
            order = new.channels.argsort(stable=True)
            new = Responses(*(getattr(new, name)[order] for name in names))
        rows, found = new.rows()
        old = TopResponses(self.top_values, self.top_samples, self.top_places).map(itemgetter(rows))
        merged, _ = merge(old, found, k=self.k)
        self.top_values[rows] = merged.values
        self.top_samples[rows] = merged.samples
        self.top_places[rows] = merged.places

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._pending = []

    def fill(self, cut: Cutter) -> None:
        """Adds the patches of the shown channels, once the pass is over and before `result`.

        Args:
            cut: From a layer's name, channels, samples and places, (M,) each, to patches uint8 (M, C, h, w) and masks
                (M, h, w).
        """
        self.settle()
        for number, (name, kept) in enumerate(self.layers.items()):
            images, inside = getattr(self, f"images_{number}"), getattr(self, f"inside_{number}")
            for slot, channel in enumerate(kept.shown.tolist()):
                row = self._rows[name].start + channel
                samples, places = self.top_samples[row], self.top_places[row]
                seen = samples >= 0
                if seen.any():
                    patches, masks = cut(name, torch.full_like(samples[seen], channel), samples[seen], places[seen])
                    images[slot, seen] = patches.to(images)
                    inside[slot, seen] = masks.to(inside)

    def compute(self) -> Tensor:
        """Number of responses kept."""
        self.settle()
        return (self.top_samples >= 0).sum()

    def result(self) -> dict[str, Patches]:
        """The patches of all ranks by layer; a collective, so every rank must call it."""
        self.settle()
        with self.sync_context():
            return self._merged()

    def _merged(self) -> dict[str, Patches]:
        gathered = self.top_values.dim() == 3  # (ranks, channels, k)

        def ranks(state: str) -> list[Tensor]:
            value = getattr(self, state)
            return list(value) if gathered else [value]

        states = ranks("top_values"), ranks("top_samples"), ranks("top_places")
        tables = [TopResponses(*table) for table in zip(*states, strict=True)]
        out = {}
        for number, (name, kept) in enumerate(self.layers.items()):
            shown = kept.shown.to(self.top_values.device)
            first, *others = zip(tables, ranks(f"images_{number}"), ranks(f"inside_{number}"), strict=True)
            of_layer = itemgetter(self._rows[name])
            table, images, inside = first
            top = table.map(of_layer)
            for table, more_images, more_inside in others:
                top, order = merge(top, table.map(of_layer), k=self.k)
                pick = torch.arange(len(shown), device=order.device)[:, None], order[shown]
                images = torch.cat([images, more_images], dim=1)[pick]
                inside = torch.cat([inside, more_inside], dim=1)[pick]
            out[name] = Patches(top, shown, images, inside)
        return out


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
