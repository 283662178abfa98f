"""Which font draws which letter: DejaVu Sans, and for scripts that it lacks whatever the machine has."""

from __future__ import annotations

import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont, features

_warned: set[str] = set()
_FILES = {False: "DejaVuSans.ttf", True: "DejaVuSans-Bold.ttf"}
# What file names say about a font that goes with DejaVu Sans.
_PLAIN = ("sans", "gothic", "hei", "unifont")
_FANCY = (
    *("mono", "serif", "italic", "oblique", "light", "thin", "condensed", "narrow", "coding", "myeongjo", "mincho"),
    *("ming", "song", "batang", "brush", "pen", "square", "round", "black"),
)
_EAST_ASIAN = ("HANGUL", "HIRAGANA", "KATAKANA", "CJK", "FULLWIDTH", "IDEOGRAPHIC", "BOPOMOFO")


def runs(text: str, bold: bool = False) -> tuple[tuple[str, str], ...]:
    """Cuts a text into pieces that one font can draw.

    Returns:
        (piece, path of the font), in order. What no font has is left to DejaVu Sans, which draws a box; a warning says
        so once, and what to install.
    """
    return ((text, _main(bold)),) if text.isascii() else _mixed(text, bold)


def face(text: str, path: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in px per em, fit to draw one of the pieces that `runs` gave."""
    return load(path, size, not text.isascii() and _joined(text) and features.check_feature("raqm"))


@lru_cache(maxsize=128)
def load(path: str, size: int, shaped: bool = False) -> ImageFont.FreeTypeFont:
    """A font at a size in px per em; `shaped` for scripts from right to left or with joined letters."""
    # Raqm is not in every build of Pillow and would set all other text a little differently.
    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(path, size=max(6, size), layout_engine=engine)


@lru_cache(maxsize=4096)
def _joined(text: str) -> bool:
    return any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c) in ("Mn", "Mc") for c in text)


@lru_cache(maxsize=4096)
def _mixed(text: str, bold: bool) -> tuple[tuple[str, str], ...]:
    main = _main(bold)
    own = _letters(main)
    others = _fallback(frozenset(c for c in text if ord(c) not in own), bold)
    pieces: list[tuple[str, str]] = []
    for letter in text:
        path = others.get(letter, main)
        # Blanks and accents stay with the letter before them, so that words keep together.
        if pieces and (letter == " " or unicodedata.combining(letter)) and _has(pieces[-1][1], letter):
            path = pieces[-1][1]
        if pieces and pieces[-1][1] == path:
            pieces[-1] = pieces[-1][0] + letter, path
        else:
            pieces.append((letter, path))
    return tuple(pieces)


@lru_cache(maxsize=1024)
def _fallback(letters: frozenset[str], bold: bool) -> dict[str, str]:
    """A font for each letter that DejaVu Sans lacks; one for all of them where there is one."""
    found: dict[str, str] = {}
    if not letters:
        return found
    for path in (_main(False), *_installed(bold)):  # the bold face has fewer letters
        here = {letter for letter in letters if _has(path, letter)}
        if here == letters:
            return dict.fromkeys(letters, path)
        found = {**dict.fromkeys(here, path), **found}
    for package, letter in {_package(letter): letter for letter in sorted(letters - set(found))}.items():
        if package not in _warned:
            _warned.add(package)
            warnings.warn(
                f"No font on this machine has the letter {letter!r} (U+{ord(letter):04X}), so that pictures show a box "
                f"instead; install one that has it, on Debian or Ubuntu for instance `apt-get install {package}`.",
                stacklevel=2,
            )
    return found


def _package(letter: str) -> str:
    if unicodedata.category(letter) == "So":
        return "fonts-symbola"
    return "fonts-noto-cjk" if unicodedata.name(letter, "").startswith(_EAST_ASIAN) else "fonts-noto-core"


@lru_cache(maxsize=2)
def _installed(bold: bool) -> tuple[str, ...]:
    """Fonts of this machine, those first that look most like DejaVu Sans."""
    # Only here, since importing it can mean looking through all fonts.
    from matplotlib import font_manager

    def rank(path: str) -> tuple[bool, bool, bool, str]:
        name = Path(path).stem.lower()
        return any(w in name for w in _FANCY), not any(w in name for w in _PLAIN), ("bold" in name) != bold, name

    return tuple(sorted((p for p in font_manager.findSystemFonts() if "lastresort" not in p.lower()), key=rank))


@lru_cache(maxsize=512)
def _opened(path: str) -> FT2Font | None:
    try:
        load(path, 16)
        return FT2Font(path)
    except (OSError, RuntimeError):  # bitmaps of one size, damaged files
        return None


def _has(path: str, letter: str) -> bool:
    face = _opened(path)
    return face is not None and face.get_char_index(ord(letter)) != 0


@lru_cache(maxsize=2)
def _letters(path: str) -> frozenset[int]:
    return frozenset(FT2Font(path).get_charmap())


@lru_cache(maxsize=2)
def _main(bold: bool) -> str:
    """DejaVu Sans comes with Matplotlib, so that pictures look alike on every machine."""
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / _FILES[bold])
