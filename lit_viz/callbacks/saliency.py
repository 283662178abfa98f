"""Saliency maps of the probe images: the gradient, and what smooths or weighs it."""

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

_METHODS = ("gradient", "smooth_grad", "input_x_gradient", "integrated_gradients")
_SIGNED = ("input_x_gradient", "integrated_gradients")
_TITLES = {
    "gradient": "Saliency",
    "smooth_grad": "SmoothGrad",
    "input_x_gradient": "Input × gradient",
    "integrated_gradients": "Integrated gradients",
}


class Saliency(AttributionCallback):
    """Which pixels change the class score most (Simonyan, Vedaldi & Zisserman 2014), see `functional.saliency`.

    The caption gives the largest value of each map. Tag: `saliency/probe`; the other methods write under their own
    name, for instance `smooth_grad/probe`.

    Args:
        method: "gradient"; "smooth_grad", its mean over noisy copies (`functional.smooth_grad`); "input_x_gradient";
            or "integrated_gradients", what each pixel adds to the score of a flat image, with the share of the score
            that is left unexplained in the caption (`functional.integrated_gradients`). The last two have a sign.
        scale: "each": every map runs from zero to its own 99th percentile, since gradients grow by orders of magnitude
            in training. "shared": all maps of a picture have one scale, so that images can be compared.
        samples: Noisy copies of each image, for SmoothGrad.
        noise: Their standard deviation as a fraction of the range of the image, for SmoothGrad.
        steps: Points between the baseline and the image, for integrated gradients.
        baseline: Colour of the flat image that integrated gradients start from, 0 (black) to 1, one number or one for
            each channel.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "saliency"

    def __init__(
        self,
        *,
        method: Literal["gradient", "smooth_grad", "input_x_gradient", "integrated_gradients"] = "gradient",
        scale: Literal["each", "shared"] = "each",
        samples: int = 25,
        noise: float = 0.15,
        steps: int = 50,
        baseline: float | list[float] = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("method", method, _METHODS)
        check_choice("scale", scale, ("each", "shared"))
        check_at_least("samples", samples, 1)
        check_at_least("steps", steps, 1)
        if not noise >= 0:
            raise UsageError(f"noise is a fraction of the image's range, at least 0; got {noise}.")
        if not all(0 <= color <= 1 for color in np.ravel(baseline).tolist()):
            raise UsageError(f"baseline is a colour from 0 (black) to 1, got {baseline}.")
        if kwargs.get("name") is None and method != "gradient":
            self.name = method
        self.method, self.scale, self.samples, self.noise = method, scale, samples, noise
        self.steps, self.baseline = steps, baseline

    def check(self, look: Look) -> None:
        self._start(look)

    def attribute(self, look: Look) -> Tensor:
        values = self._values(look)
        return values.sum(dim=1) if self.method in _SIGNED else values.abs().amax(dim=1)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        values, notes, limits = self._values(look), [], None
        if self.method in _SIGNED:
            maps = values.sum(dim=1)
            bounds = [_bound(size) for size in (maps.abs() if self.scale == "each" else maps.abs()[None])]
            bounds *= len(maps) // len(bounds)
            limits = [(-bound, bound) for bound in bounds]
        else:
            maps, limits = values.abs().amax(dim=1), "shared" if self.scale == "shared" else None
        if self.method == "integrated_gradients":
            error = functional.completeness_error(
                look.model, look.images, values, look.targets, baseline=self._start(look), score=look.score
            )
            notes = [f"error {100 * e:.2g} %" for e in error.tolist()]
        return {
            "probe": attribution_sheet(
                look,
                maps,
                name=_TITLES[self.method].lower() if self.method == "gradient" else "map",
                title=_TITLES[self.method],
                subtitle=self._read(),
                colorbar=self._colorbar(),
                limits=limits,
                measure="" if self.method in _SIGNED else "max",
                notes=notes,
            )
        }

    def _values(self, look: Look) -> Tensor:
        """(N, C, H, W)."""
        asked: tuple[Any, ...] = (look.model, look.images, look.targets)
        if self.method == "gradient":
            return functional.input_gradient(*asked, score=look.score)
        if self.method == "input_x_gradient":
            return functional.input_x_gradient(*asked, score=look.score)
        progress = look.model.trainer.progress_bar_callback is not None
        if self.method == "smooth_grad":
            noise: dict[str, Any] = {"samples": self.samples, "noise": self.noise, "seed": self.seed}
            return functional.smooth_grad(*asked, **noise, score=look.score, progress=progress)
        return functional.integrated_gradients(
            *asked, baseline=self._start(look), steps=self.steps, score=look.score, progress=progress
        )

    def _start(self, look: Look) -> Tensor:
        """The flat image (C, 1, 1) where integrated gradients start."""
        color, channels = torch.tensor(self.baseline, dtype=torch.float32), look.images.shape[1]
        if color.numel() not in (1, channels):
            raise UsageError(f"baseline has {color.numel()} values, but the images have {channels} channels.")
        flat = color.to(look.images.device).reshape(-1, 1, 1).expand(channels, 1, 1)
        return look.pixels.from_color(flat).to(look.images.dtype)

    def _read(self) -> str:
        if self.method == "gradient":
            return "How much the score of the named class changes with each pixel: bright ones change it most."
        if self.method == "smooth_grad":
            return (
                f"How much the score of the named class changes with each pixel, mean of {self.samples} copies "
                f"with {self.noise:.0%} noise: bright ones change it most."
            )
        if self.method == "input_x_gradient":
            return "Each pixel times its gradient: red ones speak for the named class, blue ones against it."
        flat = -1.0 if isinstance(self.baseline, list) else self.baseline
        start = {0.0: "a black", 0.5: "a grey", 1.0: "a white"}.get(flat, "a flat")
        return (
            f"What each pixel adds to the score of {start} image: red ones speak for the named class, blue ones "
            f"against it. Error: the share of the score that they leave unexplained."
        )

    def _colorbar(self) -> draw.ColorBar:
        if self.method in _SIGNED:
            return draw.ColorBar("diverging", "against", "for", "class score")
        return draw.ColorBar("magma", "0", "top 1 %", "|∂ score / ∂ pixel|")


def _bound(size: Tensor) -> float:
    """What one pixel in a hundred exceeds; the largest one if that is nothing."""
    finite = size[torch.isfinite(size)].double().cpu().numpy()
    return float(np.percentile(finite, 99) or finite.max()) if finite.size else 1.0
