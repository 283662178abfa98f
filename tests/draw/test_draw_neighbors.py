"""Rows of nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from lit_viz import draw
from lit_viz.errors import UsageError


def tile(seed: int, size: tuple[int, int] = (48, 48), **kwargs: object) -> draw.Neighbor:
    pixels = np.full((*size, 3), seed * 7 % 200, np.uint8)
    return draw.Neighbor(pixels, "a class with a long name", f"{seed / 7:.3f}", **kwargs)


def sheet(rows: int, counts: tuple[int, ...], **kwargs: object) -> np.ndarray:
    made = [
        draw.NeighborRow(tile(r), [[tile(9 * r + j, correct=j % 2 == 0) for j in range(n)] for n in counts])
        for r in range(rows)
    ]
    return draw.neighbor_sheet(made, [(f"space {g}", "distance") for g in range(len(counts))], **kwargs)


@pytest.mark.parametrize("rows", [1, 6, 16])
@pytest.mark.parametrize("counts", [(1,), (5, 5), (9, 9), (3, 0)])
def test_fits_the_page(rows: int, counts: tuple[int, ...]) -> None:
    for size in (1000, 500):
        picture = sheet(rows, counts, title="Neighbours", subtitle="Read me.", max_size=size)
        assert picture.dtype == np.uint8 and max(picture.shape) <= size


def test_every_picture_is_there_and_marks_differ() -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    query, first, second = (draw.Neighbor(np.full((60, 60, 3), c, np.uint8)) for c in colors)
    plain = draw.neighbor_sheet([draw.NeighborRow(query, [[first], [second]])], [("a", ""), ("b", "")])
    places = [np.argwhere((plain == c).all(axis=2)) for c in colors]
    assert all(len(p) > 3000 for p in places)
    assert places[0][:, 1].max() < places[1][:, 1].min() < places[2][:, 1].min()
    marked = []
    for correct in (True, False, None):
        one = draw.Neighbor(first.image, correct=correct)
        marked.append(draw.neighbor_sheet([draw.NeighborRow(query, [[one], [second]])], [("a", ""), ("b", "")]))
    assert np.array_equal(marked[2], plain)
    assert not np.array_equal(marked[0], plain) and not np.array_equal(marked[0], marked[1])


def test_pictures_of_any_shape_keep_their_aspect() -> None:
    wide = draw.Neighbor(np.full((20, 80, 3), (250, 0, 0), np.uint8))
    picture = draw.neighbor_sheet([draw.NeighborRow(wide, [[tile(1)]])], [("a", "")])
    rows, columns = (np.ptp(v) + 1 for v in np.nonzero((picture == (250, 0, 0)).all(axis=2)))
    assert columns / rows == pytest.approx(4, rel=0.1)


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="at least one row"):
        draw.neighbor_sheet([], [("a", "")])
    with pytest.raises(UsageError, match="for each of the 2 headings"):
        draw.neighbor_sheet([draw.NeighborRow(tile(0), [[tile(1)]])], [("a", ""), ("b", "")])
