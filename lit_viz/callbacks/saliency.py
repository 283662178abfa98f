"""Saliency maps of the probe images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.callbacks.cards import attribution_sheet


class Saliency(VisualizationCallback):
    """Which pixels change the class score most (Simonyan, Vedaldi & Zisserman 2014), see `functional.saliency`.

    Each map runs from zero to its own 99th percentile; the caption gives its largest gradient. Tag: `saliency/probe`.
    """

    tag = "saliency"

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        maps = functional.saliency(look.model, look.images, look.targets, score=self.score)
        return {
            "probe": attribution_sheet(
                look,
                maps,
                name="saliency",
                title="Saliency",
                subtitle="How much the score of the named class changes with each pixel: bright pixels matter most. "
                "In a trained network they lie on the object.",
                colorbar=draw.ColorBar("magma", "0", "top 1 %", "|∂ score / ∂ pixel|"),
                measure="max",
            )
        }
