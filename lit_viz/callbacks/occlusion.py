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
            they tell what share of it is left (for scores, over the range of all maps). "fixed": from 0 to 1 for all.
            "each": over the range of each map, which its caption gives.
        batch_size: Covered copies in one forward pass; chosen from the image size by default, halved whenever memory
            runs out.
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
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.window, self.stride, self.baseline = window, stride, baseline
        self.output, self.scale, self.batch_size = output, scale, batch_size
        for label, value in (("window", window), ("stride", stride)):
            for length in () if value is None else np.ravel(value).tolist():
                check_at_least(label, length, 1, " pixel")
        check_choice("output", output, ("probability", "score"))
        check_choice("scale", scale, ("relative", "fixed", "each"))
        if batch_size is not None:
            check_at_least("batch_size", batch_size, 1, " or null to choose it")
        if isinstance(baseline, str):
            if baseline not in ("grey", "mean", "blur", "noise"):
                raise UsageError(f"baseline is 'grey', 'mean', 'blur', 'noise' or a colour, not {baseline!r}.")
        elif not all(0 <= color <= 1 for color in np.ravel(baseline).tolist()):
            raise UsageError(f"baseline is a colour from 0 (black) to 1, got {baseline}.")

    def check(self, look: Look) -> None:
        window, stride = self._geometry(look)
        functional.check_window(window, stride, tuple(look.images.shape[-2:]))
        self._cover(look)

    def attribute(self, look: Look) -> Tensor:
        return self._occluded(look, "attribution")

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        window, stride = self._geometry(look)
        heat = self._occluded(look, "heatmap")
        what = "probability" if self.output == "probability" else "score"
        limits: Any = (0.0, 1.0) if what == "probability" else (float(heat.min()), float(heat.max()))
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
                functional.on_image(heat, tuple(look.images.shape[-2:]), window, stride),
                name=what,
                title="Occlusion",
                subtitle=f"The {what} of the named class while a {cover} {_size(window)} px patch covers that place "
                f"(step {_size(stride)} px). Red: covering it hurts, so the network relies on it.",
                colorbar=draw.ColorBar("occlusion", *ends, what),
                limits=limits,
                method="nearest",
            )
        }

    def _occluded(self, look: Look, returns: Literal["heatmap", "attribution"]) -> Tensor:
        window, stride = self._geometry(look)
        return functional.occlusion(
            look.model,
            look.images,
            look.targets,
            window=window,
            stride=stride,
            baseline=self._cover(look),
            output=self.output,
            returns=returns,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=look.model.trainer.progress_bar_callback is not None,
            score=look.score,
        )

    def _geometry(self, look: Look) -> tuple[Any, Any]:
        size = look.images.shape[-2:]
        window = self.window or (max(1, size[0] // 4), max(1, size[1] // 4))
        stride = self.stride or tuple(max(1, w // 2) for w in np.atleast_1d(window).tolist())
        stride = stride if isinstance(stride, int) or len(stride) == 2 else (stride[0], stride[0])
        return window, stride

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


def _size(pair: int | tuple[int, int]) -> str:
    height, width = (pair, pair) if isinstance(pair, int) else pair
    return str(height) if height == width else f"{height}×{width}"
