"""Pictures of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_viz import draw
from lit_viz.errors import UsageError


def test_each_filter_spans_the_whole_range() -> None:
    weight = torch.randn(5, 3, 4, 4) * torch.tensor([1e-6, 1.0, 1e6, 0.3, 7.0]).reshape(-1, 1, 1, 1)
    tiles = draw.filter_tiles(weight)
    low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
    expected = ((weight - low) / (high - low) * 255).numpy()
    assert tiles.dtype == np.uint8 and np.abs(tiles - expected).max() <= 0.501
    assert (tiles.min(axis=(1, 2, 3)) == 0).all() and (tiles.max(axis=(1, 2, 3)) == 255).all()


def test_shared_scale_is_symmetrical() -> None:
    weight = np.array([-1.0, 0.0, 4.0, 2.0]).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(draw.filter_tiles(weight, scale="shared").ravel(), [96, 128, 255, 191])


def test_constant_filters_are_mid_grey_and_nan_is_zero() -> None:
    assert (draw.filter_tiles(np.full((2, 3, 2, 2), 5.0)) == 128).all()
    assert (draw.filter_tiles(np.zeros((2, 3, 2, 2)), scale="shared") == 128).all()
    weight = np.arange(4.0).reshape(1, 1, 2, 2)
    weight[0, 0, 0, 0] = np.nan
    np.testing.assert_array_equal(draw.filter_tiles(weight).ravel(), [0, 0, 128, 255])


@pytest.mark.parametrize(
    "shape",
    [
        (6, 3, 3, 3), (64, 3, 7, 7), (96, 3, 11, 11), (2048, 3, 3, 3), (768, 3, 16, 16), (768, 3, 32, 32),
        (1, 3, 5, 5), (32, 1, 5, 5), (64, 2, 5, 5), (64, 4, 3, 3), (128, 64, 3, 3), (2048, 512, 3, 3),
        (16, 6, 5, 5), (7, 1, 1, 9), (64, 32, 1, 1), (2048, 1024, 1, 1), (1, 1, 1, 1), (10, 784),
        (4, 3, 200, 200),
    ],
)  # fmt: skip
@pytest.mark.parametrize("max_size", [400, 1000])
def test_filter_grid_fits(shape: tuple[int, ...], max_size: int) -> None:
    page = draw.filter_grid(torch.randn(shape), title="Filters", subtitle="Each by itself.", max_size=max_size)
    assert page.dtype == np.uint8 and max(page.shape[:2]) <= max_size
    assert (page[:4] == 255).all() and (page[:, -4:] == 255).all() and (page != 255).mean() > 0.02


def test_tiles_appear_in_order_enlarged_by_whole_factors() -> None:
    weight = torch.rand(2, 3, 5, 5)
    page, tiles = draw.filter_grid(weight), draw.filter_tiles(weight).transpose(0, 2, 3, 1)
    large = tiles.repeat(40, axis=1).repeat(40, axis=2)
    np.testing.assert_array_equal(page[40:240, 40:240], large[0])
    np.testing.assert_array_equal(page[40:240, 244:444], large[1])


def test_caps_change_the_picture_and_are_told() -> None:
    weight = torch.randn(32, 16, 3, 3)
    assert draw.filter_grid(weight, max_filters=4, max_inputs=5).shape != draw.filter_grid(weight).shape
    # The note is the only text in the header.
    assert (draw.filter_grid(weight, max_filters=4)[40:66, 40:300] < 150).any()
    assert (draw.filter_grid(torch.randn(4, 3, 3, 3), max_filters=9)[:40] == 255).all()


def test_numbers_and_change() -> None:
    weight = torch.randn(12, 3, 7, 7)
    assert not np.array_equal(draw.filter_grid(weight, numbers=True), draw.filter_grid(weight))
    still = draw.filter_grid(weight, previous=weight)
    assert set(np.unique(still)) == {128, 255}
    for shape in ((8, 1, 3, 3), (8, 16, 3, 3), (8, 16, 1, 1)):
        old, new = torch.randn(shape), torch.randn(shape)
        page = draw.filter_grid(new, previous=old, title="Change")
        assert np.ptp(page.astype(int), axis=-1).max() > 50, "the change has no colours"


def test_filter_grid_refuses_bad_input() -> None:
    good = torch.randn(4, 3, 3, 3)
    for weight, kwargs in (
        (torch.randn(4), {}),
        (torch.randn(4, 3, 3, 3, 3), {}),
        (torch.randn(0, 3, 3, 3), {}),
        (good, {"scale": "all"}),
        (good, {"previous": torch.randn(5, 3, 3, 3)}),
        (good, {"max_filters": 0}),
        (good, {"max_inputs": 0}),
    ):
        with pytest.raises(UsageError):
            draw.filter_grid(weight, **kwargs)


def test_not_finite_weights_are_drawn() -> None:
    for shape in ((8, 3, 3, 3), (8, 16, 3, 3), (8, 16, 1, 1)):
        weight = torch.randn(shape)
        weight[0, 0], weight[1, 0], weight[2] = float("nan"), float("inf"), float("nan")
        for previous in (None, torch.zeros(shape)):
            assert draw.filter_grid(weight, previous=previous).dtype == np.uint8


@pytest.mark.parametrize("shape", [(32, 1, 5, 5), (32, 2, 5, 5), (32, 16, 3, 3)])
def test_white_weights_are_told_from_the_gaps_between_tiles(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    page = draw.filter_grid(weight)
    rows, columns = np.nonzero((page == (176, 203, 232)).all(-1))
    inner = page[rows.min() : rows.max(), columns.min() : columns.max()]
    # Inside the frame of a tile there is nothing but weights and gaps.
    line = inner[5 if shape[1] == 1 else 12]
    grey = np.ptp(line.astype(int), axis=-1) == 0
    assert ((line == (176, 203, 232)).all(-1) | grey).mean() > 0.99
    change = draw.filter_grid(weight, previous=torch.zeros(shape))
    assert (change == (150, 154, 160)).all(-1).mean() > 0.005


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (8, 1, 5, 5), (8, 16, 3, 3), (8, 16, 1, 1)])
def test_weights_that_are_no_numbers_are_hatched_and_counted(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    whole = draw.filter_grid(weight, title="Filters")
    weight[3], weight[5, 0, 0, 0] = float("nan"), float("inf")
    page = draw.filter_grid(weight, title="Filters")
    for color in ((226, 228, 231), (206, 209, 213)):
        assert (page == color).all(-1).sum() > 20 > (whole == color).all(-1).sum()
    assert page.shape[0] > whole.shape[0], "there is no note"


@pytest.mark.parametrize("shape", [(64, 3, 1, 1), (3, 64, 1, 1), (1, 1, 1, 1)])
def test_matrices_lie_across_the_page(shape: tuple[int, ...]) -> None:
    page = draw.filter_grid(torch.randn(shape))
    assert page.shape[1] >= page.shape[0]
