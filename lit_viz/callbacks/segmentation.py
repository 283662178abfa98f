"""Objects cut out of the probe images, by saliency alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lit_viz import draw, functional
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.draw.images import resized
from lit_viz.errors import check_at_least, check_choice
from lit_viz.functional.segmentation import cut_out, require_opencv, segment

_COLUMNS = ("image", "saliency", "outline", "cut out")
_LINE = (255, 230, 0)


class ObjectExtraction(VisualizationCallback):
    """What the network takes for the object, cut out without a single mask to learn from (Simonyan et al. 2014).

    See `functional.segment`; needs OpenCV, `pip install "lit-viz[segmentation]"`. The caption gives the share of the
    image that is cut out. Tag: `objects/probe`.

    Args:
        method: Of the saliency maps: "smooth_grad", see `functional.smooth_grad`, or the quicker and noisier
            "gradient", see `functional.saliency`.
        samples: Noisy copies of each image for "smooth_grad".
        foreground: Quantile of the saliency above which pixels are surely object.
        background: Quantile up to which they are surely background.
        **kwargs: See `VisualizationCallback`.
    """

    tag = "objects"

    def __init__(
        self,
        *,
        method: Literal["smooth_grad", "gradient"] = "smooth_grad",
        samples: int = 25,
        foreground: float = 0.95,
        background: float = 0.20,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("method", method, ("smooth_grad", "gradient"))
        check_at_least("samples", samples, 1)
        self.method, self.samples = method, samples
        self.foreground, self.background = foreground, background

    def check(self, look: Look) -> None:
        require_opencv()
        self._masks(look, torch.zeros_like(look.images[:, 0]).float())  # tells of quantiles that can't be

    def visualize(self, look: Look) -> Mapping[str, np.ndarray]:
        if self.method == "gradient":
            maps = functional.saliency(look.model, look.images, look.targets, score=look.score)
        else:
            gradients = functional.smooth_grad(
                look.model, look.images, look.targets, samples=self.samples, seed=self.seed, score=look.score
            )
            maps = gradients.abs().amax(dim=1)
        return {"probe": _sheet(look, maps.float(), self._masks(look, maps.float()))}

    def _masks(self, look: Look, maps: Tensor) -> Tensor:
        # A map with holes tells nothing, and a flat one gives an empty mask.
        broken = ~torch.isfinite(maps).flatten(1).all(dim=1)
        maps = maps.masked_fill(broken[:, None, None], 0.0)
        colors = look.pixels.to_color(look.images)
        return segment(colors, maps, foreground=self.foreground, background=self.background)


def _sheet(look: Look, maps: Tensor, masks: Tensor) -> np.ndarray:
    colors = look.pixels.to_color(look.images)
    images = draw.to_uint8(colors)
    colors = colors if colors.shape[1] in (1, 3) else colors.mean(dim=1, keepdim=True)
    cuts = draw.to_uint8(cut_out(colors, masks))
    heats = [np.where(np.isfinite(heat), heat, np.nan) for heat in maps.double().cpu().numpy()]
    inside = masks.cpu().numpy()
    texts = [
        (caption, " · ".join(text for text in (_note(heat, mask), detail) if text), correct)
        for (caption, detail, correct), heat, mask in zip(look.captions(), heats, inside, strict=True)
    ]
    page: dict[str, Any] = {
        "columns": _COLUMNS,
        "title": f"Objects · {look.when}",
        "subtitle": "Cut out without a mask to learn from: the most salient pixels are taken for object, the least "
        "salient ones for background, and GrabCut sorts the rest by colour.",
        "colorbar": draw.ColorBar("magma", "0", "top 1 %", "saliency"),
    }

    def cards(pictures: Sequence[Sequence[NDArray[np.uint8]]]) -> list[draw.Card]:
        return [draw.Card(row, *text) for row, text in zip(pictures, texts, strict=True)]

    rows = []
    sizes = draw.tile_sizes(cards([[image] * len(_COLUMNS) for image in images]), **page)
    for image, heat, mask, cut, size in zip(images, heats, inside, cuts, sizes, strict=True):
        finite = heat[np.isfinite(heat)]
        top = float(np.percentile(finite, 99)) or float(finite.max()) if finite.size else 1.0
        flat = draw.colorize(draw.resize_map(heat, *size), cmap="magma", low=0.0, high=top)
        rows.append([image, flat, _outlined(np.asarray(resized(image, *size)), mask), cut])
    return draw.sheet(cards(rows), **page)


def _note(heat: NDArray[np.float64], mask: NDArray[np.bool_]) -> str:
    if not np.isfinite(heat).all():
        return "no object: the map has NaN or infinity"
    if not mask.any():
        return "no object: the map is flat" if heat.min() == heat.max() else "no object found"
    return "the mask is the whole image" if mask.all() else f"{mask.mean():.0%} of the image"


def _outlined(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A bright line with dark edges along the rim of a mask (h, w), which is enlarged to the picture."""
    smooth = draw.resize_map(mask.astype(float), *picture.shape[:2], method="bilinear")
    inside = smooth >= 0.5
    thick = max(1, round(min(picture.shape[:2]) / 110))
    out = picture.copy()
    for wide, color in ((thick + 1, (0, 0, 0)), (thick, _LINE)):
        grown = ndimage.binary_dilation(inside, iterations=wide)
        shrunk = ndimage.binary_erosion(inside, iterations=max(1, wide - thick + 1), border_value=1)
        out[grown & ~shrunk] = color
    return out
