"""Features of the validation data in the plane: PCA, t-SNE, maps of thumbnails, TensorBoard's projector."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.background import EmbeddingWorker
from lit_viz.callbacks.base import Look
from lit_viz.callbacks.features import FeatureCallback
from lit_viz.errors import UsageError, check_choice
from lit_viz.functional.tsne import ENGINES, available_engine
from lit_viz.probing import evenly_spaced
from lit_viz.state import Features

READ = (
    "Each point is a validation image, placed by its features in {layer}. "
    "Images that the network holds for alike lie close."
)
MOST_LAYERS = 4  # panels that can be read on one picture
MEASURED = 1000  # samples that the curves are measured on
NEIGHBORS = 10
STANDING_BACK = 0.1  # what a process of niceness 10 gets of a core that others want (weights 110 to 1024 in Linux)


class Embeddings(FeatureCallback):
    """Where the validation images lie in feature space (the lecture's t-SNE; van der Maaten & Hinton 2008).

    t-SNE runs in a low-priority process beside training; each embedding starts from the one before, so that the
    picture moves smoothly from epoch to epoch. Pictures are logged at the step whose features they show, when they
    are ready, and the last ones before `fit` returns; where t-SNE fails or takes too long they show PCA alone. Of a
    `budget` the process takes nothing while a core is free beside torch's threads, else a tenth of its time, since it
    stands back; waiting for it at the end counts in full.

    Tags: `embeddings/<layer>` (PCA and t-SNE), `embeddings/<layer>/map` and `embeddings/<layer>/grid` (thumbnails), and
    an entry in the projector at the end. Of several layers `embeddings/pca` and `embeddings/tsne` show one panel each,
    and thumbnails are those of the last one.

    Curves, of up to 1,000 of the images: `embeddings/<layer>/silhouette` (`functional.silhouette`) and
    `embeddings/<layer>/knn_accuracy` (`functional.knn_accuracy`, 10 neighbours, Euclidean) tell how well classes come
    apart among the features; `embeddings/<layer>/explained_variance` how much of the variance the PCA shows, and
    `embeddings/<layer>/trustworthiness` (`functional.trustworthiness`, 10 neighbours) how far neighbours in the picture
    (t-SNE's, or PCA's where there is no other) are neighbours among the features.

    Args:
        layer: Dotted name of a layer whose output to show, or up to four of them; by default the input of the
            classifier head. Maps are averaged over places, tokens over tokens.
        methods: "pca", "tsne" or both.
        max_samples: How many validation images at most, chosen at random (always the same) from those that a validation
            pass goes through.
        perplexity: Of t-SNE: effective number of neighbours.
        engine: Of t-SNE, see `functional.tsne`; "auto" takes the quickest for so many samples.
        projector: Also write an entry for TensorBoard's projector, at the end.
        thumbnails: Draw the map and the grid of thumbnails.
        thumbnail_size: Side of a thumbnail in pixels.
        patience: Seconds to wait at the end for embeddings that are still being computed.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "embeddings"

    def __init__(
        self,
        layer: str | Sequence[str] | None = None,
        *,
        methods: Literal["pca", "tsne"] | Sequence[Literal["pca", "tsne"]] = ("pca", "tsne"),
        max_samples: int = 1000,
        perplexity: float = 30.0,
        engine: Literal["auto", "exact", "sklearn", "opentsne"] = "auto",
        projector: bool = True,
        thumbnails: bool = True,
        thumbnail_size: int = 48,
        patience: float = 120.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, max_samples=max_samples, thumbnail_size=thumbnail_size, **kwargs)
        if self.layer is not None and len(self.layer) > MOST_LAYERS:
            raise UsageError(f"{len(self.layer)} layers are too many for a picture: name up to {MOST_LAYERS}.")
        methods = [methods] if isinstance(methods, str) else list(methods)
        unknown = [m for m in methods if m not in ("pca", "tsne")]
        if unknown or not methods:
            raise UsageError(f"methods are 'pca' and 'tsne', not {unknown or 'none'}.")
        if not perplexity >= 1:
            raise UsageError(f"perplexity is a number of neighbours, at least 1; got {perplexity}.")
        check_choice("engine", engine, ENGINES)
        try:
            available_engine(engine)
        except ValueError as error:
            raise UsageError(f"{error} It comes with lit-viz's extra: pip install 'lit-viz[opentsne]'.") from None
        self.methods, self.perplexity, self.engine = tuple(methods), perplexity, engine
        self.projector, self.thumbnails, self.patience = projector, thumbnails, patience
        self.points: dict[str, dict[str, Tensor]] = {}  # the last ones, of each layer by method
        self._samples: Tensor | None = None
        self._worker: EmbeddingWorker | None = None
        self._booked = 0.0  # seconds of the worker

    def check(self, look: Look) -> None:
        super().check(look)
        if "tsne" in self.methods and look.model.trainer.is_global_zero and self._worker is None:
            self._worker, self._booked = EmbeddingWorker(), 0.0
            self._worker.start()

    def finish(self, results: dict[str, Any]) -> None:
        super().finish(results)
        assert self.features is not None
        if self._samples is None or not torch.equal(self._samples, self.features.samples):
            # Other samples than last time: there is nothing to align with.
            self._samples, self.points = self.features.samples, {}

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        features, trainer = self.features, look.model.trainer
        if features is None or not trainer.is_global_zero:
            return {}
        layers = self.by_layer(features.values)
        frame = _Frame(layers, features, look.step, look.when, self.counted)
        numbers: dict[str, float] = {}
        finite = [name for name, values in layers.items() if bool(torch.isfinite(values).all())]
        for name, values in layers.items():
            if name in finite:
                numbers |= self._project_linearly(frame, name)
            else:
                broken = int((~torch.isfinite(values).all(dim=1)).sum())
                frame.panels[name] = {"PCA": draw.Panel(torch.full((len(values), 2), torch.nan), "PCA")}
                frame.notes += f" {broken} of {len(values)} images have {name} features that are NaN or infinite."
        if "tsne" not in self.methods or not finite or len(features.values) < 5:
            return {**numbers, **self._trust(frame, finite), **self._pictures(frame)}
        frame.awaited = list(finite)
        assert self._worker is not None
        for name in finite:
            self._worker.submit(*self._job(trainer, frame, name))
        return numbers

    def _project_linearly(self, frame: _Frame, layer: str) -> dict[str, float]:
        """Adds the PCA of a layer to a frame; returns what is measured on its features."""
        values, before = frame.layers[layer], self.points.setdefault(layer, {})
        found = functional.pca(values)
        points = functional.align_signs(found.points, before["pca"]) if "pca" in before else found.points
        before["pca"] = points
        axes = [f"PC {i + 1} · {share:.0%}".replace("%", " %") for i, share in enumerate(found.explained.tolist())]
        frame.panels[layer] = {"PCA": draw.Panel(points, "PCA", (axes[0], axes[1]))}
        numbers = {f"{layer}/explained_variance": float(found.explained.sum())}
        some = evenly_spaced(len(values), min(MEASURED, len(values)))
        values, labels = values[some], frame.features.labels[some]
        known = labels[labels >= 0]
        if 1 < len(known.unique()) < len(known):
            numbers[f"{layer}/silhouette"] = functional.silhouette(values, labels)
        if len(known) > NEIGHBORS:
            numbers[f"{layer}/knn_accuracy"] = functional.knn_accuracy(values, labels, NEIGHBORS, metric="l2")
        return numbers

    def _trust(self, frame: _Frame, layers: Sequence[str]) -> dict[str, float]:
        """How far the last picture of each layer can be trusted."""
        count = len(frame.features.values)
        some = evenly_spaced(count, min(MEASURED, count))
        if len(some) <= 2 * NEIGHBORS:
            return {}
        shown = {name: list(frame.panels[name].values())[-1].points for name in layers}
        return {
            f"{name}/trustworthiness": functional.trustworthiness(frame.layers[name][some], points[some], NEIGHBORS)
            for name, points in shown.items()
        }

    def _job(self, trainer: Trainer, frame: _Frame, layer: str) -> tuple[Any, Any, Any]:
        """What the worker is to do for one layer, and what follows."""

        def arguments(_: np.ndarray | None) -> dict[str, Any]:
            # Of the layer's own, not what the worker did last; jobs of a layer are answered in order.
            last = self.points.get(layer, {}).get("tsne") if self._current(frame) else None
            return {
                "features": frame.layers[layer].numpy(),
                "perplexity": self.perplexity,
                "init": None if last is None else last.numpy(),
                "seed": self.seed,
                "engine": self.engine,
            }

        def done(embedded: np.ndarray) -> None:
            points = torch.from_numpy(embedded)
            frame.panels[layer]["t-SNE"] = draw.Panel(points, "t-SNE")
            if self._current(frame):
                self.points[layer]["tsne"] = points
            ended(self._trust(frame, [layer]))

        def dropped() -> None:
            ended({})

        def ended(numbers: dict[str, float]) -> None:
            frame.awaited.remove(layer)
            pictures = {} if frame.awaited else self._pictures(frame)
            self.write(trainer, {**numbers, **pictures}, frame.step)

        return arguments, done, dropped

    def _current(self, frame: _Frame) -> bool:
        """Whether the samples are still those of a frame."""
        return self._samples is not None and torch.equal(self._samples, frame.features.samples)

    def _pictures(self, frame: _Frame) -> dict[str, np.ndarray]:
        labels = frame.features.labels if bool((frame.features.labels >= 0).any()) else None
        common: dict[str, Any] = {"labels": labels, "class_names": self.names_of(frame.features.labels)}
        count = len(frame.features.values)
        out = {}
        for tag, layer, panels in self._panels(frame):
            out[tag] = draw.scatter_panels(
                panels,
                title=f"Embedding of {count} images · {frame.when}",
                subtitle=f"{READ.format(layer=layer)}{frame.notes}",
                **common,
            )
        if self.thumbnails:
            layer, shown = list(frame.panels.items())[-1]
            kind, panel = list(shown.items())[-1]
            thumbnails = draw.to_uint8(frame.features.thumbnails.float() / 255)
            out[f"{layer}/map"] = draw.thumbnail_map(
                panel.points,
                thumbnails,
                title=f"{kind} map · {frame.when}",
                subtitle=f"{count} images at their places in the {kind} picture, moved by a few widths where they "
                f"would hide each other. Dots: images without room.{frame.notes}",
                **common,
            )
            out[f"{layer}/grid"] = draw.thumbnail_grid(
                panel.points,
                thumbnails,
                title=f"{kind} grid · {frame.when}",
                subtitle=f"Images moved onto a grid, as near to their places in the {kind} picture as can be: who lies "
                f"beside whom counts, distances don't.{frame.notes}",
                **common,
            )
        return out

    def _panels(self, frame: _Frame) -> list[tuple[str, str, list[draw.Panel]]]:
        """Tag, what is shown, and panels of each picture of points."""
        if len(frame.panels) == 1:
            ((layer, shown),) = frame.panels.items()
            kinds = self._kinds(shown)
            return [(layer, layer, [shown[kind] for kind in kinds])]
        pictures = []
        for tag, kind in (("pca", "PCA"), ("tsne", "t-SNE")):
            panels = [
                draw.Panel(shown[kind].points, f"{layer} · {kind}", shown[kind].axes)
                for layer, shown in frame.panels.items()
                if kind in self._kinds(shown)
            ]
            if panels:
                pictures.append((tag, "the layer that the panel names", panels))
        return pictures

    def _kinds(self, shown: Mapping[str, draw.Panel]) -> list[str]:
        """What to show of a layer; PCA also where it was not asked for but t-SNE could not be had."""
        return [kind for kind in shown if kind == "t-SNE" or "pca" in self.methods or len(shown) == 1]

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
        if self._worker is None:
            return
        self._worker.poll()
        if self.budget is not None and self._worker.seconds > self._booked and not _core_is_free():
            self.budget.spend(self.name, STANDING_BACK * (self._worker.seconds - self._booked))
        self._booked = self._worker.seconds

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def wait() -> None:
            if self._worker is not None and self._worker.busy:
                rank_zero_info(f"{self.name}: the last t-SNE embeddings are being computed.")
                self._worker.finish(self.patience)

        # First, since t-SNE goes on meanwhile.
        self.attempt(trainer, lambda: self._project(trainer), "write the projector")
        # One that fails must not cost the others; with `on_error="raise"` it ends here.
        while not self.attempt(trainer, wait, "finish t-SNE") and self._worker is not None and self._worker.busy:
            continue

    def _project(self, trainer: Trainer) -> None:
        if not self.projector or self.features is None or not trainer.is_global_zero:
            return
        known = self._class_names
        names = [known[i] if known and 0 <= i < len(known) else str(i) for i in self.features.labels.tolist()]
        writer = self.writer(trainer)
        for layer, values in self.by_layer(self.features.values).items():
            if torch.isfinite(values).all():  # else the projector would show nothing
                tag = f"{self.name}/{layer}"
                writer.embedding(tag, values, names, self.features.thumbnails, trainer.global_step)
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
        points = {layer: dict(points) for layer, points in self.points.items()}
        return {} if self._samples is None else {"samples": self._samples, "points": points}

    def remember(self, memory: dict[str, Any]) -> None:
        self._samples = memory.get("samples")
        self.points = {layer: dict(points) for layer, points in memory.get("points", {}).items()}


def _core_is_free() -> bool:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() < cores


@dataclass
class _Frame:
    """What is known of one look; kept while t-SNE is computed."""

    layers: dict[str, Tensor]
    features: Features
    step: int
    when: str
    notes: str
    panels: dict[str, dict[str, draw.Panel]] = field(default_factory=dict)
    awaited: list[str] = field(default_factory=list)
