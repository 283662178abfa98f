"""Activation maps of chosen layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lit_viz import draw
from lit_viz.callbacks.base import Look, VisualizationCallback, layer_list
from lit_viz.errors import UsageError, check_at_least, check_choice
from lit_viz.functional.activations import LayerMaps, layer_maps, telling_layers
from lit_viz.probing import evenly_spaced

TOKEN_FEATURES = 5  # of the class token, in a line


class Activations(VisualizationCallback):
    """What the channels of a layer respond to, image by image (Yosinski et al. 2015; the lecture's 13 × 13 maps).

    Beside each probe image stand activation maps of the layer with the numbers of their channels; see
    `functional.activations`. Patch tokens of vision transformers are folded into maps, below which a line names the
    strongest features of the class token. Tag: `activations/<layer>`.

    Args:
        layers: Dotted names; by default four spread over the depth of the network, behind ReLUs where there are any.
        channels: How many of each layer; or which; or "all", of which as many are shown as stay legible.
        order: "strongest": each image has its own channels, those with the highest peak, the highest first. "index":
            the same for all images, by number and evenly spaced, so that a place on the picture is always the same
            channel.
        scale: "each": every map runs from zero to its own peak. "layer": all maps of a picture have one scale.
        call: Which call of the layers, for those that a forward pass calls several times, as ReLU modules often are; −1
            for the last.
        num_images: How many probe images.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "activations"
    needs = "images"

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        *,
        channels: int | Sequence[int] | Literal["all"] = 24,
        order: Literal["strongest", "index"] = "strongest",
        scale: Literal["each", "layer"] = "each",
        call: int | None = None,
        num_images: int = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_images=num_images, **kwargs)
        if isinstance(channels, str):
            check_choice("channels", channels, ("all", "a number", "a list of channels"))
        elif not isinstance(channels, Sequence):
            check_at_least("channels", channels, 1, "; to name a channel give a list")
        check_choice("order", order, ("strongest", "index"))
        check_choice("scale", scale, ("each", "layer"))
        self.layers, self.channels, self.order, self.scale = layer_list(layers), channels, order, scale
        self.call = call
        self._names: list[str] = []

    def layer_names(self) -> Sequence[str]:
        return self.layers or ()

    def check(self, look: Look) -> None:
        # Chosen once: another layer at another step would be no comparison.
        self._names = self.layers or telling_layers(look.model, look.images)
        for name, found in layer_maps(look.model, look.images[:1], self._names, call=self.call).items():
            self._chosen(name, found.maps)

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        found = layer_maps(look.model, look.images, self._names, call=self.call)
        return {name: self._picture(look, name, layer) for name, layer in found.items()}

    def _picture(self, look: Look, name: str, layer: LayerMaps) -> np.ndarray:
        maps = layer.maps.float().cpu()
        images = draw.to_uint8(look.pixels.to_color(look.images))
        blocks = [
            draw.MapBlock(image, maps[i, chosen].numpy(), [str(c) for c in chosen.tolist()], *_caption(look, layer, i))
            for i, (image, chosen) in enumerate(zip(images, self._chosen(name, maps), strict=True))
        ]
        return draw.activation_sheet(
            blocks,
            signed=bool((maps < 0).any()),
            scale=self.scale,
            title=f"Activations · {name} · {look.when}",
            subtitle=self._read(maps),
        )

    def _chosen(self, name: str, maps: Tensor) -> Tensor:
        """The channels to show of each image, int64 (N, n)."""
        count, channels = maps.shape[:2]
        if isinstance(self.channels, Sequence) and not isinstance(self.channels, str):
            wanted = torch.tensor(list(self.channels), dtype=torch.int64)
            if len(wanted) == 0 or int(wanted.min()) < 0 or int(wanted.max()) >= channels:
                raise UsageError(
                    f"layer '{name}' has channels 0 to {channels - 1}; {list(self.channels)} was asked for."
                )
            candidates, most = wanted, len(wanted)
        else:
            most = channels if self.channels == "all" else min(int(self.channels), channels)
            candidates = torch.arange(channels) if self.order == "strongest" else evenly_spaced(channels, most)
        if self.order == "index":
            return candidates.sort().values.expand(count, -1)
        size = torch.nan_to_num(maps[:, candidates].float().abs().flatten(2).cpu(), nan=-1.0, posinf=torch.inf)
        # Behind a ReLU6 many peaks are 6: of these the larger areas first.
        order = size.mean(dim=2).argsort(dim=1, descending=True, stable=True)
        peaks = size.amax(dim=2).gather(1, order)
        order = order.gather(1, peaks.argsort(dim=1, descending=True, stable=True))
        return candidates[order[:, :most]]

    def _read(self, maps: Tensor) -> str:
        channels = maps.shape[1]
        shown = len(self._chosen("", maps[:1])[0])
        what = f"{shown} of {channels} channels" if shown < channels else f"{channels} channels"
        ordered = "each image's strongest first" if self.order == "strongest" else "the same for all images"
        extent = "each up to its own peak" if self.scale == "each" else "on one scale"
        if bool((maps < 0).any()):
            how = f"Red where a channel responds, blue where it is negative, {extent}"
        else:
            how = f"Bright where a channel responds, {extent}"
        broken = int((~torch.isfinite(maps)).transpose(0, 1).flatten(1).any(dim=1).sum())
        dead = int((maps == 0).transpose(0, 1).flatten(1).all(dim=1).sum())
        notes = [f"{how}: {what}, {ordered}; the number is the channel."]
        if dead:
            notes.append(f"{dead} of {channels} {'is' if dead == 1 else 'are'} zero on all of these images.")
        if broken:
            notes.append(f"{broken} of {channels} {'holds' if broken == 1 else 'hold'} NaN or infinity (hatched).")
        return " ".join(notes)


def _caption(look: Look, layer: LayerMaps, index: int) -> tuple[str, str]:
    """The label of an image, or its name, and what the class token holds."""
    label = -1 if look.labels is None else int(look.labels[index])
    named = look.class_names is not None and 0 <= label < len(look.class_names)
    caption = look.class_name(label) if named else look.names[index] if look.names else ""
    if not layer.extra.shape[1]:
        return caption, ""
    token = layer.extra[index, 0].float()
    strongest = torch.nan_to_num(token.abs(), nan=-1.0).topk(min(TOKEN_FEATURES, len(token))).indices
    return caption, "strongest features of the class token: " + ", ".join(str(c) for c in strongest.tolist())
