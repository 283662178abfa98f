"""Points in the plane, coloured by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_viz.draw.arrays import as_labels, as_points
from lit_viz.draw.canvas import (
    BODY,
    INK,
    MUTED,
    PAPER,
    SHADE,
    SMALL,
    Canvas,
    Color,
    Page,
)
from lit_viz.draw.colormaps import CVD_SAFE_10
from lit_viz.draw.names import Place, place_names
from lit_viz.draw.text import clean, measure, truncate
from lit_viz.errors import UsageError

_OTHER: Color = (196, 200, 206)
_PLAIN: Color = (63, 144, 218)
_FINE = 3
_PALETTE = len(CVD_SAFE_10)


@dataclass(frozen=True)
class Panel:
    """One projection of the points.

    Attributes:
        points: (n, 2); points that aren't finite are left out.
        heading: Its name, for instance "t-SNE".
        axes: What the axes mean, the horizontal and the vertical one, for instance ("PC 1 · 34 %", "PC 2 · 12 %").
    """

    points: Any
    heading: str = ""
    axes: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class ClassColors:
    """How classes are told apart.

    Attributes:
        shown: Classes that have a colour, in the order of the legend.
        names: One name for each of them.
        others: How many classes are grey.
    """

    shown: tuple[int, ...]
    names: tuple[str, ...]
    others: int

    def color(self, label: int) -> Color:
        """The colour of a class; grey for the rest."""
        return CVD_SAFE_10[self.shown.index(label) % _PALETTE] if label in self.shown else _OTHER

    def square(self, label: int) -> bool:
        """Whether the class is drawn with squares: from the eleventh on colours come again."""
        return label in self.shown and self.shown.index(label) >= _PALETTE


def class_colors(
    labels: NDArray[np.int64], class_names: Sequence[str] | None, highlight: Sequence[int] | None
) -> ClassColors:
    """Chooses colours: up to 20 classes get one each, of more the ten most frequent do.

    Args:
        labels: (n,); negative ones are "unknown" and stay grey.
        class_names: One name per class, or None for the numbers.
        highlight: The classes to colour, at most 20, instead.
    """
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    if class_names is not None and len(present) and present[-1] >= len(class_names):
        raise UsageError(f"There is a label {present[-1]}, but only {len(class_names)} class names.")
    if highlight is not None:
        shown = tuple(dict.fromkeys(int(c) for c in highlight))
        if len(shown) > 2 * _PALETTE:
            raise UsageError(f"At most {2 * _PALETTE} classes can be highlighted, got {len(shown)}.")
    elif len(present) <= 2 * _PALETTE:
        shown = tuple(int(c) for c in present)
    else:
        most = np.lexsort((present, -counts))[:_PALETTE]
        shown = tuple(sorted(int(present[i]) for i in most))
    names = tuple(
        str(class_names[c]) if class_names is not None and 0 <= c < len(class_names) else str(c) for c in shown
    )
    return ClassColors(shown, names, len(set(present.tolist()) - set(shown)))


def scatter(
    points: Any,
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    highlight: Sequence[int] | None = None,
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """One cloud of points; see `scatter_panels`.

    Args:
        points: (n, 2).
        labels: (n,) class indices, negative for "unknown", or None for one colour.
        class_names: One name per class; None shows the indices.
        highlight: Classes to colour, the rest being grey.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    return scatter_panels(
        [Panel(points)],
        labels,
        class_names,
        highlight=highlight,
        title=title,
        subtitle=subtitle,
        max_size=max_size,
    )


