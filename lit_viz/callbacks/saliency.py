"""Saliency maps of the probe images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.attribution import AttributionCallback, attribution_sheet
from lit_viz.callbacks.base import Look
from lit_viz.errors import check_choice


class Saliency(AttributionCallback):
    """Which pixels change the class score most (Simonyan, Vedaldi & Zisserman 2014), see `functional.saliency`.

    The caption gives the largest gradient of each map. Tag: `saliency/probe`.

    Args:
        scale: "each": every map runs from zero to its own 99th percentile, since gradients grow by orders of magnitude
            in training. "shared": all maps of a picture have one scale, so that images can be compared.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "saliency"

    def __init__(self, *, scale: Literal["each", "shared"] = "each", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("scale", scale, ("each", "shared"))
        self.scale = scale

    def attribute(self, look: Look) -> Tensor:
        return functional.saliency(look.model, look.images, look.targets, score=look.score)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        maps = self.attribute(look)
        return {
            "probe": attribution_sheet(
                look,
                maps,
                name="saliency",
                title="Saliency",
                subtitle="How much the score of the named class changes with each pixel: bright ones change it most.",
                colorbar=draw.ColorBar("magma", "0", "top 1 %", "|∂ score / ∂ pixel|"),
                limits="shared" if self.scale == "shared" else None,
                measure="max",
            )
        }
