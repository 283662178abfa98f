"""The page that every picture shares: type scale, margins, header, colour bar; and text that fits its box."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lit_viz.draw.colormaps import colormap
from lit_viz.errors import UsageError

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (36, 40, 46)
MUTED: Color = (101, 107, 116)
RULE: Color = (219, 222, 227)
SHADE: Color = (246, 247, 248)

# Lengths are px on a page of 1000 px; `Page.px` scales them. TensorBoard shows such a page at 500 to 700 px.
TITLE, BODY, SMALL = 27, 18, 16
MARGIN = 40
_LEAST_WIDTH = 720
_BAR_WIDTH = 220
_SUBTITLE_LINES = 3
# Blanks that don't break, as in "step 1 200".
_KEPT = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"


@dataclass(frozen=True)
class ColorBar:
    """What the colours of a picture mean.

    Attributes:
        cmap: One of `lit_viz.draw.COLORMAPS`.
        low: The value at the left end, a number or ready text.
        high: The value at the right end, likewise.
        label: What is measured, in a word or two, shown between the ends.
    """

    cmap: str
    low: float | str = ""
    high: float | str = ""
    label: str = ""

    def __post_init__(self) -> None:
        colormap(self.cmap)


class Page:
    """Header, margins and type scale of one picture.

    A picture asks for `room`, draws its body no larger than that, and hands it to `finish`.

    Args:
        title: One line, cut with an ellipsis where it is too long.
        subtitle: How to read the picture; up to three lines.
        colorbar: Drawn on the right of the title.
        max_size: Bound on both sides of the page, px, at least 256. Everything scales with it.
    """

    def __init__(
        self, title: str = "", subtitle: str = "", colorbar: ColorBar | None = None, max_size: int = 1000
    ) -> None:
        if max_size < 256:
            raise UsageError(f"max_size must be at least 256 px for text to stay legible, got {max_size}.")
        self.title, self.subtitle, self.colorbar = clean(title), clean(subtitle), colorbar
        self.max_size = int(max_size)

    def px(self, length: float) -> int:
        """A length on the 1000 px page in px of this page, at least 1."""
        return max(1, round(length * self.max_size / 1000))

    @property
    def room(self) -> tuple[int, int]:
        """Largest (width, height) that a body may have, px."""
        # Lines are counted at the narrowest page, where there are most.
        return self.max_size - 2 * self.px(MARGIN), self.max_size - 2 * self.px(MARGIN) - self._header(
            self.px(_LEAST_WIDTH)
        )

    def finish(self, body: Image.Image) -> NDArray[np.uint8]:
        """Puts the body under the header.

        Args:
            body: RGB. One that is larger than `room` makes the whole page shrink to `max_size`.

        Returns:
            (H, W, 3), both sides at most `max_size`.
        """
        margin = self.px(MARGIN)
        title = self._width_of_title() if self.title else 0
        width = max(body.width + 2 * margin, min(self.max_size, max(self.px(_LEAST_WIDTH), title)))
        header = self._header(width)
        canvas = Canvas(width, header + body.height + 2 * margin)
        self._draw_header(canvas)
        canvas.image.paste(body, (margin, margin + header))
        longest = max(canvas.image.size)
        if longest > self.max_size:
            size = tuple(max(1, int(side * self.max_size / longest)) for side in canvas.image.size)
            return np.array(canvas.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
        return np.array(canvas.image)

    def _text_width(self, width: int) -> int:
        bar = self.px(_BAR_WIDTH) + self.px(40) if self.colorbar else 0
        return width - 2 * self.px(MARGIN) - bar

    def _width_of_title(self) -> int:
        return int(measure(self.title, self.px(TITLE), bold=True)) + 3 - self._text_width(0)

    def _header(self, width: int) -> int:
        lines = len(wrap(self.subtitle, self.px(BODY), self._text_width(width), _SUBTITLE_LINES))
        text = (self.px(TITLE) if self.title else 0) + lines * self.px(25) + (self.px(6) if lines else 0)
        height = max(text, self.px(40) if self.colorbar else 0)
        return height + self.px(24) if height else 0

    def _draw_header(self, canvas: Canvas) -> None:
        left = baseline = self.px(MARGIN)
        width = self._text_width(canvas.width)
        if self.title:
            baseline += self.px(TITLE * 0.76)
            canvas.text(left, baseline, self.title, self.px(TITLE), bold=True, width=width)
            baseline += self.px(9)
        for line in wrap(self.subtitle, self.px(BODY), width, _SUBTITLE_LINES):
            baseline += self.px(25)
            canvas.text(left, baseline, line, self.px(BODY), color=MUTED, width=width)
        if self.colorbar:
            self._draw_bar(canvas, self.colorbar)

    def _draw_bar(self, canvas: Canvas, bar: ColorBar) -> None:
        width, height = self.px(_BAR_WIDTH), self.px(12)
        left, top = canvas.width - self.px(MARGIN) - width, self.px(MARGIN + 6)
        ramp = np.round(colormap(bar.cmap, max(width, 3)) * 255).astype(np.uint8)
        canvas.paste(np.broadcast_to(ramp, (height, width, 3)), left, top)
        canvas.frame(left, top, width, height, RULE)
        size, baseline = self.px(SMALL), top + height + self.px(21)
        low, high = (v if isinstance(v, str) else number(v) for v in (bar.low, bar.high))
        third = width * 0.4
        ends = [min(third, measure(clean(t), size)) for t in (low, high)]
        canvas.text(left, baseline, low, size, color=INK, width=third)
        canvas.text(left + width, baseline, high, size, color=INK, width=third, align="right")
        between = width - sum(ends) - self.px(16)
        center = left + ends[0] + self.px(8) + between / 2
        canvas.text(center, baseline, bar.label, size, color=MUTED, width=between, align="center")


class Canvas:
    """A sheet of paper with text and pictures on it. Coordinates are px from the upper left corner."""

    def __init__(self, width: int, height: int, color: Color = PAPER) -> None:
        self.image = Image.new("RGB", (max(1, width), max(1, height)), color)
        self._draw = ImageDraw.Draw(self.image)

    @property
    def width(self) -> int:
        """Width, px."""
        return self.image.width

    def text(
        self,
        x: float,
        baseline: float,
        text: str,
        size: int,
        *,
        color: Color = INK,
        bold: bool = False,
        width: float | None = None,
        align: str = "left",
        halo: int = 0,
    ) -> None:
        """One line of text.

        Args:
            x: Left end, middle or right end, after `align`.
            baseline: Height of the foot of the letters.
            text: Any text; white space is folded.
            size: Size of the font, px per em.
            color: Colour of the letters.
            bold: Whether to use the bold face.
            width: The box to fit in, px; longer text is cut with an ellipsis.
            align: `left`, `center` or `right`.
            halo: Width of a white outline, px, for text over points.
        """
        line = clean(text) if width is None else truncate(clean(text), size, width, bold=bold)
        if line:
            anchor = {"left": "ls", "center": "ms", "right": "rs"}[align]
            self._draw.text(
                (round(x), round(baseline)),
                line,
                fill=color,
                font=font(size, bold),
                anchor=anchor,
                stroke_width=halo,
                stroke_fill=PAPER if halo else None,
            )

    def paste(self, pixels: NDArray[np.uint8] | Image.Image, x: float, y: float) -> None:
        """Puts a picture with its upper left corner at (x, y)."""
        picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
        at = (round(x), round(y))
        if picture.mode == "RGBA":
            self.image.paste(picture, at, picture)
        else:
            self.image.paste(picture, at)

    def fill(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """A filled rectangle."""
        self._draw.rectangle((round(x), round(y), round(x + width) - 1, round(y + height) - 1), fill=color)

    def frame(self, x: float, y: float, width: float, height: float, color: Color, thickness: int = 1) -> None:
        """The outline of a rectangle, inside its edges."""
        box = (round(x), round(y), round(x + width) - 1, round(y + height) - 1)
        self._draw.rectangle(box, outline=color, width=thickness)


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with Matplotlib, so that pictures look alike on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # Raqm is not in every build of Pillow and would set text differently.
    return ImageFont.truetype(str(path), size=max(6, size), layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def measure(text: str, size: int, bold: bool = False) -> float:
    """Width of a line of text, px."""
    return font(size, bold).getlength(text) if text else 0.0


def clean(text: str) -> str:
    """Makes all white space blanks and drops what has no shape: control characters, lone surrogates."""
    blanks = "".join(" " if c.isspace() and c not in _KEPT else c for c in str(text))
    return "".join(c for c in blanks if unicodedata.category(c) not in ("Cc", "Cs")).strip()


def truncate(text: str, size: int, width: float, *, bold: bool = False) -> str:
    """The text, or as much of its start as fits with an ellipsis; nothing if not even that fits."""
    # One pixel is kept for letters that reach over their advance width.
    if measure(text, size, bold) <= width - 1:
        return text
    low, high = -1, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if measure(text[:middle].rstrip() + "…", size, bold) <= width - 1:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…" if low >= 0 else ""


@lru_cache(maxsize=1024)
def wrap(text: str, size: int, width: float, most: int) -> tuple[str, ...]:
    """Breaks text into at most `most` lines; the last one is cut with an ellipsis where there is more.

    Lines are made about equally long, and two blanks in a row are a favoured place to break.
    """
    text = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    parts = [part.strip() for part in text.split("  ") if part.strip()]
    if 1 < len(parts) <= most and measure(text, size) > width - 1:
        lines = [line for part in parts for line in wrap(part, size, width, most)]
        if len(lines) <= most:
            return tuple(lines)
    lines = list(_broken(text, size, width, most))
    if len(lines) > 1 and not lines[-1].endswith("…"):
        narrow = width
        while narrow > width * 0.5:
            narrow -= max(4.0, width / 40)
            tighter = _broken(text, size, narrow, len(lines))
            if len(tighter) > len(lines) or tighter[-1].endswith("…"):
                break
            lines = list(tighter)
    return tuple(lines)


def _broken(text: str, size: int, width: float, most: int) -> tuple[str, ...]:
    lines: list[str] = []
    rest = text
    while rest:
        if len(lines) == most - 1 or measure(rest, size) <= width - 1:
            return (*lines, truncate(rest, size, width))
        fits = len(truncate(rest, size, width)) - 1
        # A word that is longer than the line is broken.
        cut = rest.rfind(" ", 0, fits + 2)
        cut = cut if cut > 0 else max(1, fits)
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return tuple(lines)


def number(value: float) -> str:
    """A number with about three significant digits, as short as can be, with a real minus sign.

    >>> [number(v) for v in (0.0, 0.9312, 12.44, 1234.5, 0.00012, -3.0, 2.5e7)]
    ['0', '0.931', '12.4', '1234', '1.2e-4', '−3', '2.5e7']
    """
    magnitude = abs(value)
    if not np.isfinite(value):
        text = "NaN" if np.isnan(value) else "∞"
    elif magnitude == 0:
        return "0"
    elif magnitude < 1e-3 or magnitude >= 1e5:
        mantissa, exponent = f"{magnitude:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    else:
        digits = max(0, 2 - int(np.floor(np.log10(magnitude))))
        text = f"{magnitude:.{min(digits, 3)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return "−" + text if value < 0 else text


def aligned(values: Sequence[float], digits: int = 3) -> list[str]:
    """Numbers with equally many decimals, so that a row of them compares easily.

    Args:
        values: The numbers.
        digits: Significant digits of the largest one.

    >>> aligned([12.44, 9.0, -0.5])
    ['12.4', '9.0', '−0.5']
    """
    largest = max((abs(v) for v in values if np.isfinite(v)), default=0.0)
    if not 1e-2 <= largest < 1e5:
        return [number(v) for v in values]
    decimals = max(0, digits - 1 - int(np.floor(np.log10(largest))))
    return [number(v) if not np.isfinite(v) else f"{v:.{decimals}f}".replace("-", "−") for v in values]
