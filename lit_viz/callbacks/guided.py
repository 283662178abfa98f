"""Guided backprop and deconvnet pictures of the probe images, of a class or of units inside the network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_viz import functional
from lit_viz.callbacks.attribution import AttributionCallback, gradient_sheet
from lit_viz.callbacks.base import Look
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.layers import find_layer

_NAMES = {"guided": "Guided backprop", "deconv": "Deconvnet"}


class GuidedBackprop(AttributionCallback):
    """What excites a class, or units of a layer, as a picture (Springenberg et al. 2015; Zeiler & Fergus 2014).

    See `functional.guided_backprop` and `functional.deconvnet`. A network without ReLU, or for deconvnet without max
    pooling, is told before training; other activation functions beside ReLUs are named in the picture.

    Tags: `guided_backprop/probe`, or `guided_backprop/<layer>` for units; `deconvnet/…` for deconvnet.

    Args:
        method: "guided" or "deconv".
        layer: Dotted name of a layer, to ask about its channels instead of a class.
        channels: Of that layer: which, or how many of those that respond most to each image. The picture of a channel
            is that of its strongest unit.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "guided_backprop"

    def __init__(
        self,
        *,
        method: Literal["guided", "deconv"] = "guided",
        layer: str | None = None,
        channels: int | Sequence[int] = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("method", method, ("guided", "deconv"))
        if layer is not None and not isinstance(layer, str):
            raise UsageError(f"layer is the dotted name of a layer, not {layer!r}.")
        if isinstance(channels, Sequence):
            if not channels or isinstance(channels, str):
                raise UsageError(f"channels are a number, or a list of channels, not {channels!r}.")
        else:
            check_at_least("channels", channels, 1, "; to name a channel give a list")
        if kwargs.get("name") is None and method == "deconv":
            self.name = "deconvnet"
        self.method, self.layer, self.channels = method, layer, channels
        self._note = ""

    def layer_names(self) -> Sequence[str]:
        return [self.layer] if self.layer else ()

    def check(self, look: Look) -> None:
        self._gradient(look, look.images[:1], look.targets[:1] if self.layer is None else self._wanted(look)[:1, 0])
        found = self._activations(look)
        self._note = found.note
        if self.method == "deconv" and not found.switches:
            raise UsageError(
                "deconvnet tells images apart by the switches of max pooling, and this network has none: its pictures "
                "would be the same for every image; take method='guided'."
            )

    def attribute(self, look: Look) -> Tensor:
        return self._gradient(look, look.images, self._wanted(look)[:, 0]).abs().amax(dim=1)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        wanted = self._wanted(look)
        pictures = [self._gradient(look, look.images, units) for units in wanted.T]
        name = _NAMES[self.method]
        colored = "Mid-grey: no signal." if look.images.shape[1] in (1, 3) else "Mean over channels; mid-grey: none."
        rest = f" {self._note[0].upper()}{self._note[1:]}." if self._note else ""
        if self.layer is None:
            what = "class"
            columns = ("image", self.method if self.method == "guided" else "deconvnet")
            captions = None
        else:
            what = "unit"
            columns = ("image", *("strongest", "2nd", "3rd", *(f"{i}th" for i in range(4, 1 + len(pictures)))))
            if isinstance(self.channels, Sequence):
                columns = ("image", *(f"ch {c}" for c in self.channels))
            columns = columns[: 1 + len(pictures)]
            captions = [" · ".join(f"ch {c}" for c in row) for row in wanted.tolist()]
        where = "" if self.layer is None else f" · {find_layer(look.model, self.layer)[0]}"
        return {
            "probe" if self.layer is None else find_layer(look.model, self.layer)[0]: gradient_sheet(
                look,
                pictures,
                columns=columns,
                title=f"{name}{where}",
                subtitle=f"What in each image excites the {what}: the gradient, kept at each ReLU only where it is "
                f"positive. {colored}{rest}",
                captions=captions,
            )
        }

    def _wanted(self, look: Look) -> Tensor:
        """The classes or channels to ask about, (N, pictures)."""
        if self.layer is None:
            return look.targets[:, None]
        with torch.no_grad():
            responses = functional.LayerUnits(look.model, self.layer)(look.images)
        count = responses.shape[1]
        if isinstance(self.channels, int):
            return responses.topk(min(self.channels, count), dim=1).indices
        if min(self.channels) < 0 or max(self.channels) >= count:
            raise UsageError(f"layer '{self.layer}' has channels 0 to {count - 1}; {self.channels} was asked for.")
        return torch.tensor(list(self.channels), device=look.images.device).expand(len(look.images), -1)

    def _gradient(self, look: Look, images: Tensor, target: Tensor) -> Tensor:
        run = functional.guided_backprop if self.method == "guided" else functional.deconvnet
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the picture says it
            if self.layer is None:
                return run(look.model, images, target, score=look.score)
            return run(functional.LayerUnits(look.model, self.layer), images, target)

    def _activations(self, look: Look) -> functional.Activations:
        image = look.images[:1].clone().requires_grad_(True)
        if self.layer is None:
            scores = functional.class_scores(look.model, image, score=look.score)
        else:
            # Where the strongest unit is depends on the image, but not what its picture shows.
            scores = functional.LayerUnits(look.model, self.layer, place="mean")(image)
        return functional.find_activations(scores)
