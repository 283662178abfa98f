"""The common look of everything that gives a map for each probe image: image, map and overlay in one card."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lit_viz import draw
from lit_viz.callbacks.base import Look


def attribution_sheet(
    look: Look,
    maps: Tensor,
    *,
    name: str,
    title: str,
    subtitle: str,
    colorbar: draw.ColorBar,
    limits: tuple[float, float] | None = None,
    method: str = "bicubic",
    measure: str = "",
) -> np.ndarray:
    """One card for each probe image.

    Args:
        look: The look.
        maps: (N, h, w); resized to the images for the overlay.
        name: Heading of the maps.
        title: Of the picture; epoch and step are added.
        subtitle: How to read it.
        colorbar: Colours of the maps.
        limits: Lowest and highest value of the colours, the same at every step; None for zero to each map's largest.
        method: How maps are enlarged, "nearest" for cells.
        measure: Name of the largest value, to be given in captions.
    """
    images = draw.to_uint8(look.pixels.to_color(look.images))
    cards = []
    for image, heat, (caption, detail, correct) in zip(images, maps.float().cpu().numpy(), look.captions(), strict=True):
        broken = not np.isfinite(heat).any()
        low, high = limits or (0.0, 0.0 if broken else float(np.nanmax(heat)))
        shown = draw.resize_map(heat, *image.shape[:2], method=method)
        flat = draw.colorize(shown, cmap=colorbar.cmap, low=low, high=high)
        over = image if broken else draw.overlay(image, heat, cmap=colorbar.cmap, low=low, high=high, method=method)
        notes = [detail] if detail else []
        if broken:
            notes.append("the map is NaN")
        elif measure:
            notes.append(f"{measure} {high:.2g}" + (" (no gradient)" if high == 0 else ""))
        cards.append(draw.Card([image, flat, over], caption, " · ".join(notes), correct))
    return draw.sheet(
        cards,
        columns=("image", name, "overlay"),
        title=f"{title} · {look.when}",
        subtitle=subtitle,
        colorbar=colorbar,
    )
