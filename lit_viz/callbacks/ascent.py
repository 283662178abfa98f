"""What excites classes and units most, made anew at each look: features seen forming."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.ascent import check_recipe
from lit_viz.functional.classes import class_index
from lit_viz.layers import find_layer
from lit_viz.networks import load_decoder
from lit_viz.pixels import PixelSpace
from lit_viz.probing import evenly_spaced

_STEPS = 64


class ActivationMaximization(VisualizationCallback):
    """Images that excite classes, or units of a layer, most (Simonyan et al. 2014; Yosinski et al. 2015).

    See `functional.activation_maximization`. The same units start from the same noise at each look, so that the slider
    of TensorBoard shows their features forming. The caption has the probability of the class for the image, or the
    response of the unit, and below it what went wrong, if anything.

    Tags: `ascent/classes` and the number `ascent/probability`, the mean probability of the target; or
    `ascent/<layer>` and `ascent/<layer>/response`, the mean response.

    Args:
        classes: Indices or names, or how many, from the first on.
        layer: Dotted name of a layer, to ask about its channels instead; then no class scores are needed.
        channels: Of that layer: which, or how many, spread evenly over all.
        unit: Whether a channel means all of its map ("channel"), or the unit in its middle ("center").
        recipe: Name of a recipe, see `functional.RECIPES`; by default one that suits the network.
        steps: By default 64 for that one, and what a named recipe has.
        decoder: Checkpoint of a `FeatureDecoder`: its code is optimised instead of pixels.
        **kwargs: See `VisualizationCallback`; `num_images` and `target` have no meaning here.
    """

    tag = "ascent"

    def __init__(
        self,
        *,
        classes: int | Sequence[int | str] = 8,
        layer: str | None = None,
        channels: int | Sequence[int] = 8,
        unit: Literal["channel", "center"] = "channel",
        recipe: str | None = None,
        steps: int | None = None,
        decoder: str | None = None,
        every_n_epochs: int | None = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(every_n_epochs=every_n_epochs, **{"num_images": 1, **kwargs})
        for name, value in (("classes", classes), ("channels", channels)):
            if isinstance(value, str) or (isinstance(value, Sequence) and not value):
                raise UsageError(f"{name} are a list, or how many; not {value!r}.")
            if not isinstance(value, Sequence):
                check_at_least(name, value, 1, f"; to name one give a list, [{value}]")
        check_choice("unit", unit, ("channel", "center"))
        if steps is not None:
            check_at_least("steps", steps, 1, " or null for those of the recipe")
        if layer is not None and not isinstance(layer, str):
            raise UsageError(f"layer is the dotted name of a layer, not {layer!r}.")
        check_recipe(recipe, decoder is not None)
        self.classes, self.layer, self.channels, self.unit = classes, layer, channels, unit
        self.recipe, self.steps, self.decoder = recipe, steps, decoder
        if layer is not None:
            self.needs = "images"  # type: ignore[misc]

    def layer_names(self) -> Sequence[str]:
        return [self.layer] if self.layer else ()

    def check(self, look: Look) -> None:
        self._made(look, self._wanted(look)[:1], steps=1)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        wanted = self._wanted(look)
        made = self._made(look, wanted, self.steps)
        layer = None if self.layer is None else find_layer(look.model, self.layer)[0]
        picture = ascent_sheet(
            made,
            wanted,
            class_name=look.class_name if layer is None else None,
            pixels=look.pixels,
            title=f"{ascent_title(layer)} · {look.when}",
            unit=self.unit,
        )
        if layer is None:
            return {"classes": picture, "probability": float(target_probabilities(made, wanted).mean())}
        return {layer: picture, f"{layer}/response": float(made.objective.mean())}

    def _wanted(self, look: Look) -> list[int]:
        """Classes or channels."""
        if self.layer is None:
            if isinstance(self.classes, int):
                return list(range(min(self.classes, look.scores.shape[1])))
            return [class_index(one, look.class_names) for one in self.classes]
        if not isinstance(self.channels, int):
            return list(self.channels)
        with torch.no_grad():
            count = functional.LayerUnits(look.model, self.layer, place="mean")(look.images[:1]).shape[1]
        return evenly_spaced(count, min(self.channels, count)).tolist()

    def _made(self, look: Look, wanted: list[int], steps: int | None) -> functional.Synthesis:
        steps = _STEPS if steps is None and self.recipe is None and self.decoder is None else steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the picture says it
            return functional.activation_maximization(
                look.model,
                wanted if self.layer is None else unit_objective(self.layer, wanted, self.unit),
                shape=tuple(look.images.shape[1:]),
                recipe=self.recipe,
                steps=steps,
                seed=self.seed,
                pixels=look.pixels,
                decoder=None if self.decoder is None else load_decoder(self.decoder, look.pixels),
                score=look.score,
                progress=look.model.trainer.progress_bar_callback is not None,
                interruptible=False,
            )


def unit_objective(layer: str, wanted: Sequence[int], unit: str) -> functional.Objective:
    """For channels of a layer, or their units in the middle."""
    return (functional.Channel if unit == "channel" else functional.Unit)(layer, wanted)


def ascent_title(layer: str | None) -> str:
    """Title of a sheet for classes, or for a layer."""
    return "What excites each class" if layer is None else f"What excites units of {layer}"


def target_probabilities(made: functional.Synthesis, wanted: Sequence[int]) -> torch.Tensor:
    """Of the classes that were wanted, (N,) on the CPU."""
    assert made.scores is not None
    return functional.probabilities(made.scores).cpu()[torch.arange(len(wanted)), list(wanted)]


def ascent_sheet(
    made: functional.Synthesis,
    wanted: Sequence[int],
    *,
    class_name: Callable[[int], str] | None,
    pixels: PixelSpace,
    title: str,
    unit: str = "channel",
) -> np.ndarray:
    """One card for each class or unit.

    Args:
        made: What came of `functional.activation_maximization`.
        wanted: The classes or channels.
        class_name: From the index of a class to its name; None for channels.
        pixels: How network input relates to colours.
        title: Of the picture.
        unit: What of the channels was excited, "channel" or "center".
    """
    cards = []
    pictures = draw.to_uint8(pixels.to_color(made.images))
    p = functional.probabilities(made.scores).cpu() if class_name and made.scores is not None else None
    for i, index in enumerate(wanted):
        if class_name is None or p is None:
            caption, other = f"ch {index}  {float(made.objective[i]):.3g}", ""
        else:
            caption, best = f"{class_name(index)}  {float(p[i, index]):.2f}", int(p[i].argmax())
            other = f"taken for {class_name(best)} {float(p[i, best]):.2f}" if best != index else ""
        # What is wrong; the remedy, behind it, is too long for a card.
        note = made.notes[i].partition(";")[0]
        cards.append(draw.Card([pictures[i]], caption, " · ".join(filter(None, (note, other)))))
    what = "class, with its probability" if class_name else "channel, with its mean response"
    if class_name is None and unit == "center":
        what = "unit in the middle of a channel, with its response"
    return draw.sheet(
        cards, title=title, subtitle=f"Images made by gradient ascent, network frozen, each to excite one {what}."
    )
