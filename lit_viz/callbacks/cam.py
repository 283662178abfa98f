"""Class activation maps of the probe images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.attribution import AttributionCallback, attribution_sheet, gradient_sheet
from lit_viz.callbacks.base import Look
from lit_viz.errors import UsageError, check_choice
from lit_viz.layers import find_layer

_NAMES = {"grad_cam": "Grad-CAM", "hires_cam": "HiResCAM", "layer_cam": "LayerCAM"}
_READ = {
    "grad_cam": "channels weighted by how much the class score depends on each",
    "hires_cam": "activations times gradients, place by place: what is bright was used",
    "layer_cam": "activations weighted by their own positive gradients",
}


class GradCAM(AttributionCallback):
    """Where in a layer the evidence for a class lies (Selvaraju et al. 2017), and two of its successors.

    See `functional.grad_cam`, `functional.hires_cam` (only places that the network used) and `functional.layer_cam`
    (detailed in shallow layers). Tag: `grad_cam/<layer>` (or `hires_cam`, `layer_cam`), and `…/guided` with
    `guided`.

    Args:
        method: "grad_cam", "hires_cam" or "layer_cam".
        layer: Dotted name; by default the last layer that knows where things are, see `functional.last_spatial_layer`.
        guided: Also draw Guided Grad-CAM, guided backprop where the map is bright; for networks with ReLUs.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "grad_cam"

    def __init__(
        self,
        *,
        method: Literal["grad_cam", "hires_cam", "layer_cam"] = "grad_cam",
        layer: str | None = None,
        guided: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("method", method, tuple(_NAMES))
        if layer is not None and not isinstance(layer, str):
            raise UsageError(f"layer is the dotted name of a layer, not {layer!r}.")
        if kwargs.get("name") is None:
            self.name = method
        self.method, self.layer, self.guided = method, layer, guided
        self._layer = layer or ""

    def layer_names(self) -> Sequence[str]:
        return [self.layer] if self.layer else ()

    def check(self, look: Look) -> None:
        if self.layer is None:
            self._layer = functional.last_spatial_layer(look.model, look.images, look.targets, score=look.score)
        else:
            self._layer = find_layer(look.model, self.layer)[0]
        functional.grad_cam(look.model, look.images[:1], look.targets[:1], layer=self._layer, score=look.score)
        if self.guided:
            self._guided(look, slice(1))

    def attribute(self, look: Look) -> Tensor:
        return functional.upsampled(self._maps(look), tuple(look.images.shape[-2:]))

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        maps = self._maps(look)
        name, rows, columns = _NAMES[self.method], *maps.shape[1:]
        peaks = maps.flatten(1).amax(dim=1).tolist()
        pictures = {
            self._layer: attribution_sheet(
                look,
                maps,
                name=name,
                title=f"{name} · {self._layer}",
                subtitle=f"Where the layer holds evidence for the named class, {rows} × {columns} places: "
                f"{_READ[self.method]}.",
                colorbar=draw.ColorBar("inferno", "0", "most", "evidence"),
                limits=[(0.0, peak) for peak in peaks],
                notes=["no evidence for this class" if peak == 0 else "" for peak in peaks],
            )
        }
        if self.guided:
            pictures[f"{self._layer}/guided"] = gradient_sheet(
                look,
                [self._guided(look, slice(None))],
                columns=("image", "guided"),
                title=f"Guided Grad-CAM · {self._layer}",
                subtitle="What excites the class in detail (guided backprop), where the layer holds evidence for it "
                "(Grad-CAM). Mid-grey: no signal.",
            )
        return pictures

    def _maps(self, look: Look) -> Tensor:
        run = getattr(functional, self.method)
        return run(look.model, look.images, look.targets, layer=self._layer, score=look.score)

    def _guided(self, look: Look, which: slice) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return functional.guided_grad_cam(
                look.model, look.images[which], look.targets[which], layer=self._layer, score=look.score
            )
