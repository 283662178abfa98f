"""What layers of a network under training have kept of the probe images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_viz import draw
from lit_viz.callbacks.base import Look, VisualizationCallback, layer_list
from lit_viz.draw.inversion import inversion_card, inversion_sheet
from lit_viz.errors import check_at_least
from lit_viz.functional.activations import telling_layers
from lit_viz.functional.inversion import (
    NORM_WEIGHT,
    TV_WEIGHT,
    inversion_optimizer,
    invert_features,
    layer_features,
    prior,
)
from lit_viz.pixels import PixelSpace

_GREY = 128  # where there is nothing to be made visible
_DEAD = "dead, all its features are zero"


class Inversion(VisualizationCallback):
    """Probe images as layers see them, shallow to deep (Mahendran & Vedaldi 2015), see `functional.invert_features`.

    What is missing in the reconstruction from a layer the network has thrown away by then. Curves give the PSNR of each
    layer's reconstruction and the error of its features, `inversion/<layer>/psnr` and `…/error`: a low PSNR tells
    something only where the error is low, too. Tag: `inversion/probe`.

    Args:
        layers: Dotted names; by default four spread over the depth of the network.
        steps: Of L-BFGS, of ten iterations each; or of Adam.
        optimizer: "lbfgs" or "adam".
        tv: Weight of the total variation, see `functional.inversion.prior`.
        norm: Weight of the norm.
        call: Which call of the layers, for those that a forward pass calls several times; −1 for the last.
        num_images: How many probe images.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "inversion"
    needs = "images"

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        steps: int = 6,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        tv: float = TV_WEIGHT,
        norm: float = NORM_WEIGHT,
        call: int | None = None,
        num_images: int = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_images=num_images, **kwargs)
        check_at_least("steps", steps, 1)
        inversion_optimizer(optimizer, steps=steps)  # tells what is wrong with its arguments, as does the next
        prior(PixelSpace(), tv=tv, norm=norm)
        self.layers, self.steps, self.optimizer, self.call = layer_list(layers), steps, optimizer, call
        self.tv, self.norm = tv, norm
        self._names: list[str] = []

    def layer_names(self) -> Sequence[str]:
        return self.layers or ()

    def check(self, look: Look) -> None:
        # Chosen once: another layer at another step would be no comparison.
        self._names = list(self.layers or telling_layers(look.model, look.images))
        one = look.images[:1]
        alive = [
            name
            for name, found in layer_features(look.model, one, self._names, call=self.call).items()
            if any(_alive(found))
        ]
        if alive:
            self._invert(look, one, alive, optimizer="adam", steps=1)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        features = layer_features(look.model, look.images, self._names, call=self.call)
        count = len(look.images)
        originals = draw.to_uint8(look.pixels.to_color(look.images))
        tiles = {name: [np.full_like(image, _GREY) for image in originals] for name in features}
        errors, likeness = ({name: [math.nan] * count for name in features} for _ in range(2))
        notes = {name: [_DEAD] * count for name in features}
        for name, found in features.items():
            alive = [i for i, lives in enumerate(_alive(found)) if lives]
            if not alive:
                continue
            made = self._invert(look, look.images[alive], [name])
            parts = (made.images, made.errors, made.psnr, made.notes)
            for i, image, error, like, note in zip(alive, *(part[name][0] for part in parts), strict=True):
                tiles[name][i] = draw.to_uint8(look.pixels.to_color(image))
                errors[name][i], likeness[name][i], notes[name][i] = float(error), float(like), note
        cards = [
            inversion_card(
                originals[i],
                [tiles[name][i] for name in features],
                list(features),
                psnr=[likeness[name][i] for name in features],
                errors=[errors[name][i] for name in features],
                notes=[notes[name][i] for name in features],
                caption=look.names[i] if look.names else "",
            )
            for i in range(count)
        ]
        curves = {
            f"{name}/{what}": float(np.mean([v for v in values[name] if not math.isnan(v)]))
            for what, values in (("error", errors), ("psnr", likeness))
            for name in features
            if not all(map(math.isnan, values[name]))
        }
        return {"probe": inversion_sheet(cards, list(features), title=f"Inversion · {look.when}"), **curves}

    def _invert(self, look: Look, images: Tensor, layers: Sequence[str], **kwargs: Any) -> Any:
        given = {"optimizer": self.optimizer, "steps": self.steps, "tv": self.tv, "norm": self.norm, **kwargs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the picture says it
            return invert_features(
                look.model,
                images,
                layers,
                call=self.call,
                pixels=look.pixels,
                seed=self.seed,
                progress=look.model.trainer.progress_bar_callback is not None,
                interruptible=False,
                **given,
            )


def _alive(features: Tensor) -> list[bool]:
    """Whether a layer says anything of each image."""
    return torch.any(features.flatten(1) != 0, dim=1).tolist()
