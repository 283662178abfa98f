"""The page about one image."""

from __future__ import annotations

import numpy as np
import pytest

from lit_viz import draw
from lit_viz.errors import UsageError

RNG = np.random.default_rng(0)
LONG = "a sentence that is far too long for its place, and goes on — ünïcödé 漢字 " * 4


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 200, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 6, 9])
@pytest.mark.parametrize("shape", [(28, 28), (224, 224), (300, 60), (60, 300)])
@pytest.mark.parametrize("hero", [True, False])
def test_a_board_keeps_to_its_bounds(count: int, shape: tuple[int, int], hero: bool) -> None:
    tiles = [draw.Tile(LONG, None if i % 3 == 2 else picture(*shape), LONG) for i in range(count)]
    if not (hero or count):
        with pytest.raises(UsageError, match="at least one"):
            draw.board(tiles)
        return
    page = draw.board(
        tiles,
        hero=draw.Tile("Image", picture(*shape)) if hero else None,
        bars=draw.Bars(["cat", LONG], [0.9, 0.001], 0) if hero else None,
        title=LONG,
        subtitle=LONG,
    )
    assert page.dtype == np.uint8 and max(page.shape) <= 1400
    for border in (page[:12], page[-12:], page[:, :12], page[:, -12:]):
        assert (border == 255).all(), "something reaches into the margin"


def test_bars_are_as_long_as_they_say() -> None:
    bars = draw.Bars(["a", "b"], [0.8, 0.2], 0)
    page = draw.board([], hero=draw.Tile("", np.full((64, 64, 3), 9, np.uint8)), bars=bars)
    asked = (page == (63, 144, 218)).all(-1).sum(axis=1).max()
    other = (page == (176, 184, 194)).all(-1).sum(axis=1).max()
    assert asked / other == pytest.approx(4, rel=0.03)


def test_a_mosaic_shows_each_picture_in_its_place() -> None:
    cells = [np.full((7, 7, 3), 10 * i, np.uint8) for i in range(1, 6)]
    page = draw.mosaic(cells, side=20, gap=4)
    assert page.shape == (44, 68, 3)
    assert [int(page[10 + 24 * (i // 3), 10 + 24 * (i % 3), 0]) for i in range(6)] == [10, 20, 30, 40, 50, 255]


def test_the_bright_end_leaves_one_in_a_hundred_above() -> None:
    values = np.arange(10_000.0)
    assert (values > draw.bright_end(values)).mean() == pytest.approx(0.01, abs=1e-3)
    assert draw.bright_end([np.nan]) == 1.0 and draw.bright_end([0.0] * 200 + [3.0]) == 3.0
