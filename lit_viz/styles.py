"""Pictures with a style of their own that come along: drawn by a formula, or shipped with scikit-image."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy.spatial import cKDTree
from skimage import data
from torch import Tensor

from lit_viz.errors import UsageError, nearest
from lit_viz.pictures import eight_bit, read_picture

_SIDE = 512  # px


def stained_glass(side: int = _SIDE, cells: int = 220, seed: int = 3) -> np.ndarray:
    """Panes of bright colours between dark lead: the cells of points at random, uint8 (side, side, 3)."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-0.05, 1.05, (cells, 2))
    palette = np.array([[20, 40, 120], [200, 40, 50], [240, 190, 40], [30, 120, 90], [230, 120, 40], [90, 150, 210]])
    grid = (np.stack(np.mgrid[:side, :side], axis=-1) + 0.5) / side
    distance, index = cKDTree(points).query(grid, k=2)
    lead = np.clip((distance[..., 1] - distance[..., 0]) * side / 5, 0, 1)[..., None]
    light = 0.8 + 0.4 * generator.random(cells)[index[..., 0], None] - 2.5 * distance[..., :1]
    colors = palette[generator.integers(0, len(palette), cells)][index[..., 0]] * light
    return np.clip(lead * colors + (1 - lead) * 18, 0, 255).astype(np.uint8)


def brush_strokes(side: int = _SIDE, strokes: int = 5200, seed: int = 5) -> np.ndarray:
    """Short thick strokes that follow a swirling field, in blues and yellows, uint8 (side, side, 3)."""
    generator = np.random.default_rng(seed)
    palette = np.array([[25, 45, 105], [40, 85, 160], [95, 150, 200], [185, 210, 220], [235, 205, 90], [35, 60, 70]])
    canvas = np.tile(np.array([30, 50, 95], dtype=np.float64), (side, side, 1))
    y, x = np.mgrid[:side, :side] / side
    swirls = generator.uniform(0, 1, (7, 2))
    for top, left in generator.uniform(0, 1, (strokes, 2)):
        near = np.hypot(swirls[:, 0] - top, swirls[:, 1] - left)
        k = int(near.argmin())
        angle = np.arctan2(top - swirls[k, 0], left - swirls[k, 1]) + np.pi / 2 + 0.15 * generator.normal()
        tone = int(np.clip(5 - 14 * near[k] + generator.normal(0, 0.9), 0, 5))
        color = palette[[5, 0, 1, 2, 3, 4][tone]] * (1 + 0.08 * generator.normal())
        length, width = generator.uniform(0.02, 0.045), generator.uniform(0.004, 0.007)
        low, high = (np.array([top, left]) - length) * side, (np.array([top, left]) + length) * side
        rows, columns = (slice(max(0, int(a)), min(side, int(b) + 1)) for a, b in zip(low, high, strict=True))
        v, u = y[rows, columns] - top, x[rows, columns] - left
        along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        across = across - 6 * along**2
        cover = np.clip((1 - (along / length) ** 2 - (across / width) ** 2) * 3, 0, 1)
        ridge = 1 + 0.18 * np.sin(across / width * 9)
        canvas[rows, columns] += cover[..., None] * (color * ridge[..., None] - canvas[rows, columns])
    return np.clip(canvas, 0, 255).astype(np.uint8)


def waves(side: int = _SIDE, bands: float = 9.0) -> np.ndarray:
    """Curved bands of ink in a few tones, as in woodcuts, uint8 (side, side, 3)."""
    palette = np.array([[245, 232, 205], [20, 30, 60], [200, 80, 55], [245, 232, 205], [60, 110, 130], [20, 30, 60]])
    y, x = np.mgrid[:side, :side] / side
    phase = bands * (y + 0.09 * np.sin(7 * x + 3 * y) + 0.05 * np.sin(17 * x - 5 * y)) + 0.8 * np.sin(4 * x * y + 2 * x)
    band = (phase * 2) % len(palette)
    index = band.astype(int)
    edge = np.clip((band - index) * 12, 0, 1)[..., None]
    colors = edge * palette[index] + (1 - edge) * palette[index - 1]
    return np.clip(colors, 0, 255).astype(np.uint8)


STYLES: dict[str, Callable[[], np.ndarray]] = {
    "stained glass": stained_glass,
    "brush strokes": brush_strokes,
    "waves": waves,
    "tissue": data.immunohistochemistry,
}
"""By name; uint8 (H, W, 3)."""


def style_picture(style: str | os.PathLike[str]) -> Image.Image:
    """A picture of `STYLES` by name, or that in a file, as RGB.

    Raises:
        UsageError: If it is neither.
    """
    if style in STYLES:
        return Image.fromarray(STYLES[str(style)]())
    if not os.path.exists(style) and not os.path.splitext(style)[1]:
        raise UsageError(
            f"there is no style {str(style)!r}; give the path of a picture, or {nearest(str(style), STYLES)}"
        )
    return eight_bit(read_picture(style), 3)


def picture_colors(picture: Image.Image, side: int | None = None) -> Tensor:
    """Colours of a picture, (1, 3, H, W) from 0 to 1.

    Args:
        picture: RGB.
        side: The shorter side that it is brought to, px; None for its own.
    """
    if side is not None:
        scale = side / min(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
