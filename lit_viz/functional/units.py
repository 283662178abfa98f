"""A network up to one of its layers, with the responses of that layer's channels for scores."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError, check_choice
from lit_viz.layers import as_maps, capture, find_layer

Place = Literal["max", "mean"] | tuple[int, int] | Tensor


class LayerUnits(nn.Module):
    """Scores (N, channels) of the units of a layer.

    Every function that asks about a class asks about a channel or a single unit when it is given this instead of the
    network: `guided_backprop(LayerUnits(model, "layer3"), images, target=17)` is what excites channel 17 of layer3.

    Args:
        model: The network; not changed.
        layer: Dotted name, see `lit_viz.layers.find_layer`.
        place: Which unit of a channel: "max" (the one that responds most), "mean" (of all), a row and column, or
            these for each image, int64 (N, 2). Tokens have one row each, class token and registers among them, as in
            `receptive_field`.
        call: Which call of the layer, where a forward pass calls it several times; −1 for the last.

    Raises:
        UsageError: If there is no such layer, or, when called, if it is called several times and `call` doesn't say
            which, or has no such place.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> LayerUnits(net, "0")(torch.zeros(5, 1, 4, 4)).shape
    torch.Size([5, 4])
    """

    def __init__(self, model: nn.Module, layer: str, *, place: Place = "max", call: int | None = None) -> None:
        super().__init__()
        if isinstance(place, str):
            check_choice("place", place, ("max", "mean", "a row and column"))
        self.model, self.place, self.call = model, place, call
        self.layer = find_layer(model, layer)[0]
        self.training = model.training  # alone: a frozen batch norm inside stays frozen

    def forward(self, images: Tensor) -> Tensor:
        """From images (N, C, H, W) to responses (N, channels)."""
        # A copy at once: a following in-place ReLU would change what is read here.
        with capture(self.model, [self.layer], reduce=torch.clone) as values:
            self.model(images)
        maps = as_maps(the_call(values[self.layer], self.layer, self.call), image_size=images.shape[-2:])
        if len(maps) != len(images):
            raise UsageError(f"layer '{self.layer}' puts out {len(maps)} entries for {len(images)} images.")
        if isinstance(self.place, str):
            flat = maps.flatten(2)
            return flat.mean(dim=2) if self.place == "mean" else flat.max(dim=2).values
        places = torch.as_tensor(self.place, device=maps.device).long().expand(len(maps), 2)
        size = torch.tensor(maps.shape[2:], device=maps.device)
        if bool(((places < 0) | (places >= size)).any()):
            raise UsageError(f"layer '{self.layer}' has {size[0]} × {size[1]} places; {self.place} was asked for.")
        return maps[torch.arange(len(maps), device=maps.device), :, places[:, 0], places[:, 1]]


def the_call(calls: list[Any], layer: str, which: int | None) -> Any:
    """What a layer put out in the one call that is meant.

    Raises:
        UsageError: If it was not called, or so often that `which` must be said.
    """
    if not calls:
        raise UsageError(f"layer '{layer}' takes no part in the forward pass, or puts out no tensor.")
    if which is None and len(calls) > 1:
        raise UsageError(
            f"layer '{layer}' is called {len(calls)} times in a forward pass: say which call is meant "
            f"(call=0 … {len(calls) - 1}), or name the layer around it."
        )
    try:
        return calls[which or 0]
    except IndexError:
        raise UsageError(f"layer '{layer}' is called {len(calls)} times in a forward pass; call={which}.") from None
