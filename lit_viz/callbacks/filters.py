"""The weights of convolutions as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback, layer_list
from lit_viz.errors import check_at_least, check_choice
from lit_viz.layers import find_layer, first_convolution

_TONES = {
    "each": "light weights excite, dark ones less so or inhibit, each filter on its own scale",
    "shared": "light weights excite, dark ones inhibit, mid-grey is zero",
}
_FIRST = " Oriented edges and blobs are what trained networks have here; noise means not yet trained."


class Filters(VisualizationCallback):
    """Weights of the first convolution, and of any other by name (Krizhevsky, Sutskever & Hinton 2012, figure 3).

    Tags: `filters/<layer>`, and `filters/<layer>/change` with `change`.

    Args:
        layers: Dotted names of convolutions; None for the first one.
        scale: "each": every filter uses the whole range from dark to bright. "shared": all filters of a layer on one
            scale around zero, so that weak ones look weak.
        change: Also draw what changed since the last look.
        max_filters: Most filters shown of a layer; as many as fit by default.
        max_inputs: Most input channels shown of a filter, likewise.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "filters"
    needs = "weights"

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        scale: Literal["each", "shared"] = "each",
        change: bool = False,
        max_filters: int | None = None,
        max_inputs: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("scale", scale, ("each", "shared"))
        for label, most in (("max_filters", max_filters), ("max_inputs", max_inputs)):
            if most is not None:
                check_at_least(label, most, 1, " or null for as many as fit")
        self.layers = layer_list(layers)
        self.scale, self.change, self.max_filters, self.max_inputs = scale, change, max_filters, max_inputs
        self._previous: dict[str, Tensor] = {}

    def layer_names(self) -> Sequence[str]:
        return self.layers or ()

    def check(self, look: Look) -> None:
        for layer in self.layers or [None]:
            functional.filters(look.model, layer)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        pictures = {}
        for name in self.layers or [first_convolution(look.model)[0]]:
            layer, _ = find_layer(look.model, name)
            weight = functional.filters(look.model, layer)
            size = " × ".join(str(n) for n in weight.shape)
            first = layer == first_convolution(look.model)[0]
            common: dict[str, Any] = {"max_filters": self.max_filters, "max_inputs": self.max_inputs}
            pictures[layer] = draw.filter_grid(
                weight,
                scale=self.scale,
                title=f"Filters of {layer} · {look.when}",
                subtitle=f"{size} weights. {_how_to_read(weight, self.scale, first)}",
                **common,
            )
            if self.change and layer in self._previous:
                pictures[f"{layer}/change"] = draw.filter_grid(
                    weight,
                    previous=self._previous[layer],
                    title=f"Change of {layer} since the last picture · {look.when}",
                    subtitle=f"{size} weights, each minus what it was, on one scale around zero. "
                    + ("Mid-grey means no change." if _colored(weight) else "Red ones grew, blue ones fell."),
                    **common,
                )
            self._previous[layer] = weight
        return pictures


def _colored(weight: Tensor) -> bool:
    return weight.shape[1] == 3 and weight.shape[2:] != (1, 1)


def _how_to_read(weight: Tensor, scale: str, first: bool) -> str:
    """What `draw.filter_grid` makes of weights of this shape."""
    if weight.shape[2:] == (1, 1):
        return "One square for each pair of an output filter and an input channel: red excites, blue inhibits."
    if _colored(weight) and first:
        return (
            "Each tile is one filter, seen as a colour image: it responds most to a patch that looks like it. "
            "Oriented edges and opposing colours are what trained networks have here; noise means not yet trained."
        )
    if _colored(weight):
        return "Each tile is one filter, with its three input channels as red, green and blue."
    what = (
        "Each tile is one filter, seen as a grey image"
        if weight.shape[1] == 1
        else "Each row is one filter, one tile for each of its input channels"
    )
    return f"{what}: {_TONES[scale]}.{_FIRST if first else ''}"
