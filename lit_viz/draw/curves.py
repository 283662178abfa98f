"""Curves of several methods in one picture, with a table of numbers for a legend."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_viz.draw.arrays import to_numpy
from lit_viz.draw.canvas import BODY, INK, MUTED, PAPER, RULE, SMALL, Canvas, Color, Page
from lit_viz.draw.colormaps import CVD_SAFE_10
from lit_viz.draw.text import clean, measure, number, truncate, wrap
from lit_viz.errors import UsageError

_REFERENCE: Color = (130, 136, 145)
_FINE = 3
_LINE, _DOT = 3.2, 5.0
_ROW, _STAGE = 28, 34


@dataclass(frozen=True)
class CurvePanel:
    """One plot.

    Attributes:
        lines: (n,) values by name; NaN makes a gap. Names that come in several panels have one colour.
        x: (n,) places along the axis, ascending, or n texts: stages, which follow each other from top to bottom.
        heading: Above the plot.
        x_label: Below the plot, for places: what is along the axis.
        limits: Lowest and highest value of the axis; those of the values by default, widened to round numbers.
        percent: Whether places are shares, to be shown as percent.
    """

    lines: Mapping[str, Any]
    x: Any
    heading: str = ""
    x_label: str = ""
    limits: tuple[float, float] | None = None
    percent: bool = False


@dataclass(frozen=True)
class Table:
    """Numbers below the plots; the first column holds the names of the lines.

    Attributes:
        columns: Headings.
        rows: Texts by name of the line, as many as there are headings.
    """

    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]


def curve_panels(
    panels: Sequence[CurvePanel],
    *,
    table: Table | None = None,
    references: Collection[str] = (),
    notes: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    max_size: int = 1000,
) -> NDArray[np.uint8]:
    """Plots side by side over one legend.

    Args:
        panels: One or two.
        table: What the legend says of each line besides its name.
        references: Names of lines to compare the others with: grey and dashed.
        notes: Sentences below the legend.
        title: One line.
        subtitle: How to read the picture.
        max_size: Bound on both sides, px.

    Returns:
        (H, W, 3).

    Raises:
        UsageError: For no lines, more than ten, or values of another number than places.
    """
    if not 1 <= len(panels) <= 2:
        raise UsageError(f"A plot of curves takes 1 or 2 panels, got {len(panels)}.")
    lines = [{name: _checked(name, values, panel) for name, values in panel.lines.items()} for panel in panels]
    names = list(dict.fromkeys(name for of_panel in lines for name in of_panel))
    colored = [name for name in names if name not in references]
    if len(colored) > len(CVD_SAFE_10):
        raise UsageError(f"At most {len(CVD_SAFE_10)} lines can be told apart, got {len(colored)}.")
    colors = dict.fromkeys(names, _REFERENCE) | dict(zip(colored, CVD_SAFE_10, strict=False))

    page = Page(title, subtitle, None, max_size)
    px, (width, height) = page.px, page.room
    legend = _legend(page, colors, table or Table((), {}), references, width)
    texts = [line for note in notes for line in wrap(clean(note), px(SMALL), width, 3)]
    below = legend.height + px(22) + (len(texts) * px(22) + px(10) if texts else 0)
    gap = px(36)
    box = (width - (len(panels) - 1) * gap) // len(panels)
    plots = [
        _plot(page, panel, values, colors, references, box, max(px(160), height - below))
        for panel, values in zip(panels, lines, strict=True)
    ]
    tall = max(plot.height for plot in plots)
    canvas = Canvas(width, tall + below)
    for i, plot in enumerate(plots):
        canvas.paste(plot, i * (box + gap), 0)
    canvas.paste(legend, 0, tall + px(22))
    for i, text in enumerate(texts):
        canvas.text(0, tall + px(22) + legend.height + px(10) + i * px(22) + px(16), text, px(SMALL), color=MUTED)
    return page.finish(canvas.image)


def _checked(name: str, values: Any, panel: CurvePanel) -> NDArray[np.float64]:
    line = to_numpy(values)
    if line.shape != (len(panel.x),) or not len(line):
        raise UsageError(f"The line '{name}' must have {len(panel.x)} values, at least 1, got shape {line.shape}.")
    return line


def _plot(
    page: Page,
    panel: CurvePanel,
    lines: Mapping[str, NDArray[np.float64]],
    colors: Mapping[str, Color],
    references: Collection[str],
    width: int,
    height: int,
) -> Image.Image:
    """Axes, lines and their labels; no larger than that."""
    px, staged = page.px, len(panel.x) > 0 and isinstance(panel.x[0], str)
    low, high, ticks = _axis(panel.limits, lines)
    top = px(34) if panel.heading else px(8)
    bottom = px(32) + (px(24) if panel.x_label else 0)
    if staged:
        names = [truncate(clean(text), px(SMALL), 0.42 * width) for text in panel.x]
        left = int(max(measure(name, px(SMALL)) for name in names)) + px(14)
        inner = min(height - top - bottom, px(_STAGE) * len(names))
    else:
        left = int(max(measure(number(t), px(SMALL)) for t in ticks)) + px(10)
        inner = min(height - top - bottom, round(0.8 * width))
    right = px(34)
    across = width - left - right
    canvas = Canvas(width, top + inner + bottom)
    canvas.text(0, px(17), panel.heading, px(BODY), color=INK, width=width)

    unit = (np.array(ticks) - low) / (high - low)
    labels = [number(t) for t in ticks]
    # Lines along an edge of the plot are seen whole.
    pad = px(6)
    picture = Image.new("RGB", (_FINE * (across + 2 * pad), _FINE * (inner + 2 * pad)), PAPER)
    draw = ImageDraw.Draw(picture)
    if staged:
        down = (np.arange(len(panel.x)) + 0.5) / len(panel.x)
        _grid(page, draw, unit, down, across, inner, pad)
        for name, y in zip(names, down * inner + top, strict=True):
            canvas.text(left - px(12), y + px(5.5), name, px(SMALL), color=INK, align="right")
        bases = zip(unit, labels, strict=True)
    else:
        x = to_numpy(panel.x)
        span = (x - x[0]) / ((x[-1] - x[0]) or 1.0)
        marks = np.linspace(0, 1, 5)
        _grid(page, draw, marks, 1 - unit, across, inner, pad)
        for label, y in zip(labels, (1 - unit) * inner + top, strict=True):
            canvas.text(left - px(8), y + px(5.5), label, px(SMALL), color=MUTED, align="right")
        places = x[0] + marks * (x[-1] - x[0])
        bases = zip(marks, [f"{100 * p:g} %" if panel.percent else number(p) for p in places], strict=True)
    for at, label in bases:
        canvas.text(left + at * across, top + inner + px(22), label, px(SMALL), color=MUTED, align="center")
    canvas.text(
        left + across / 2, top + inner + px(46), panel.x_label, px(SMALL), color=MUTED, width=across, align="center"
    )
    # The first ones last, on top of those to compare with.
    for name in sorted(lines, key=lambda name: (name not in references, -list(lines).index(name))):
        value = (lines[name] - low) / (high - low)
        places = np.stack([value, down] if staged else [span, 1 - value], axis=1)
        points = (places * [across, inner] + pad) * _FINE
        _draw_line(page, draw, points, colors[name], dashed=name in references, dots=staged)
    canvas.paste(picture.reduce(_FINE), left - pad, top - pad)
    return canvas.image


def _axis(
    limits: tuple[float, float] | None, lines: Mapping[str, NDArray[np.float64]]
) -> tuple[float, float, list[float]]:
    """Where the axis begins and ends, and the round numbers along it."""
    finite = np.concatenate([line[np.isfinite(line)] for line in lines.values()] or [np.zeros(0)])
    low, high = limits or ((float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    ticks = [float(t) + 0.0 for t in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    if limits is None:
        return ticks[0], ticks[-1], ticks
    slack = 1e-9 * (high - low)
    return low, high, [t for t in ticks if low - slack <= t <= high + slack]


def _grid(
    page: Page,
    draw: ImageDraw.ImageDraw,
    vertical: NDArray[np.float64],
    horizontal: NDArray[np.float64],
    across: int,
    inner: int,
    pad: int,
) -> None:
    width = max(1, round(_FINE * page.max_size / 1000))
    ends = [(pad * _FINE, (pad + length) * _FINE) for length in (across, inner)]
    for x in (vertical * across + pad) * _FINE:
        draw.line((x, ends[1][0], x, ends[1][1]), fill=RULE, width=width)
    for y in (horizontal * inner + pad) * _FINE:
        draw.line((ends[0][0], y, ends[0][1], y), fill=RULE, width=width)


def _draw_line(
    page: Page, draw: ImageDraw.ImageDraw, points: NDArray[np.float64], color: Color, *, dashed: bool, dots: bool
) -> None:
    """A line through points (n, 2), finite or not, in px of the fine picture."""
    unit = _FINE * page.max_size / 1000
    width, radius = max(1, round(_LINE * unit)), _DOT * unit
    finite = np.isfinite(points).all(axis=1)
    for i in np.flatnonzero(finite[:-1] & finite[1:]):
        start, end = points[i], points[i + 1]
        if not dashed:
            draw.line((*start, *end), fill=color, width=width)
            continue
        # Dashes go on over the corners of the line.
        begun = np.linalg.norm(np.diff(points[: i + 1], axis=0), axis=1)
        offset, length = float(np.nansum(begun)), float(np.linalg.norm(end - start))
        period = 14 * unit
        for k in range(int(offset // period), int((offset + length) // period) + 1):
            low, high = max(k * period, offset) - offset, min((k + 0.6) * period, offset + length) - offset
            if length and high > low:
                ends = [start + (end - start) * at / length for at in (low, high)]
                draw.line((*ends[0], *ends[1]), fill=color, width=width)
    if dots:
        for x, y in points[finite]:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif not dashed:
        joint = width / 2 - 0.5  # round joints
        for x, y in points[finite]:
            draw.ellipse((x - joint, y - joint, x + joint, y + joint), fill=color)


def _legend(
    page: Page, colors: Mapping[str, Color], table: Table, references: Collection[str], width: int
) -> Image.Image:
    """A line, its name and its numbers in each row; one row for all where there are no numbers."""
    px, size, swatch = page.px, page.px(SMALL), page.px(30)
    heads = [clean(text) for text in table.columns]
    if not heads:
        return _flowing(page, colors, references, width)
    cells = [[table.rows.get(name, [""] * len(heads))[i] for name in colors] for i in range(len(heads))]
    wide = [
        int(max(measure(clean(t), size) for t in [head, *column])) + px(30)
        for head, column in zip(heads, cells, strict=True)
    ]
    longest = int(max(measure(clean(name), size) for name in colors)) + px(4)
    named = swatch + px(10) + min(longest, width - sum(wide) - swatch - px(10))
    ends = named + np.cumsum(wide)
    canvas = Canvas(width, (len(colors) + 1) * px(_ROW))
    for head, end in zip(heads, ends, strict=True):
        canvas.text(end, px(17), head, size, color=MUTED, align="right")
    for row, (name, color) in enumerate(colors.items(), start=1):
        base = row * px(_ROW) + px(17)
        canvas.paste(_swatch(page, color, swatch, name in references), 0, base - px(11))
        canvas.text(swatch + px(10), base, name, size, width=named - swatch - px(10))
        for column, end in zip(cells, ends, strict=True):
            canvas.text(end, base, column[row - 1], size, align="right")
    return canvas.image


def _flowing(page: Page, colors: Mapping[str, Color], references: Collection[str], width: int) -> Image.Image:
    px, size, swatch = page.px, page.px(SMALL), page.px(30)
    places, x, y = [], 0, 0
    for name in colors:
        need = swatch + px(10) + int(measure(clean(name), size)) + px(28)
        if x and x + need > width:
            x, y = 0, y + 1
        places.append((x, y))
        x += need
    canvas = Canvas(width, (y + 1) * px(_ROW))
    for (name, color), (x, y) in zip(colors.items(), places, strict=True):
        base = y * px(_ROW) + px(17)
        canvas.paste(_swatch(page, color, swatch, name in references), x, base - px(11))
        canvas.text(x + swatch + px(10), base, name, size, width=width - x - swatch - px(10))
    return canvas.image


def _swatch(page: Page, color: Color, width: int, dashed: bool) -> Image.Image:
    height = page.px(12)
    picture = Image.new("RGB", (width * _FINE, height * _FINE), PAPER)
    points = np.array([[0.0, height / 2], [width, height / 2]]) * _FINE
    _draw_line(page, ImageDraw.Draw(picture), points, color, dashed=dashed, dots=False)
    return picture.reduce(_FINE)
