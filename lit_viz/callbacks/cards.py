"""The common look of everything that gives a map for each probe image: image, map and overlay in one card."""

from __future__ import annotations

from typing import Literal

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
    limits: tuple[float, float] | Literal["each"] | None = None,
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
        limits: Lowest and highest value of the colours, the same at every step; "each" for each map's own range; None
            for zero to the value that one pixel in a hundred of a map exceeds: a few extreme gradients would leave
            the rest in the dark.
        method: How maps are enlarged, "nearest" for cells.
        measure: Name of the largest value, to be given in captions.
    """
    images = draw.to_uint8(look.pixels.to_color(look.images))
    cards = []
    for image, heat, (caption, detail, correct) in zip(
        images, maps.float().cpu().numpy(), look.captions(), strict=True
    ):
        broken = not np.isfinite(heat).any()
        peak = 0.0 if broken else float(np.nanmax(heat))
        if broken or isinstance(limits, tuple):
            low, high = limits if isinstance(limits, tuple) else (0.0, 1.0)
        elif limits == "each":
            low, high = float(np.nanmin(heat)), peak
        else:
            low, high = 0.0, float(np.nanpercentile(heat, 99)) or peak
        shown = draw.resize_map(heat, *image.shape[:2], method=method)
        flat = draw.colorize(shown, cmap=colorbar.cmap, low=low, high=high)
        over = image if broken else draw.overlay(image, heat, cmap=colorbar.cmap, low=low, high=high, method=method)
        notes = [detail] if detail else []
        if broken:
            notes.append("the map is NaN")
        elif measure:
            notes.append(f"{measure} {peak:.2g}" + (" (no gradient)" if peak == 0 else ""))
        elif limits == "each":
            notes.append(f"{low:.2g} to {high:.2g}")
        cards.append(draw.Card([image, flat, over], caption, " · ".join(notes), correct))
    return draw.sheet(
        cards,
        columns=("image", name, "overlay"),
        title=f"{title} · {look.when}",
        subtitle=subtitle,
        colorbar=colorbar,
    )
