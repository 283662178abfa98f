"""Occlusion heat maps of the probe images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.attribution import AttributionCallback, attribution_sheet
from lit_viz.callbacks.base import Look
from lit_viz.errors import UsageError, check_at_least, check_choice


class Occlusion(AttributionCallback):
    """How the class probability falls as a patch slides over the image (Zeiler & Fergus 2014), as in the lecture.

    See `functional.occlusion`. Tag: `occlusion/probe`.

    Args:
        window: Side of the patch in pixels, or height and width; a quarter of the image by default.
        stride: Step of the patch in pixels; half of the window by default.
        baseline: What covers the window: "grey", "mean" (of the image), "blur", "noise", or a colour in [0, 1] as one
            number or one per channel.
        output: "probability" or "score", the raw score.
        scale: "relative": colours run from 0 to the probability of the image as it is, which its caption gives, so that
            they tell what share of it is left. "fixed": from 0 to 1 for all. For scores, the range of all.
            "each": over the range of each map, which its caption gives.
        region: (top, left, bottom, right) in pixels: look only where windows touch this box. The rest is hatched.
        engine: "auto": compute only what a covered copy changes, which is exact, where the network allows it and it
            pays, else a full pass for each position; "incremental" or "full": one of the two. The caption says which.
        autocast: "bfloat16" or "float16", for mixed precision: faster where the hardware has it, and not exact; the
            caption says by how much.
        batch_size: Most covered copies at once; chosen from the image size by default, halved whenever memory runs out.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "occlusion"

    def __init__(
        self,
        *,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        baseline: Literal["grey", "mean", "blur", "noise"] | float | list[float] = "grey",
        output: Literal["probability", "score"] = "probability",
        scale: Literal["relative", "fixed", "each"] = "relative",
        region: tuple[int, int, int, int] | None = None,
        engine: Literal["auto", "incremental", "full"] = "auto",
        autocast: Literal["bfloat16", "float16"] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.window, self.stride, self.baseline = window, stride, baseline
        self.output, self.scale, self.batch_size = output, scale, batch_size
        self.region = None if region is None else tuple(region)
        self.engine, self.autocast = engine, autocast
        for label, value in (("window", window), ("stride", stride)):
            for length in () if value is None else np.ravel(value).tolist():
                check_at_least(label, length, 1, " pixel")
        check_choice("output", output, ("probability", "score"))
        check_choice("scale", scale, ("relative", "fixed", "each"))
        check_choice("engine", engine, ("auto", "incremental", "full"))
        if autocast is not None:
            check_choice("autocast", autocast, ("bfloat16", "float16"))
        if batch_size is not None:
            check_at_least("batch_size", batch_size, 1, " or null to choose it")
        if isinstance(baseline, str):
            if baseline not in ("grey", "mean", "blur", "noise"):
                raise UsageError(f"baseline is 'grey', 'mean', 'blur', 'noise' or a colour, not {baseline!r}.")
        elif not all(0 <= color <= 1 for color in np.ravel(baseline).tolist()):
            raise UsageError(f"baseline is a colour from 0 (black) to 1, got {baseline}.")

    def check(self, look: Look) -> None:
        window, stride = self._geometry(look)
        size = tuple(look.images.shape[-2:])
        functional.check_window(window, stride, size)
        functional.Grid.of(size, *functional.check_window(window, stride, size), self.region)
        self._cover(look)

    def attribute(self, look: Look) -> Tensor:
        return functional.occlusion(*self._asked(look), **self._options(look), returns="attribution")

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        window, stride = self._geometry(look)
        found = functional.occlusion_map(*self._asked(look), **self._options(look))
        heat, size = found.heat, tuple(look.images.shape[-2:])
        what = "probability" if self.output == "probability" else "score"
        limits: Any = (0.0, 1.0) if what == "probability" else tuple(torch.aminmax(heat[~heat.isnan()]))
        ends = tuple(f"{v:.2g}" for v in limits)
        if self.scale == "each":
            limits, ends = "each", ("low", "high")
        elif self.scale == "relative" and what == "probability":
            whole = functional.probabilities(look.scores).gather(1, look.targets[:, None])[:, 0]
            limits, ends = [(0.0, p) for p in whole.tolist()], ("0", "uncovered")
        cover = self.baseline if isinstance(self.baseline, str) else "flat"
        return {
            "probe": attribution_sheet(
                look,
                functional.on_image(heat, size, window, stride),
                name=what,
                title="Occlusion",
                subtitle=f"The {what} of the named class while a {cover} {_size(window)} px patch covers that place "
                f"(step {_size(stride)} px). Red: covering it hurts, so the network relies on it. {_how(found)}",
                colorbar=draw.ColorBar("occlusion", *ends, what),
                limits=limits,
                method="nearest",
                seen=functional.on_image(heat, size, window, stride)[0].isfinite() if self.region else None,
            )
        }

    def _asked(self, look: Look) -> tuple[Any, Tensor, Tensor]:
        return look.model, look.images, look.targets

    def _options(self, look: Look) -> dict[str, Any]:
        window, stride = self._geometry(look)
        trainer = look.model.trainer
        return {
            "window": window,
            "stride": stride,
            "baseline": self._cover(look),
            "output": self.output,
            "region": self.region,
            "engine": self.engine,
            "autocast": None if self.autocast is None else getattr(torch, self.autocast),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "progress": trainer.progress_bar_callback is not None and trainer.is_global_zero,
            "score": look.score,
        }

    def _geometry(self, look: Look) -> tuple[Any, Any]:
        size = look.images.shape[-2:]
        window = self.window or (max(1, size[0] // 4), max(1, size[1] // 4))
        pair = (window, window) if isinstance(window, int) else window
        return window, self.stride or tuple(max(1, w // 2) for w in pair)

    def _cover(self, look: Look) -> Tensor | str:
        if self.baseline in ("mean", "blur", "noise"):
            return str(self.baseline)
        color = torch.tensor(
            0.5 if self.baseline == "grey" else self.baseline, dtype=torch.float32, device=look.images.device
        )
        channels = look.images.shape[1]
        if color.numel() not in (1, channels):
            raise UsageError(f"baseline has {color.numel()} values, but the images have {channels} channels.")
        return look.pixels.from_color(color.reshape(-1, 1, 1).expand(channels, 1, 1))


def _how(found: functional.OcclusionMap) -> str:
    """How the maps were computed, for the caption."""
    way = "Only what changes was computed" if found.engine == "incremental" else "Computed by full passes"
    error = ""
    if found.error is not None:
        off = f"up to {found.error:.1%} of the largest effect off" if np.isfinite(found.error) else "which overflowed"
        error = f"; mixed precision, {off}"
    return f"{way} ({found.note}){error}."


def _size(pair: int | tuple[int, int]) -> str:
    height, width = (pair, pair) if isinstance(pair, int) else pair
    return str(height) if height == width else f"{height}×{width}"
