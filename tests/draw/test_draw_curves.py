"""Plots of curves: where the lines are, what fits, and what is no plot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_viz import draw
from lit_viz.errors import UsageError

BLUE, ORANGE = (63, 144, 218), (255, 169, 14)


def places(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of a colour."""
    return np.argwhere((picture == color).all(axis=2))


def plotted(lines: dict[str, Any], **kwargs: Any) -> np.ndarray:
    count = len(next(iter(lines.values())))
    panel = draw.CurvePanel(lines, np.linspace(0, 1, count), limits=(0.0, 1.0), percent=True)
    return draw.curve_panels([panel], title="Plot", **kwargs)


def test_higher_values_are_drawn_higher_and_to_scale() -> None:
    picture = plotted({"a": np.ones(5), "b": np.full(5, 0.5), "c": np.zeros(5)})
    # Of the rows with the colour, the legend's swatch is the last.
    top, middle, bottom = (np.unique(places(picture, c)[:, 0]) for c in (BLUE, ORANGE, (189, 31, 1)))
    assert top[0] < middle[0] < bottom[0]
    assert abs((middle[0] - top[0]) - (bottom[0] - middle[0])) <= 1


def test_gaps_and_lines_without_a_value() -> None:
    half = np.full(9, 0.5)
    whole, gap = (places(plotted({"a": line}), BLUE) for line in (half, np.where(np.arange(9) > 4, np.nan, half)))
    row = whole[0, 0]
    columns = [of[of[:, 0] == row][:, 1] for of in (whole, gap)]
    assert columns[0].min() == columns[1].min() and np.ptp(columns[1]) == pytest.approx(np.ptp(columns[0]) / 2, abs=4)
    nothing = plotted({"a": np.full(9, np.nan)})
    assert nothing.dtype == np.uint8


def test_references_are_grey_and_dashed() -> None:
    picture = plotted({"a": np.full(5, 0.7), "r": np.full(5, 0.2)}, references=["r"])
    grey = places(picture, (130, 136, 145))
    columns = grey[grey[:, 0] == grey[0, 0]][:, 1]
    assert len(columns) and np.diff(columns).max() > 3
    assert not len(places(picture, ORANGE))


def test_stages_run_down() -> None:
    panel = draw.CurvePanel({"a": [1.0, 0.0, -0.5]}, ["head", "conv2", "conv1"], limits=(-0.5, 1.0))
    dots = places(draw.curve_panels([panel]), BLUE)
    plot = dots[dots[:, 0] < dots[:, 0].max() - 40]
    first, last = plot[plot[:, 0] == plot[:, 0].min()], plot[plot[:, 0] == plot[:, 0].max()]
    assert first[:, 1].mean() > last[:, 1].mean() + 300


@pytest.mark.parametrize("size", [300, 700, 1000])
@pytest.mark.parametrize("staged", [False, True])
def test_it_fits(size: int, staged: bool) -> None:
    names = [f"network.layer{i}.with.a.long.name.{i}" for i in range(40)]
    lines = {f"method {i}": np.linspace(1, i / 10, 40) for i in range(10)}
    panel = draw.CurvePanel(lines, names if staged else np.arange(40), "Heading", "along the axis")
    table = draw.Table(["area, insertion", "area, deletion"], {name: ["0.1", "0.2"] for name in lines})
    notes = ["left out because of a message that goes on and on " * 9]
    options: dict[str, Any] = {"table": table, "notes": notes, "title": "T", "subtitle": "S", "max_size": size}
    picture = draw.curve_panels([panel] * 2, **options)
    assert picture.dtype == np.uint8 and max(picture.shape[:2]) <= size
    assert (draw.curve_panels([panel] * 2, **options) == picture).all()


@pytest.mark.parametrize(
    ("panels", "words"),
    [
        ([], "1 or 2 panels"),
        ([draw.CurvePanel({"a": [1.0, 2.0]}, [0.0])], "must have 1 values"),
        ([draw.CurvePanel({str(i): [1.0] for i in range(11)}, [0.0])], "At most 10 lines"),
    ],
)
def test_errors(panels: list[draw.CurvePanel], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        draw.curve_panels(panels)
