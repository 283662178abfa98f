"""DeepDreams of the probe images: what a layer sees in them, made larger than life."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback, layer_list
from lit_viz.errors import UsageError, check_at_least
from lit_viz.layers import find_layer


class DeepDream(VisualizationCallback):
    """Probe images in which whatever a layer responds to is amplified (Mordvintsev, Olah & Tyka 2015).

    See `functional.deep_dream`. The same images are dreamt with the same shifts at every look, so that the slider shows
    how what the layer has learned grows out of them. Tags: `dream/<layer>`, and as a number `dream/<layer>/objective`,
    the layer's mean energy over the dreams, half its mean square.

    Args:
        layers: Dotted names; by default one at two thirds of the depth, see `functional.dream_layer`.
        channels: Only these of the layers; by default all.
        octaves: How many sizes; those too small for the network are left out.
        octave_scale: From each to the next, above 1.
        steps: At each size.
        lr: How far a step moves a pixel on average, where 255 is from black to full intensity.
        jitter: Random shifts of up to so many pixels.
        num_images: How many probe images.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "dream"
    needs = "images"

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        channels: Sequence[int] | None = None,
        octaves: int = 3,
        octave_scale: float = 1.4,
        steps: int = 10,
        lr: float = 3.0,
        jitter: int = 32,
        num_images: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_images=num_images, **kwargs)
        check_at_least("steps", steps, 1)
        functional.check_dream(octaves=octaves, octave_scale=octave_scale, steps=steps, lr=lr, jitter=jitter)
        if channels is not None and (isinstance(channels, str) or not isinstance(channels, Sequence) or not channels):
            raise UsageError(f"channels are a list of channels, not {channels!r}.")
        self.layers, self.channels = layer_list(layers), channels
        self.octaves, self.octave_scale, self.steps, self.lr, self.jitter = octaves, octave_scale, steps, lr, jitter
        self._names: list[str] = []

    def layer_names(self) -> Sequence[str]:
        return self.layers or ()

    def check(self, look: Look) -> None:
        # Chosen once: another layer at another step would be no comparison.
        layers = self.layers or [functional.dream_layer(look.model, look.images)]
        self._names = [find_layer(look.model, layer)[0] for layer in layers]
        for name in self._names:
            self._dream(look, name, steps=1, images=1)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray | float]:
        originals = draw.to_uint8(look.pixels.to_color(look.images))
        drawn: dict[str, np.ndarray | float] = {}
        for name in self._names:
            dream = self._dream(look, name)
            pictures = draw.to_uint8(look.pixels.to_color(dream.images))
            maps = functional.activations(look.model, look.images, name)
            maps = maps if self.channels is None else maps[:, list(self.channels)]
            first, last = maps.float().square().flatten(1).mean(dim=1) / 2, dream.octaves[-1].objective
            cards = []
            for i, pair in enumerate(zip(originals, pictures, strict=True)):
                label = -1 if look.labels is None else int(look.labels[i])
                named = look.class_names is not None and 0 <= label < len(look.class_names)
                caption = look.class_name(label) if named else look.names[i] if look.names else ""
                risen = f"energy {float(first[i]):.3g} → {float(last[i]):.3g}"
                cards.append(draw.Card(pair, caption, " · ".join(filter(None, (dream.notes[i], risen)))))
            sizes = ", ".join(f"{width}×{height}" for height, width in (octave.size for octave in dream.octaves))
            drawn[name] = draw.sheet(
                cards,
                columns=("image", "dream"),
                title=f"DeepDream · {name} · {look.when}",
                subtitle=f"What the layer sees in each image, amplified in {self.steps} steps at each of these sizes: "
                f"{sizes} px.",
            )
            drawn[f"{name}/objective"] = float(last.mean())
        return drawn

    def _dream(self, look: Look, layer: str, *, steps: int | None = None, images: int | None = None) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the picture says it
            return functional.deep_dream(
                look.model,
                look.images[:images],
                layer,
                channels=self.channels,
                octaves=self.octaves,
                octave_scale=self.octave_scale,
                steps=self.steps if steps is None else steps,
                lr=self.lr,
                jitter=self.jitter,
                seed=self.seed,
                pixels=look.pixels,
                progress=look.model.trainer.progress_bar_callback is not None,
                interruptible=False,
            )
