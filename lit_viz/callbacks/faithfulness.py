"""Attribution maps put to the test while the network trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.attribution import AttributionCallback
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.errors import UsageError, check_at_least, check_choice, nearest
from lit_viz.probing import split_batch

RANDOM = "random"
_BASELINES = {"blur": "the blurred image", "grey": "grey", "mean": "the image's mean colour", "noise": "noise"}


@dataclass(frozen=True)
class _Tested:
    curves: functional.Curves
    pointing: float | None = None
    energy: float | None = None


class Faithfulness(VisualizationCallback):
    """Whether the maps of attribution callbacks say what the network relies on, as curves and numbers over the run.

    Insertion and deletion (Petsiuk et al. 2018, see `functional.insertion_deletion`), beside a random order of pixels;
    on request the parameter randomisation test (Adebayo et al. 2018, see `functional.randomization_check`), and with
    masks or boxes of the objects the pointing game. Maps are those of `attribute` on this callback's own probe images,
    whatever the schedule of the others. A method that fails is left out and named below the picture.

    One look takes 2 · (steps + 1) · num_images forward passes for each method and for the random order.

    Tags: `faithfulness/curves`, `faithfulness/randomization`. Numbers, means over the images:
    `faithfulness/<name>/insertion`, `…/deletion` (areas under the curves), `…/randomization` (rank correlation over
    all stages), `…/pointing`, `…/energy`, with the names of the other callbacks, or "random".

    Args:
        of: What to test: names of the trainer's attribution callbacks (`saliency`, or the class name), or callbacks
            of its own, or a list of these; all attribution callbacks of the trainer by default.
        steps: In how many steps pixels come and go.
        output: "probability" or "score", the raw score.
        start: Where insertion starts: "blur", "grey", "mean" (of the image) or "noise".
        end: Where deletion ends, likewise.
        randomization: Also make a copy of the network random, layer by layer, and see whether the maps notice. Takes
            the time of `stages` looks of each method.
        stages: Stages of that, evenly spaced over the layers.
        batch_to_masks: From a batch to masks (N, H, W) of the objects, or boxes (N, 4) with left, top, right and bottom
            edge in px, for the pointing game; for instance `lambda batch: batch["boxes"]`.
        tolerance: How far beside the object the pointing game counts, px.
        batch_size: Copies in one forward pass; chosen from the image size by default, halved whenever memory runs
            out.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "faithfulness"

    def __init__(
        self,
        of: str | AttributionCallback | Sequence[str | AttributionCallback] | None = None,
        *,
        steps: int = 20,
        output: Literal["probability", "score"] = "probability",
        start: Literal["blur", "grey", "mean", "noise"] = "blur",
        end: Literal["blur", "grey", "mean", "noise"] = "grey",
        randomization: bool = False,
        stages: int = 8,
        batch_to_masks: Callable[[Any], Tensor] | None = None,
        tolerance: float = 0.0,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.of = [of] if isinstance(of, (str, AttributionCallback)) else of
        if self.of is not None and not (
            isinstance(self.of, Sequence)
            and self.of
            and all(isinstance(o, (str, AttributionCallback)) for o in self.of)
        ):
            raise UsageError(f"of holds attribution callbacks or their names, one or a list of them, not {of!r}.")
        check_at_least("steps", steps, 1)
        check_at_least("stages", stages, 1)
        check_choice("output", output, ("probability", "score"))
        check_choice("start", start, tuple(_BASELINES))
        check_choice("end", end, tuple(_BASELINES))
        if batch_size is not None:
            check_at_least("batch_size", batch_size, 1, " or null to choose it")
        if batch_to_masks is not None and not callable(batch_to_masks):
            raise UsageError(f"batch_to_masks must be a function, got {batch_to_masks!r}.")
        if not tolerance >= 0:
            raise UsageError(f"tolerance is a distance in px, at least 0; got {tolerance}.")
        self.steps, self.output, self.start, self.end = steps, output, start, end
        self.randomization, self.stages = randomization, stages
        self.batch_to_masks, self.tolerance, self.batch_size = batch_to_masks, tolerance, batch_size
        self._masks: Tensor | None = None
        self._unfit: dict[str, Exception] = {}
        if batch_to_masks is not None:
            self._only_images, self.batch_to_images = self.batch_to_images, self._with_masks

    def layer_names(self) -> Sequence[str]:
        return [n for one in self.of or () if isinstance(one, AttributionCallback) for n in one.layer_names()]

    def check(self, look: Look) -> None:
        methods, self._unfit = self._methods(look), {}
        for name, method in methods.items():
            try:
                method.check(look)
            except Exception as error:
                self._unfit[name] = self._told(error, name)
        if len(self._unfit) == len(methods):
            raise next(iter(self._unfit.values()))

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        methods, failures = self._methods(look), dict(self._unfit)
        tested: dict[str, _Tested] = {}
        randomized: dict[str, functional.Randomization] = {}
        for name, method in methods.items():
            if name in failures:
                continue
            try:
                tested[name] = self._test(look, method.attribute(look))
                if self.randomization:
                    randomized[name] = self._randomized(look, method)
            except Exception as error:
                failures[name] = self._told(error, name)
        if not tested:
            raise next(iter(failures.values()))
        count, _, height, width = look.images.shape
        noise = torch.rand(count, height, width, generator=torch.Generator().manual_seed(self.seed))
        tested[RANDOM] = self._test(look, noise.to(look.images.device))
        notes = [f"{name} is left out: {error}" for name, error in failures.items()]
        drawn: dict[str, np.ndarray | float] = {"curves": self._curves(look, tested, notes)}
        for name, result in tested.items():
            drawn[f"{name}/insertion"] = float(result.curves.insertion_area.mean())
            drawn[f"{name}/deletion"] = float(result.curves.deletion_area.mean())
            if result.pointing is not None and result.energy is not None:
                drawn |= {f"{name}/pointing": result.pointing, f"{name}/energy": result.energy}
        if randomized:
            drawn["randomization"] = self._cascade(look, randomized, notes)
            for name, check in randomized.items():
                drawn[f"{name}/randomization"] = float(check.rank_correlation.nanmean())
        return drawn

    def _methods(self, look: Look) -> dict[str, AttributionCallback]:
        """What is to be tested, by names that differ."""
        present = [c for c in look.model.trainer.callbacks if isinstance(c, AttributionCallback)]
        if self.of is None and not present:
            raise UsageError(
                f"{self.name}: the trainer has no attribution callback whose maps could be tested; "
                f"add one, for instance Saliency(), or give it as of=Saliency()."
            )
        found: list[AttributionCallback] = []
        for one in present if self.of is None else self.of:
            found += [c for c in ([one] if not isinstance(one, str) else _named(one, present)) if c not in found]
        methods: dict[str, AttributionCallback] = {}
        for method in found:
            name, number = method.name, 2
            while name in methods or name == RANDOM:
                name, number = f"{method.name}-{number}", number + 1
            methods[name] = method
        return methods

    def _test(self, look: Look, maps: Tensor) -> _Tested:
        height, width = look.images.shape[-2:]
        grey = look.pixels.from_color(torch.full((look.images.shape[1], 1, 1), 0.5, device=look.images.device))
        curves = functional.insertion_deletion(
            look.model,
            look.images,
            maps,
            look.targets,
            steps=min(self.steps, height * width),
            start=grey if self.start == "grey" else self.start,
            end=grey if self.end == "grey" else self.end,
            output=self.output,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=look.model.trainer.progress_bar_callback is not None,
            score=look.score,
        )
        if self._masks is None:
            return _Tested(curves)
        hits = functional.pointing_score(maps, self._masks, tolerance=self.tolerance)
        inside = functional.energy_inside(maps, self._masks)
        return _Tested(curves, float(hits.float().mean()), float(inside.nanmean()))

    def _randomized(self, look: Look, method: AttributionCallback) -> functional.Randomization:
        trainer = look.model.trainer

        def attribute(model: torch.nn.Module) -> Tensor:
            assert isinstance(model, LightningModule)
            if not isinstance(model.__dict__.get("forward"), MethodType):
                # What the guard or a compiler put there still runs the network that was copied.
                model.__dict__.pop("forward", None)
            model.trainer = trainer
            with self.looking(trainer, model):
                return method.attribute(replace(look, model=model))

        return functional.randomization_check(look.model, attribute, stages=self.stages, seed=self.seed)

    def _told(self, error: Exception, name: str) -> Exception:
        """Warns of a method that failed; with `on_error="raise"` it stops the others, too."""
        if self.on_error == "raise":
            raise error
        self._warn(error, f"test {name}", "which is left out")
        # It is kept for long, and the frames of its traceback hold the network's activations.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error

    def _with_masks(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        assert self.batch_to_masks is not None
        images, labels = split_batch(batch, self._only_images)
        with torch.inference_mode(False):
            masks = torch.as_tensor(self.batch_to_masks(batch)).detach().to("cpu", copy=True)
        size = (images.shape[2], images.shape[3])
        if masks.dim() == 2 and masks.shape[1] == 4:
            masks = functional.boxes_to_masks(masks, size)
        elif masks.dim() == 4 and masks.shape[1] == 1:
            masks = masks[:, 0]
        if masks.shape != (len(images), *size):
            raise UsageError(
                f"batch_to_masks gave {tuple(masks.shape)} for images {tuple(images.shape)}; "
                f"masks {(len(images), *size)} or boxes {(len(images), 4)} are needed."
            )
        self._masks = masks[: self.num_images] > 0
        return images, labels

    def _curves(self, look: Look, tested: Mapping[str, _Tested], notes: Sequence[str]) -> np.ndarray:
        first = tested[RANDOM].curves
        limits = self._limits(tested)
        panels = [
            draw.CurvePanel(
                {name: getattr(result.curves, game).mean(dim=0) for name, result in tested.items()},
                first.fraction,
                heading,
                label,
                limits,
                percent=True,
            )
            for game, heading, label in (
                (
                    "insertion",
                    f"Insertion: mean {self.output}, high is good",
                    "pixels come, the most important first",
                ),
                (
                    "deletion",
                    f"Deletion: mean {self.output}, low is good",
                    "pixels go, the most important first",
                ),
            )
        ]
        areas = [(r.curves.insertion_area.mean(), r.curves.deletion_area.mean()) for r in tested.values()]
        columns = ["area, insertion", "area, deletion"]
        rows = [[f"{value:.3f}" for value in pair] for pair in areas]
        if self._masks is not None:
            columns += ["pointing game", "energy inside"]
            rows = [
                [*row, f"{100 * r.pointing:.0f} %", f"{100 * r.energy:.0f} %"]
                for row, r in zip(rows, tested.values(), strict=True)
            ]
        return draw.curve_panels(
            panels,
            table=draw.Table(columns, dict(zip(tested, rows, strict=True))),
            references=[RANDOM],
            notes=notes,
            title=f"Faithfulness · {look.when}",
            subtitle=f"The {self.output} of the class asked about as pixels come back over {_BASELINES[self.start]} "
            f"and as they give way to {_BASELINES[self.end]}. "
            f"A map that tells what the network relies on is high on the left and low on the right. "
            f"Mean of {len(look.images)} images.",
        )

    def _limits(self, tested: Mapping[str, _Tested]) -> tuple[float, float] | None:
        """The same for both games; few different ones over a run, so that its pictures compare."""
        if self.output == "score":
            return None
        means = [line.mean(dim=0) for r in tested.values() for line in (r.curves.insertion, r.curves.deletion)]
        peak, top = float(torch.stack(means).nan_to_num().max()), 1.0
        while 0 < peak <= top / 2:
            top /= 2
        return 0.0, top

    def _cascade(self, look: Look, checks: Mapping[str, functional.Randomization], notes: Sequence[str]) -> np.ndarray:
        stages = list(dict.fromkeys(layer for check in checks.values() for layer in check.layers))
        lines, rows = {}, {}
        for name, check in checks.items():
            values = dict(zip(check.layers, check.rank_correlation.nanmean(dim=1).tolist(), strict=True))
            lines[name] = np.array([values.get(stage, np.nan) for stage in stages])
            rows[name] = [f"{v.nanmean():.2f}".replace("-", "−") for v in (check.rank_correlation, check.ssim)]
        finite = [v for line in lines.values() for v in line if np.isfinite(v)]
        panel = draw.CurvePanel(
            lines,
            stages,
            x_label="rank correlation with the map of the network as it is",
            limits=(math.floor(4 * min([0.0, *finite])) / 4, 1.0),
        )
        return draw.curve_panels(
            [panel],
            table=draw.Table(("mean rank correlation", "mean structural similarity"), rows),
            notes=notes,
            title=f"Parameter randomisation · {look.when}",
            subtitle="What is left of the maps as layers are made random, from the output (top) to the one named. "
            "Maps of what was learned must change: a method that stays on the right does not show it.",
        )


def _named(name: str, present: Sequence[AttributionCallback]) -> list[AttributionCallback]:
    """The trainer's callbacks of a name or class name."""
    exact = [c for c in present if c.name == name]
    found = exact or [c for c in present if name.casefold() in (type(c).__name__.casefold(), c.tag.casefold())]
    if not found:
        known = [c.name for c in present]
        hint = nearest(name, known) if known else "it has none"
        raise UsageError(f"of: the trainer has no attribution callback named '{name}'; {hint}")
    return found
