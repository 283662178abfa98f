"""Everything that gives a map for each probe image: what it must say of itself, and its look, one card per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lit_viz import draw
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.draw.images import resized
from lit_viz.errors import UsageError


class AttributionCallback(VisualizationCallback):
    """A visualization that says which pixels of each probe image the class score depends on."""

    def attribute(self, look: Look) -> Tensor:
        """How important each pixel is, (N, H, W), larger for more, in any unit; `Faithfulness` puts it to the test.

        Called inside the guard, like `visualize`, and as often as somebody asks.
        """
        raise NotImplementedError(f"{type(self).__name__} must override attribute().")


Limits = tuple[float, float] | Sequence[tuple[float, float]] | Literal["each", "shared"] | None


def attribution_sheet(
    look: Look,
    maps: Tensor,
    *,
    name: str,
    title: str,
    subtitle: str,
    colorbar: draw.ColorBar,
    limits: Limits = None,
    method: str = "bicubic",
    measure: str = "",
    notes: Sequence[str] = (),
    seen: Tensor | None = None,
) -> np.ndarray:
    """One card for each probe image: the image, the map, and the map over the image.

    Args:
        look: The look.
        maps: (N, h, w); resized to the images for the overlay.
        name: Heading of the maps.
        title: Of the picture; epoch and step are added.
        subtitle: How to read it.
        colorbar: Colours of the maps.
        limits: Lowest and highest value of the colours, the same for all maps, or one such pair for each map.
            "each" for each map's own range. "shared" for zero to the value that one pixel in a hundred of all maps
            exceeds, which the colour bar then says at its ends. None for zero to the value that one pixel in a hundred
            of the map itself exceeds: a few extreme gradients would leave the rest in the dark. Ranges are those of the
            maps as they are shown: where images are larger than their place, averaging takes off the peaks.
        method: How maps are enlarged, "nearest" for cells.
        measure: Name of the largest value, to be given in captions.
        notes: More to say of each map.
        seen: (h, w) bool, where maps were asked for; what is NaN elsewhere is hatched without a word.
    """
    images = draw.to_uint8(look.pixels.to_color(look.images))
    heats = [np.where(np.isfinite(heat), heat, np.nan) for heat in maps.double().cpu().numpy()]
    captions = look.captions()
    columns, title = ("image", name, "overlay"), f"{title} · {look.when}"

    def cards(
        pictures: Sequence[Sequence[NDArray[np.uint8]]], ranges: Sequence[tuple[float, float]]
    ) -> list[draw.Card]:
        asked = heats if seen is None else [heat[seen.cpu().numpy()] for heat in heats]
        told = [_note(heat, *r, measure, limits == "each") for heat, r in zip(asked, ranges, strict=True)]
        return [
            draw.Card(row, caption, " · ".join(text for text in (detail, *said) if text), correct)
            for row, (caption, detail, correct), said in zip(
                pictures, captions, zip(told, notes or [""] * len(told), strict=True), strict=True
            )
        ]

    sizes = draw.tile_sizes(
        cards([[image] * 3 for image in images], [(0.0, 1.0)] * len(images)),
        columns=columns,
        title=title,
        subtitle=subtitle,
        colorbar=colorbar,
    )
    shown = []
    for image, heat, (height, width) in zip(images, heats, sizes, strict=True):
        size = (height, width) if height < image.shape[0] else image.shape[:2]
        shown.append(draw.resize_map(heat, *size, method=method))
    ranges = _ranges(shown, limits)
    if limits == "shared":
        colorbar = replace(colorbar, low=ranges[0][0], high=ranges[0][1])
    pictures = []
    for image, heat, (low, high) in zip(images, shown, ranges, strict=True):
        flat = draw.colorize(heat, cmap=colorbar.cmap, low=low, high=high)
        over = np.asarray(resized(image, *heat.shape))
        if np.isfinite(heat).any():
            over = draw.overlay(over, heat, cmap=colorbar.cmap, low=low, high=high)
        pictures.append([image, flat, over])
    return draw.sheet(cards(pictures, ranges), columns=columns, title=title, subtitle=subtitle, colorbar=colorbar)


def gradient_sheet(
    look: Look,
    gradients: Sequence[Tensor],
    *,
    columns: Sequence[str],
    title: str,
    subtitle: str,
    captions: Sequence[str] | None = None,
) -> np.ndarray:
    """One card for each probe image: the image, and signed gradients as pictures around mid-grey.

    Args:
        look: The look.
        gradients: (N, C, H, W) each, one for each further column.
        columns: Headings, that of the image first.
        title: Of the picture; epoch and step are added.
        subtitle: How to read it.
        captions: Instead of the class and its probability.
    """
    images = draw.to_uint8(look.pixels.to_color(look.images))
    pictures = [draw.around_grey(gradient) for gradient in gradients]
    cards = []
    for i, (caption, detail, correct) in enumerate(look.captions()):
        silent = all(not gradient[i].any() for gradient in gradients)
        if captions is not None:
            caption, detail, correct = captions[i], "", None
        note = " · ".join(text for text in (detail, "no signal reaches the pixels" if silent else "") if text)
        cards.append(draw.Card([images[i], *(picture[i] for picture in pictures)], caption, note, correct))
    return draw.sheet(cards, columns=columns, title=f"{title} · {look.when}", subtitle=subtitle)


def _ranges(maps: Sequence[NDArray[np.float64]], limits: Limits) -> list[tuple[float, float]]:
    """Lowest and highest value of the colours of each map."""
    finite = [heat[np.isfinite(heat)] for heat in maps]
    if limits == "each":
        return [(float(v.min()), float(v.max())) if v.size else (0.0, 1.0) for v in finite]
    if limits == "shared":
        return [(0.0, draw.bright_end(np.concatenate(finite)))] * len(maps)
    if limits is None:
        return [(0.0, draw.bright_end(v)) for v in finite]
    pairs = np.asarray(limits, dtype=float)
    if pairs.shape not in ((2,), (len(maps), 2)):
        raise UsageError(f"limits must be one pair (low, high) or one for each of the {len(maps)} maps.")
    pairs = np.where(np.isfinite(pairs).all(axis=-1, keepdims=True), pairs, [0.0, 1.0])
    return [(float(low), float(high)) for low, high in np.broadcast_to(pairs, (len(maps), 2))]


def _note(heat: NDArray[np.float64], low: float, high: float, measure: str, ranged: bool) -> str:
    """What a caption says about a map."""
    finite = heat[np.isfinite(heat)]
    if not finite.size:
        return "the map is NaN or infinite"
    holes = "" if finite.size == heat.size else f"{1 - finite.size / heat.size:.0%} NaN or infinite"
    note = f"{low:.2g} to {high:.2g}" if ranged else ""
    if measure:
        note = f"{measure} {finite.max():.2g}" + (" (no gradient)" if finite.max() == 0 else "")
    return " · ".join(text for text in (holes, note) if text)
