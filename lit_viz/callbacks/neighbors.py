"""Nearest neighbours of the probe images in feature space, beside those in pixel space."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look
from lit_viz.callbacks.features import FeatureCallback
from lit_viz.draw.text import aligned
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional import Neighbors
from lit_viz.layers import capture
from lit_viz.probing import copied, split_batch, to_network
from lit_viz.state import FeatureBank, Features

LARGEST = 32  # px along a side of the images that are compared pixel by pixel


class NearestNeighbors(FeatureCallback):
    """What a network holds for alike, and what merely looks alike (Krizhevsky, Sutskever & Hinton 2012, fig. 4).

    For each probe image its nearest neighbours among the validation images by their features, and by their pixels:
    Euclidean distance of the colour images, reduced to 32 px. No image is its own neighbour. See
    `functional.nearest_neighbors`; the search is exact.

    Tag: `neighbors/<layer>`. Curves: `neighbors/<layer>/recall@k` and `neighbors/pixels/recall@k`, the share of the
    validation images with one of their own label among their k nearest, see `functional.recall_at_k`.

    Args:
        layer: Dotted name of a layer whose output to take; by default the input of the classifier head. Maps are
            averaged over places, tokens over tokens.
        k: How many neighbours.
        metric: Distance of features, "cosine" or "l2".
        reference: Images to search instead of the validation data, prepared in the same way: a data set, a loader, or a
            data module, whose validation data are taken. Each look takes a pass over them.
        max_samples: How many images to search, chosen at random (always the same) from those that a validation pass
            goes through, or from the reference.
        thumbnail_size: Largest side of the pictures in pixels.
        num_images: How many probe images.
        **kwargs: See `CollectingCallback`.
    """

    tag = "neighbors"

    def __init__(
        self,
        layer: str | None = None,
        *,
        k: int = 5,
        metric: Literal["cosine", "l2"] = "cosine",
        reference: Dataset[Any] | DataLoader[Any] | LightningDataModule | None = None,
        max_samples: int = 2000,
        thumbnail_size: int = 64,
        num_images: int = 6,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, max_samples=max_samples, thumbnail_size=thumbnail_size, num_images=num_images, **kwargs)
        if layer is not None and not isinstance(layer, str):
            raise UsageError(f"layer is the dotted name of a layer, not {layer!r}.")
        check_at_least("k", k, 1)
        check_choice("metric", metric, ("cosine", "l2"))
        if reference is not None and not isinstance(reference, (Dataset, DataLoader, LightningDataModule)):
            raise UsageError(f"reference is a data set, a loader or a data module, not {type(reference).__name__}.")
        self.k, self.metric, self.reference = k, metric, reference
        self.found: dict[str, Neighbors] = {}
        self._recall: tuple[Tensor, float] | None = None  # by pixels, and of which thumbnails

    def thumbnail_shape(self, channels: int, height: int, width: int) -> tuple[int, int, int]:
        if max(height, width) <= self.thumbnail_size:
            return channels, height, width  # enlarged it would say no more
        return super().thumbnail_shape(channels, height, width)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        ((layer, queries),) = self.vectors_of(look).items()
        shown = self.thumbnails_of(look.images).cpu()
        features = self.features if self.reference is None else self._features_of_reference(look)
        if features is None:
            return {}
        if len(queries) != len(shown):
            raise UsageError(f"layer '{layer}' puts out {len(queries)} entries for {len(shown)} images.")
        pixels, of_probe = _reduced(features.thumbnails), _reduced(shown)
        own = self._own(features, pixels, of_probe)
        k = min(self.k, len(pixels) - int(bool((own >= 0).any())))
        if k < 1:
            raise UsageError(f"the {self._searched} hold no other image that could be a neighbour.")
        self.found = {
            layer: functional.nearest_neighbors(queries.cpu(), features.values, k, metric=self.metric, exclude=own),
            "pixels": functional.nearest_neighbors(of_probe, pixels, k, metric="l2", exclude=own),
        }
        if not look.model.trainer.is_global_zero:
            return {}
        recalls = self._recalls(layer, features, pixels, k)
        distances = {layer: f"{'cosine' if self.metric == 'cosine' else 'L2'} distance", "pixels": "L2 distance"}
        headings = [
            (name, distances[space] + (f" · recall@{k} {recalls[space]:.2f}" if space in recalls else ""))
            for name, space in (("Nearest in feature space", layer), ("Nearest in pixel space", "pixels"))
        ]
        height, width = _reduced_size(*features.thumbnails.shape[-2:])
        told = f" Recall@{k}: share of all of them with their own class among their {k} nearest." if recalls else ""
        picture = draw.neighbor_sheet(
            self._rows(look, features, shown),
            headings,
            title=f"Nearest neighbours · {look.when}",
            subtitle=f"The nearest of {len(pixels)} {self._searched} by their features in {layer}, and by their "
            f"pixels at {height} × {width}. A network that has learned finds the same class at other places, in other "
            f"colours.{told}{'' if self.reference is not None else self.counted}",
        )
        return {layer: picture, **{f"{space}/recall@{k}": recall for space, recall in recalls.items()}}

    def _own(self, features: Features, pixels: Tensor, of_probe: Tensor) -> Tensor:
        """(Q,) where each probe image lies among the features, −1 where it does not."""
        assert self._probe is not None and self.indices is not None
        if self.reference is None and self._probe.samples is not None and self.indices.exact:
            same = self._probe.samples[:, None] == features.samples
            place = same.int().argmax(dim=1)
            return torch.where(same.any(dim=1), place, -1)
        # Where samples have no known index, an image with the same pixels but for rounding is held for the same.
        nearest = functional.nearest_neighbors(of_probe, pixels, 1, metric="l2")
        alike = nearest.distances[:, 0] <= 0.5 / 255 * pixels.shape[1] ** 0.5
        return torch.where(alike, nearest.indices[:, 0], -1)

    @property
    def _searched(self) -> str:
        return "validation images" if self.reference is None else "reference images"

    def _features_of_reference(self, look: Look) -> Features:
        """A pass over the reference, inside the guard: what its loader draws at random is set apart as well."""
        ((layer, dimensions),) = self._dimensions.items()
        bank = FeatureBank(self.max_samples, dimensions, self.thumbnail_shape(*look.images.shape[1:]))
        first = 0
        for batch in self._reference_batches():
            images, labels = split_batch(batch, self.batch_to_images)
            if images.shape[1:] != look.images.shape[1:]:
                raise UsageError(
                    f"reference images are {tuple(images.shape[1:])} and probe images {tuple(look.images.shape[1:])}; "
                    f"prepare them in the same way."
                )
            images = to_network(look.model.trainer, look.model, images)
            with capture(look.model, [layer], where=self._where, reduce=self._vectors) as values, torch.no_grad():
                look.model(images)
            samples = torch.arange(first, first + len(images))
            labels = torch.full_like(samples, -1) if labels is None else labels.cpu()
            bank.update(values[layer][0].cpu(), labels, samples, self.thumbnails_of(images).cpu())
            first += len(images)
            if first >= self.max_samples:
                break
        count = int(bank.count)
        return Features(bank.values[:count], bank.labels[:count], bank.samples[:count], bank.thumbnails[:count])

    def _reference_batches(self) -> Iterator[Any]:
        source = self.reference
        if isinstance(source, LightningDataModule):
            source = copy.copy(source)  # it may be that of the run, which is set up already
            source.prepare_data()
            source.setup("validate")
            source = source.val_dataloader()
        loader = source if isinstance(source, DataLoader) else DataLoader(source, 32)
        if isinstance(loader.dataset, IterableDataset):
            return iter(loader)
        data, collate = loader.dataset, loader.collate_fn
        with suppress(Exception):  # where it can't be copied, as open files can't
            # As for probes: reading may change what training reads next.
            data, collate = copied((data, collate))
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(self.seed))[: self.max_samples]
        chosen = Subset(data, order.sort().values.tolist())
        return iter(DataLoader(chosen, loader.batch_size or 32, collate_fn=collate))

    def _recalls(self, layer: str, features: Features, pixels: Tensor, k: int) -> dict[str, float]:
        """Recall@k in both spaces, if enough images have a label."""
        if int((features.labels >= 0).sum()) <= k:
            return {}
        if self._recall is None or not torch.equal(self._recall[0], features.thumbnails):
            # Mostly pixels are the same over the run.
            recall = functional.recall_at_k(pixels, features.labels, k, metric="l2")
            self._recall = features.thumbnails, recall
        recall = functional.recall_at_k(features.values, features.labels, k, metric=self.metric)
        return {layer: recall, "pixels": self._recall[1]}

    def _rows(self, look: Look, features: Features, shown: Tensor) -> list[draw.NeighborRow]:
        queries = draw.to_uint8(shown.float() / 255)
        names = self.names_of(features.labels)

        def name(label: int) -> str:
            return "" if label < 0 else names[label] if names and label < len(names) else f"class {label}"

        rows = []
        for i, query in enumerate(queries):
            own = -1 if look.labels is None else int(look.labels[i])
            groups = []
            for found in self.found.values():
                group = []
                labels = features.labels[found.indices[i]].tolist()
                pictures = draw.to_uint8(features.thumbnails[found.indices[i]].float() / 255)
                texts = aligned(found.distances[i].tolist())
                for picture, label, text in zip(pictures, labels, texts, strict=True):
                    right = None if own < 0 or label < 0 else label == own
                    group.append(draw.Neighbor(picture, name(label), text, right))
                groups.append(group)
            rows.append(draw.NeighborRow(draw.Neighbor(query, name(own), look.names[i] if look.names else ""), groups))
        return rows


def _reduced_size(height: int, width: int) -> tuple[int, int]:
    scale = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _reduced(thumbnails: Tensor) -> Tensor:
    """Colours, uint8 (N, C, h, w), as vectors in [0, 1] of at most 32 × 32 px, (N, D)."""
    colors = [part.float() / 255 for part in thumbnails.split(256)]
    size = _reduced_size(*thumbnails.shape[-2:])
    return torch.cat([F.interpolate(part, size=size, mode="area").flatten(1) for part in colors])
