"""Occlusion heat maps of the probe images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.callbacks.cards import attribution_sheet
from lit_viz.errors import UsageError


class Occlusion(VisualizationCallback):
    """How the class probability falls as a patch slides over the image (Zeiler & Fergus 2014), as in the lecture.

    See `functional.occlusion`. Tag: `occlusion/probe`.

    Args:
        window: Side of the patch in pixels, or height and width; a quarter of the image by default.
        stride: Step of the patch in pixels; half of the window by default.
        baseline: What covers the window: "grey", "mean" (of the image), "blur", "noise", or a colour in [0, 1] as one
            number or one per channel.
        output: "probability" or "score", the raw score.
        scale: "fixed": colours run from 0 to 1 (for scores, over the range of all maps), so that steps can be
            compared. "each": over the range of each map, which its caption gives.
        batch_size: Covered copies in one forward pass; chosen from the image size by default, halved whenever memory
            runs out.
        num_images: How many probe images.
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
        scale: Literal["fixed", "each"] = "fixed",
        batch_size: int | None = None,
        num_images: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_images=num_images, **kwargs)
        self.window, self.stride, self.baseline = window, stride, baseline
        self.output, self.scale, self.batch_size = output, scale, batch_size
        for label, value in (("window", window), ("stride", stride)):
            if value is not None and min(np.atleast_1d(value)) < 1:
                raise UsageError(f"{label} must be at least 1 pixel, got {value}.")
        if isinstance(baseline, str) and baseline not in ("grey", "mean", "blur", "noise"):
            raise UsageError(f"baseline is 'grey', 'mean', 'blur', 'noise' or a colour, not {baseline!r}.")

    def check(self, look: Look) -> None:
        window, stride = self._geometry(look)
        functional.check_window(window, stride, tuple(look.images.shape[-2:]))
        self._cover(look)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        window, stride = self._geometry(look)
        heat = functional.occlusion(
            look.model,
            look.images,
            look.targets,
            window=window,
            stride=stride,
            baseline=self._cover(look),
            output=self.output,
            batch_size=self.batch_size,
            seed=self.seed,
            progress=True,
            score=self.score,
        )
        what = "probability" if self.output == "probability" else "score"
        limits = (0.0, 1.0) if self.output == "probability" else (float(heat.min()), float(heat.max()))
        ends = ("low", "high") if self.scale == "each" else tuple(f"{v:.2g}" for v in limits)
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
                limits="each" if self.scale == "each" else limits,
                method="nearest",
            )
        }

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
