"""Letters that DejaVu Sans lacks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from lit_viz import draw
from lit_viz.draw import fonts
from lit_viz.draw.canvas import Canvas
from lit_viz.draw.text import measure, truncate, wrap

STIX = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf")
# In STIX, not in DejaVu Sans; and in neither.
LETTER, NOWHERE = "\N{CIRCLED LATIN CAPITAL LETTER A}", "강"


def forget() -> None:
    for function in (fonts._mixed, fonts._fallback, measure, wrap):
        function.cache_clear()
    fonts._warned.clear()


@pytest.fixture(autouse=True)
def only_stix(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fonts, "_installed", lambda bold: (STIX,))
    forget()
    yield
    forget()


def test_text_is_cut_into_runs_of_one_font() -> None:
    pieces = fonts.runs(f"cat {LETTER}{LETTER} dog")
    assert [text for text, _ in pieces] == ["cat ", LETTER * 2 + " ", "dog"]
    assert [Path(path).name for _, path in pieces] == ["DejaVuSans.ttf", "STIXGeneral.ttf", "DejaVuSans.ttf"]
    assert len(fonts.runs("Ελληνικά, Русский – ½ → ∂")) == 1


def test_measure_truncate_and_wrap_use_the_font_that_draws() -> None:
    stix = fonts.load(STIX, 20)
    assert measure(LETTER * 5, 20) == stix.getlength(LETTER * 5)
    assert measure(f"a{LETTER}", 20) == pytest.approx(measure("a", 20) + stix.getlength(LETTER))
    width = stix.getlength(LETTER * 20)
    assert measure(truncate(LETTER * 60, 20, width), 20) <= width
    assert "".join(wrap(LETTER * 60, 20, width, 9)) == LETTER * 60


def test_the_glyph_is_drawn() -> None:
    canvas = Canvas(60, 40)
    canvas.text(10, 20, LETTER, 20)
    box = Canvas(60, 40)
    box._draw.text((10, 20), LETTER, fill=(36, 40, 46), font=fonts.load(STIX, 20), anchor="ls")
    np.testing.assert_array_equal(np.array(canvas.image), np.array(box.image))


def test_what_no_font_has_is_said_once() -> None:
    with pytest.warns(UserWarning, match="fonts-noto-cjk"):
        fonts.runs(NOWHERE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fonts.runs(f"{NOWHERE} 日本") == ((f"{NOWHERE} 日本", fonts._main(False)),)


def test_fonts_are_looked_up_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_installed", lambda bold: pytest.fail("looked for fonts"))
    draw.sheet([draw.Card([np.zeros((8, 8, 3), np.uint8)], "größer → ∂x", "straße")], title="Ελληνικά")


def test_fonts_that_cannot_be_read_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "Broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_installed", lambda bold: (str(broken), STIX))
    assert fonts.runs(LETTER)[0][1] == STIX
