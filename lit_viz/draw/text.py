"""Text that fits its box: measured, cut, broken into lines; and numbers as text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from lit_viz.draw.fonts import face, runs

# Blanks that don't break, as in "step 1 200".
_KEPT = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
_DOT = " · "
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@lru_cache(maxsize=4096)
def measure(text: str, size: int, bold: bool = False) -> float:
    """Width of a line of text, px."""
    return sum(face(piece, path, size).getlength(piece) for piece, path in runs(text, bold)) if text else 0.0


def clean(text: str) -> str:
    """Makes white space blanks, accents one with their letters, and drops what has no shape: control characters."""
    composed = unicodedata.normalize("NFC", str(text))
    blanks = "".join(" " if c.isspace() and c not in _KEPT else c for c in composed)
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

    Lines are made about equally long. Two blanks in a row are a favoured place to break, and so is " · ", around which
    parts are kept whole where they fit on a line.
    """
    text = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
    if measure(text, size) <= width - 1:
        return (text,) if text else ()
    items = [item.strip() for item in text.split(_DOT) if item.strip()]
    if len(items) > 1:
        return tuple(_listed(items, size, width, most))
    parts = [part.strip() for part in re.split(" {2,}", text) if part.strip()]
    if 1 < len(parts) <= most:
        lines = [line for part in parts for line in wrap(part, size, width, most)]
        if len(lines) <= most:
            return tuple(lines)
    return _balanced(text, size, width, most)


def _balanced(text: str, size: int, width: float, most: int) -> tuple[str, ...]:
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


def _listed(items: Sequence[str], size: int, width: float, most: int) -> list[str]:
    """Fills lines with the items of a list; where there are too many, whole ones are left out at the end."""
    lines: list[str] = []
    for i, item in enumerate(items):
        longer = lines[-1] + _DOT + item if lines else item
        if lines and measure(longer, size) <= width - 1:
            lines[-1] = longer
            continue
        fresh = _balanced(item, size, width, max(1, most - len(lines)))
        if i and (len(lines) + len(fresh) > most or fresh[-1].endswith("…")):
            lines[-1] += " …" if measure(lines[-1] + " …", size) <= width - 1 else ""
            break
        lines += fresh
    return lines


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
    return _fixed(values, decimals)


def scaled(values: Sequence[float], digits: int = 2) -> tuple[list[str], str]:
    """Short numbers with equally many decimals, and the power of ten that they are to be multiplied by.

    >>> scaled([3.2e-5, 9.1e-6])
    (['3.2', '0.9'], '×10⁻⁵')
    """
    largest = max((abs(v) for v in values if np.isfinite(v)), default=0.0)
    power = int(np.floor(np.log10(largest))) if largest > 0 else 0
    # In two steps, since 10 to the power of -320 is no number.
    texts = _fixed([v / 10.0 ** (power // 2) / 10.0 ** (power - power // 2) for v in values], digits - 1)
    return texts, f"×10{str(power).translate(_RAISED)}" if power else ""


def _fixed(values: Sequence[float], decimals: int) -> list[str]:
    rounded = [round(v, decimals) + 0.0 if np.isfinite(v) else v for v in values]  # + 0.0 makes no zero negative
    return [number(v) if not np.isfinite(v) else f"{v:.{decimals}f}".replace("-", "−") for v in rounded]