def scatter_panels(
    panels: Sequence[Panel],
    labels: Any = None,
    class_names: Sequence[str] | None = None,
    *,
    highlight: Sequence[int] | None = None,
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Projections of the same points side by side, without axes, equally scaled in both directions.

    Up to ten classes are named beside their points, where there is a place for it; a legend lists up to twenty. Of more
    classes the ten most frequent (or `highlight`) are coloured over grey.

    Args:
        panels: One to four.
        labels: (n,) class indices for all panels, negative for "unknown", or None for one colour.
        class_names: One name per class; None shows the indices.
        highlight: Classes to colour, at most twenty.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).
    """
    if not 1 <= len(panels) <= 4:
        raise UsageError(f"A scatter plot takes 1 to 4 panels, got {len(panels)}.")
    places = [as_points(panel.points) for panel in panels]
    if len({len(p) for p in places}) > 1:
        raise UsageError(f"All panels need the same number of points, got {[len(p) for p in places]}.")
    classes = as_labels(labels, len(places[0]))
    key = None if classes is None else class_colors(classes, class_names, highlight)

    page = Page(title, subtitle, None, max_size)
    px, (width, height) = page.px, page.room
    legend = legend_picture(page, key, width)
    heading = px(30) if any(p.heading for p in panels) else 0
    foot = px(28) if any(any(p.axes) for p in panels) else 0
    below = legend.height + px(18) if legend else 0
    across = 2 if len(panels) == 4 else len(panels)
    down = -(-len(panels) // across)
    gap = px(24)
    box_width = (width - (across - 1) * gap) // across
    box_height = (height - below - (down - 1) * gap) // down - heading - foot
    if len(panels) > 1:
        box_width = box_height = min(box_width, box_height)
    else:
        box_height = min(box_height, round(box_width * _aspect(places[0])))
    block = box_height + heading + foot + gap
    across_all = max(across * (box_width + gap) - gap, legend.width if legend else 0)
    canvas = Canvas(across_all, down * block - gap + below)
    for i, (panel, where) in enumerate(zip(panels, places, strict=True)):
        left, top = (i % across) * (box_width + gap), (i // across) * block
        canvas.text(left, top + px(17), panel.heading, px(BODY), color=INK, width=box_width)
        picture = _cloud(page, where, classes, key, box_width, box_height)
        canvas.paste(picture, left, top + heading)
        baseline, half = top + heading + box_height + px(21), box_width / 2 - px(4)
        for text, x, align in (
            (panel.axes[1] and f"↑ {panel.axes[1]}", left, "left"),
            (panel.axes[0] and f"{panel.axes[0]} →", left + box_width, "right"),
        ):
            canvas.text(x, baseline, text, px(SMALL), color=MUTED, width=half, align=align)
    if legend:
        canvas.paste(legend, 0, canvas.image.height - legend.height)
    return page.finish(canvas.image)


def placed(points: NDArray[np.float64], width: int, height: int, margin: int) -> NDArray[np.float64]:
    """Points as px in a box, equally scaled in both directions, centred, y upwards; finite points only."""
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.maximum(high - low, 1e-300)
    scale = min((width - 2 * margin) / span[0], (height - 2 * margin) / span[1])
    if not np.isfinite(scale) or (high - low).max() == 0:
        scale = 0.0
    center = low + (high - low) / 2
    offset = (points - center) * scale * np.array([1.0, -1.0])
    return offset + np.array([width / 2, height / 2])


def legend_picture(page: Page, key: ClassColors | None, width: int, most_lines: int = 5) -> Image.Image | None:
    """Swatches with names in flowing lines, capped; None where there is nothing to list."""
    if key is None or not (key.shown or key.others):
        return None
    px = page.px
    size, swatch, gap, line = px(SMALL), px(13), px(22), px(26)
    rest = f"{key.others} other class" + ("es" if key.others != 1 else "")
    entries = [(c, truncate(clean(n), size, px(190))) for c, n in zip(key.shown, key.names, strict=True)]
    entries += [(-1, rest)] if key.others else []
    placed_at: list[tuple[int, int, int, str]] = []
    x = y = 0
    for i, (label, name) in enumerate(entries):
        need = swatch + px(7) + int(measure(name, size)) + 1
        if x and x + need > width:
            x, y = 0, y + 1
        last = y == most_lines - 1 and i < len(entries) - 1
        more = f"+ {len(entries) - i} more"
        if y >= most_lines or (last and x + need + gap + measure(more, size) > width):
            placed_at.append((x, min(y, most_lines - 1), -2, more))
            break
        placed_at.append((x, y, label, name))
        x += need + gap
    canvas = Canvas(width, (placed_at[-1][1] + 1) * line)
    for x, y, label, name in placed_at:
        top = y * line + px(5)
        indent = 0
        if label > -2:
            canvas.paste(_stamp(key.color(label), swatch, key.square(label), PAPER), x, top)
            indent = swatch + px(7)
        canvas.text(x + indent, y * line + px(17), name, size, color=MUTED, width=width - x - indent)
    return canvas.image


def _aspect(points: NDArray[np.float64]) -> float:
    finite = points[np.isfinite(points).all(axis=1)]
    span = np.ptp(finite, axis=0) if len(finite) else np.ones(2)
    return float(np.clip(span[1] / span[0], 0.6, 1.0)) if span[0] > 0 else 1.0


def _stamp(color: Color, size: int, square: bool, background: Color) -> Image.Image:
    fine = size * 8
    picture = Image.new("RGB", (fine, fine), background)
    draw = ImageDraw.Draw(picture)
    inset = fine // 14
    if square:
        draw.rectangle((inset, inset, fine - 1 - inset, fine - 1 - inset), fill=color)
    else:
        draw.ellipse((0, 0, fine - 1, fine - 1), fill=color)
    return picture.resize((size, size), Image.Resampling.BOX)


def _cloud(
    page: Page,
    points: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    key: ClassColors | None,
    width: int,
    height: int,
) -> Image.Image:
    finite = np.isfinite(points).all(axis=1)
    picture = Image.new("RGB", (width * _FINE, height * _FINE), SHADE)
    canvas = Canvas(width, height, SHADE)
    if not finite.any():
        canvas.text(width / 2, height / 2, "no finite points", page.px(BODY), color=MUTED, align="center")
        return canvas.image
    radius = float(np.clip(150 / np.sqrt(finite.sum()), 2.4, 6.5)) * page.max_size / 1000
    where = np.full(points.shape, np.nan)
    where[finite] = placed(points[finite], width, height, page.px(26))
    # In a fixed random order no class lies on top of the others; grey ones go first.
    order = np.random.default_rng(0).permutation(np.flatnonzero(finite))
    gray = np.array([key is not None and labels is not None and int(labels[i]) not in key.shown for i in order])
    draw, edge = ImageDraw.Draw(picture), 0.28 * radius if finite.sum() <= 3000 else 0.0
    for i in np.concatenate([order[gray], order[~gray]]):
        color, square = _PLAIN, False
        if key is not None and labels is not None:
            color, square = key.color(int(labels[i])), key.square(int(labels[i]))
        x, y = where[i] * _FINE
        for r, fill in ((radius + edge, PAPER), (radius, color)) if edge else ((radius, color),):
            r = r * _FINE * (0.9 if square else 1.0)
            (draw.rectangle if square else draw.ellipse)((x - r, y - r, x + r, y + r), fill=fill)
    names = _names(page, where, labels, key, width, height, radius) if key is not None and labels is not None else []
    for label, _, place in names:
        if place.leader:
            line = [_FINE * v for v in place.leader]
            draw.line(line, fill=_dark(key.color(label)), width=round(_FINE * 1.4 * page.max_size / 1000))
    canvas.paste(picture.reduce(_FINE), 0, 0)
    for label, text, place in names:
        baseline, color = place.y + page.px(6.5), _dark(key.color(label))
        canvas.text(place.x, baseline, text, page.px(BODY), color=color, bold=True, align="center", halo=page.px(3))
    return canvas.image


def _names(
    page: Page,
    where: NDArray[np.float64],
    labels: NDArray[np.int64],
    key: ClassColors,
    width: int,
    height: int,
    radius: float,
) -> list[tuple[int, str, Place]]:
    """Class, name and place, of those classes whose names can be written into the panel."""
    px = page.px
    if len(key.shown) > _PALETTE:
        return []
    finite = np.isfinite(where).all(axis=1)
    texts = [truncate(clean(name), px(BODY), min(px(260), 0.42 * width), bold=True) for name in key.names]
    sizes = [(measure(text, px(BODY), bold=True) + px(6), px(BODY + 4)) for text in texts]
    members = [
        where[(labels == label) & finite] if text else where[:0] for label, text in zip(key.shown, texts, strict=True)
    ]
    rest = where[finite & ~np.isin(labels, key.shown)]
    places = place_names(sizes, members, rest, width, height, radius=radius, unit=page.max_size / 1000)
    return [(label, text, place) for label, text, place in zip(key.shown, texts, places, strict=True) if place]


def _dark(color: Color) -> Color:
    r, g, b = (round(c * 0.55) for c in color)
    return r, g, b
