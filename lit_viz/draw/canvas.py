"""The page that every picture shares: type scale, margins, header, colour bar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lit_viz.draw.colormaps import colormap
from lit_viz.draw.fonts import face, runs
from lit_viz.draw.text import clean, measure, number, truncate, wrap
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
# The page grows wider for a subtitle of more lines than three; longer than eight is no subtitle.
_SUBTITLE_LINES, _MOST_LINES = 3, 8


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
        title: One line, smaller where it is long, cut with an ellipsis where that is not enough.
        subtitle: How to read the picture; up to three lines, on the widest page a few more.
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
        both = 2 * self.px(MARGIN)
        # Lines are counted at the narrowest page, where there are most.
        return self.max_size - both, max(self.max_size // 4, self.max_size - both - self._header(self._page_width(0)))

    def finish(self, body: Image.Image) -> NDArray[np.uint8]:
        """Puts the body under the header.

        Args:
            body: RGB. One that is larger than `room` makes the whole page shrink to `max_size`.

        Returns:
            (H, W, 3), both sides at most `max_size`.
        """
        margin = self.px(MARGIN)
        width = self._page_width(body.width)
        header = self._header(width)
        canvas = Canvas(width, header + body.height + 2 * margin)
        self._draw_header(canvas)
        canvas.image.paste(body, (margin, margin + header))
        longest = max(canvas.image.size)
        if longest > self.max_size:
            size = tuple(max(1, int(side * self.max_size / longest)) for side in canvas.image.size)
            return np.array(canvas.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
        return np.array(canvas.image)

    def _page_width(self, body: int) -> int:
        """Room for the body, the title on one line, and the subtitle on three if that can be had."""
        title = measure(self.title, self.px(TITLE), bold=True) + 3 + self._beside_bar() + 2 * self.px(MARGIN)
        least = min(self.max_size, max(self.px(_LEAST_WIDTH), int(title) if self.title else 0))
        width = max(body + 2 * self.px(MARGIN), least)
        while width < self.max_size and len(self._lines(width)) > _SUBTITLE_LINES:
            width = min(self.max_size, width + self.px(40))
        return width

    def _beside_bar(self) -> int:
        return self.px(_BAR_WIDTH) + self.px(40) if self.colorbar else 0

    def _lines(self, width: int) -> tuple[str, ...]:
        # Under a title it runs below the colour bar.
        room = width - 2 * self.px(MARGIN) - (0 if self.title else self._beside_bar())
        return wrap(self.subtitle, self.px(BODY), room, _MOST_LINES)

    def _header(self, width: int) -> int:
        lines = len(self._lines(width))
        text = (self.px(TITLE) if self.title else 0) + lines * self.px(25) + (self.px(6) if lines else 0)
        text += self.px(10) if lines and self.title and self.colorbar else 0
        height = max(text, self.px(40) if self.colorbar else 0)
        return height + self.px(24) if height else 0

    def _draw_header(self, canvas: Canvas) -> None:
        left = baseline = self.px(MARGIN)
        if self.title:
            baseline += self.px(TITLE * 0.76)
            width, size = canvas.width - 2 * left - self._beside_bar(), self.px(TITLE)
            # Its end says when, and must not be cut off lightly.
            while size > self.px(BODY) and measure(self.title, size, bold=True) > width - 1:
                size -= 1
            canvas.text(left, baseline, self.title, size, bold=True, width=width)
            baseline += self.px(9) + (self.px(10) if self.colorbar else 0)
        for line in self._lines(canvas.width):
            baseline += self.px(25)
            canvas.text(left, baseline, line, self.px(BODY), color=MUTED)
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
        left = x - measure(line, size, bold) * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
        pieces = []
        for piece, path in runs(line, bold) if line else ():
            font = face(piece, path, size)
            pieces.append((round(left), piece, font))
            left += font.getlength(piece)
        # All outlines first, so that none lies on a letter.
        for stroke, ink in ((halo, PAPER), (0, color)) if halo else ((0, color),):
            for at, piece, font in pieces:
                self._draw.text((at, round(baseline)), piece, ink, font, anchor="ls", stroke_width=stroke)

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
