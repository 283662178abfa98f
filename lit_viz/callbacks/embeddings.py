"""Features of the validation data in the plane: PCA, t-SNE, maps of thumbnails, TensorBoard's projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from lit_viz import draw, functional
from lit_viz.background import EmbeddingWorker
from lit_viz.callbacks.base import Look
from lit_viz.callbacks.collecting import Batch, CollectingCallback, Tap
from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.scores import class_scores
from lit_viz.layers import as_maps, capture, find_layer, head_of
from lit_viz.pixels import PixelSpace
from lit_viz.probing import dataloader
from lit_viz.state import Accumulator, FeatureBank, Features

READ = (
    "Each point is a validation image, placed by its features in {layer}. "
    "Images that the network holds for alike lie close."
)


class Embeddings(CollectingCallback):
    """Where the validation images lie in feature space (the lecture's t-SNE; van der Maaten & Hinton 2008).

    t-SNE runs in a low-priority process beside training; each embedding starts from the one before, so that the
    picture moves smoothly from epoch to epoch. Pictures are logged at the step whose features they show, when they
    are ready, and the last ones before `fit` returns; where t-SNE fails or takes too long they show PCA alone.

    Tags: `embeddings/<layer>` (PCA and t-SNE), `embeddings/<layer>/map` and `embeddings/<layer>/grid` (thumbnails), and
    an entry in the projector at the end.

    Args:
        layer: Dotted name of a layer whose output to show; by default the input of the classifier head. Maps are
            averaged over places, tokens over tokens.
        methods: "pca", "tsne" or both.
        max_samples: How many validation images at most, chosen at random (always the same) from those that a validation
            pass goes through.
        perplexity: Of t-SNE: effective number of neighbours.
        projector: Also write an entry for TensorBoard's projector, at the end.
        thumbnails: Draw the map and the grid of thumbnails.
        thumbnail_size: Side of a thumbnail in pixels.
        patience: Seconds to wait at the end for embeddings that are still being computed.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "embeddings"

    def __init__(
        self,
        layer: str | None = None,
        *,
        methods: Literal["pca", "tsne"] | Sequence[Literal["pca", "tsne"]] = ("pca", "tsne"),
        max_samples: int = 1000,
        perplexity: float = 30.0,
        projector: bool = True,
        thumbnails: bool = True,
        thumbnail_size: int = 48,
        patience: float = 120.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if layer is not None and not isinstance(layer, str):
            raise UsageError(f"layer is the dotted name of a layer, not {layer!r}.")
        methods = [methods] if isinstance(methods, str) else list(methods)
        unknown = [m for m in methods if m not in ("pca", "tsne")]
        if unknown or not methods:
            raise UsageError(f"methods are 'pca' and 'tsne', not {unknown or 'none'}.")
        check_at_least("max_samples", max_samples, 5)
        check_at_least("thumbnail_size", thumbnail_size, 4)
        if not perplexity >= 1:
            raise UsageError(f"perplexity is a number of neighbours, at least 1; got {perplexity}.")
        self.layer, self.methods, self.max_samples = layer, tuple(methods), max_samples
        self.perplexity, self.projector, self.thumbnails = perplexity, projector, thumbnails
        self.thumbnail_size, self.patience = thumbnail_size, patience
        self.features: Features | None = None
        self.points: dict[str, Tensor] = {}
        self._tapped: tuple[str, Literal["output", "input"]] = ("", "output")
        self._dimensions = 0
        self._size = (0, 0)
        self._bank: FeatureBank | None = None
        self._wanted: Tensor | None = None
        self._pixels = PixelSpace()
        self._class_names: list[str] | None = None
        self._samples: Tensor | None = None
        self._worker: EmbeddingWorker | None = None

    def layer_names(self) -> Sequence[str]:
        return [self.layer] if self.layer else ()

    def check(self, look: Look) -> None:
        def run() -> Any:
            with torch.no_grad():
                return look.model(look.images)

        if self.layer is None:
            self._tapped = self._input_of_head(look), "input"
        else:
            self._tapped = find_layer(look.model, self.layer)[0], "output"
        self._size = (look.images.shape[2], look.images.shape[3])
        with capture(look.model, [self._tapped[0]], where=self._tapped[1], reduce=self._vectors) as values:
            run()
        (calls,) = values.values()
        if not calls:
            raise UsageError(f"layer '{self._tapped[0]}' takes no part in the forward pass, so it has no features.")
        self._dimensions = calls[0].shape[1]
        if "tsne" in self.methods and look.model.trainer.is_global_zero and self._worker is None:
            self._worker = EmbeddingWorker()
            self._worker.start()
        self._pixels, self._class_names = look.pixels, look.class_names

    def _input_of_head(self, look: Look) -> str:
        try:
            with torch.no_grad():
                scores = class_scores(look.model, look.images, score=look.score)
                return head_of(look.model, lambda: look.model(look.images), scores.shape[1])
        except UsageError as error:
            raise UsageError(f"{error} Or name the layer whose output to show: layer=...") from error

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._probe is not None
        channels, height, width = self._probe.images.shape[1:]
        scale = self.thumbnail_size / max(height, width)
        size = (channels, max(1, round(height * scale)), max(1, round(width * scale)))
        self._bank = FeatureBank(self.max_samples, self._dimensions, size).to(pl_module.device)
        passing = _passing(trainer, self.dataloader_idx)
        self._wanted = None
        if passing > self.max_samples:
            self._wanted = torch.zeros(passing, dtype=torch.bool)
            # At random, since classes often come in turn; with a generator of its own, and always the same.
            order = torch.randperm(passing, generator=torch.Generator().manual_seed(self.seed))
            self._wanted[order[: self.max_samples]] = True

    def taps(self) -> Sequence[Tap]:
        return [Tap(*self._tapped, lambda values: self._vectors(values).clone())]

    def update(self, batch: Batch, values: Sequence[Any]) -> None:
        assert self._bank is not None and self.indices is not None
        keep = torch.ones(len(batch.images), dtype=torch.bool)
        if self._wanted is not None:
            # Where their index is unknown samples are numbered as they come, over all ranks.
            keep = self._wanted[batch.samples.cpu().clamp(max=len(self._wanted) - 1)]
        keep = keep.to(batch.images.device)
        if not keep.any():
            return
        small = F.interpolate(batch.images[keep].float(), size=self._bank.thumbnails.shape[-2:], mode="area")
        colors = (self._pixels.to_color(small) * 255).round().to(torch.uint8)
        labels = batch.labels if batch.labels is not None else torch.full_like(batch.samples, -1)
        self._bank.update(values[0][keep], labels[keep], batch.samples[keep], colors)

    def _vectors(self, values: Tensor) -> Tensor:
        """One float32 vector for each image: maps are averaged over places, tokens over tokens."""
        if values.dim() == 2:
            return values.float()
        return as_maps(values, image_size=self._size).float().mean(dim=(2, 3))

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
        if self._samples is None or not torch.equal(self._samples, self.features.samples):
            # Other samples than last time: there is nothing to align with.
            self._samples, self.points = self.features.samples, {}
            if self._worker is not None:
                self._worker.last = None

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        features, trainer = self.features, look.model.trainer
        if features is None or not trainer.is_global_zero:
            return {}
        frame = _Frame(self._tapped[0], features, look.class_names, look.step, look.when, self._notes())
        if not torch.isfinite(features.values).all():
            broken = int((~torch.isfinite(features.values).all(dim=1)).sum())
            nowhere = torch.full((len(features.values), 2), torch.nan)
            told = f" {broken} of {len(nowhere)} images have features that are NaN or infinite."
            return self._pictures(replace(frame, notes=told), {"PCA": nowhere})
        points = functional.pca(features.values).points
        if "pca" in self.points:
            points = functional.align_signs(points, self.points["pca"])
        self.points["pca"] = points
        if "tsne" not in self.methods or len(features.values) < 5:
            return self._pictures(frame, {"PCA": points})

        def arguments(last: np.ndarray | None) -> dict[str, Any]:
            return {
                "features": features.values.numpy(),
                "perplexity": self.perplexity,
                "init": last,
                "seed": self.seed,
            }

        def done(embedded: np.ndarray) -> None:
            self.points["tsne"] = torch.from_numpy(embedded)
            shown = {"PCA": points} if "pca" in self.methods else {}
            self.write(trainer, self._pictures(frame, {**shown, "t-SNE": self.points["tsne"]}), frame.step)

        def dropped() -> None:
            self.write(trainer, self._pictures(frame, {"PCA": points}), frame.step)

        assert self._worker is not None
        if self._worker.last is None and "tsne" in self.points:
            self._worker.last = self.points["tsne"].numpy()  # from a checkpoint
        self._worker.submit(arguments, done, dropped)
        return {}

    def _notes(self) -> str:
        assert self.indices is not None
        return "" if self.indices.exact else " Samples are counted as seen: their order in the data set is unknown."

    def _pictures(self, frame: _Frame, points: dict[str, Tensor]) -> dict[str, np.ndarray]:
        labels = frame.features.labels if bool((frame.features.labels >= 0).any()) else None
        names = frame.class_names
        if labels is not None and names is not None and int(labels.max()) >= len(names):
            names = None
        common: dict[str, Any] = {"labels": labels, "class_names": names}
        read = f"{READ.format(layer=frame.layer)}{frame.notes}"
        count = len(frame.features.values)
        out = {
            frame.layer: draw.scatter_panels(
                [draw.Panel(p, name) for name, p in points.items()],
                title=f"Embedding of {count} images · {frame.when}",
                subtitle=read,
                **common,
            )
        }
        if self.thumbnails:
            kind, place = list(points.items())[-1]
            thumbnails = draw.to_uint8(frame.features.thumbnails.float() / 255)
            out[f"{frame.layer}/map"] = draw.thumbnail_map(
                place,
                thumbnails,
                title=f"{kind} map · {frame.when}",
                subtitle=f"{count} images at their places in the {kind} picture, moved by a few widths where they "
                f"would hide each other. Dots: images without room.{frame.notes}",
                **common,
            )
            out[f"{frame.layer}/grid"] = draw.thumbnail_grid(
                place,
                thumbnails,
                title=f"{kind} grid · {frame.when}",
                subtitle=f"Images moved onto a grid, as near to their places in the {kind} picture as can be: who lies "
                f"beside whom counts, distances don't.{frame.notes}",
                **common,
            )
        return out

    # Background work is handed over at every batch, and waited for at the end alone.

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.attempt(trainer, self._poll, "embed")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._end(trainer, pl_module)

    on_test_end = on_validation_end

    def _poll(self) -> None:
        if self._worker is not None:
            self._worker.poll()

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def wait() -> None:
            if self._worker is not None and self._worker.busy:
                rank_zero_info(f"{self.name}: the last t-SNE embeddings are being computed.")
                self._worker.finish(self.patience)

        self.attempt(trainer, wait, "finish t-SNE")
        self.attempt(trainer, lambda: self._project(trainer, pl_module), "write the projector")

    def _project(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.projector or self.features is None or not trainer.is_global_zero:
            return
        if not torch.isfinite(self.features.values).all():
            return  # the projector would show nothing
        look_names = self._class_names
        names = [
            look_names[i] if look_names and 0 <= i < len(look_names) else str(i) for i in self.features.labels.tolist()
        ]
        writer = self.writer(trainer)
        writer.embedding(
            f"{self.name}/{self._tapped[0]}",
            self.features.values,
            names,
            self.features.thumbnails,
            trainer.global_step,
        )
        writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._close()

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def memory(self) -> dict[str, Any]:
        return {} if self._samples is None else {"samples": self._samples, "points": dict(self.points)}

    def remember(self, memory: dict[str, Any]) -> None:
        self._samples = memory.get("samples")
        self.points = dict(memory.get("points", {}))


@dataclass(frozen=True)
class _Frame:
    """What a picture of an embedding says besides the points; kept while t-SNE is computed."""

    layer: str
    features: Features
    class_names: list[str] | None
    step: int
    when: str
    notes: str


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
