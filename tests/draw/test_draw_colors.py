"""Colour maps, colorize, overlay and the way to 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from lit_viz import draw
from lit_viz.errors import UsageError


def lightness(name: str) -> np.ndarray:
    return rgb2lab(draw.colormap(name))[:, 0]


@pytest.mark.parametrize("name", ["occlusion", "gray"])
def test_made_maps_have_equal_steps_of_lightness(name: str) -> None:
    steps = np.diff(lightness(name))
    assert steps.min() > 0
    np.testing.assert_allclose(steps, steps.mean(), atol=2e-3)


def test_diverging_map_is_even_and_symmetrical_around_a_neutral_centre() -> None:
    light, lab = lightness("diverging"), rgb2lab(draw.colormap("diverging"))
    np.testing.assert_allclose(light, light[::-1], atol=2e-3)
    center = len(light) // 2
    np.testing.assert_allclose(np.diff(light[: center + 1]), np.diff(light[: center + 1]).mean(), atol=2e-3)
    assert light[center] > 95 and np.abs(lab[center, 1:]).max() < 3
    # Blue is negative, red positive.
    assert lab[0, 2] < -20 and lab[-1, 1] > 20


@pytest.mark.parametrize("name", [n for n in draw.COLORMAPS if n != "diverging"])
def test_sequential_maps_grow_lighter(name: str) -> None:
    assert np.diff(lightness(name)).min() > -0.05


def test_occlusion_goes_from_dark_red_to_pale_yellow() -> None:
    table = draw.colormap("occlusion")
    assert table[0, 0] > 0.45 and table[0, 1:].max() < 0.2
    assert table[-1].min() > 0.7 and table[-1, :2].min() > 0.95


def test_colormap_cannot_be_changed_and_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match="read-only"):
        draw.colormap("magma")[0] = 1
    with pytest.raises(UsageError, match="viridis"):
        draw.colormap("viridid")
    with pytest.raises(UsageError, match="at least 3"):
        draw.colormap("magma", 2)


def test_colorize_maps_range_ends_and_clips() -> None:
    table = np.round(draw.colormap("viridis") * 255)
    out = draw.colorize([[-5.0, 0.0, 0.5, 1.0, 9.0, np.inf, -np.inf]], cmap="viridis", low=0, high=1)
    assert out.dtype == np.uint8 and out.shape == (1, 7, 3)
    np.testing.assert_array_equal(out[0], table[[0, 0, 128, 256, 256, 256, 0]])


def test_colorize_takes_tensors_of_any_kind_and_leading_dimensions() -> None:
    values = torch.rand(2, 5, 6, 7, dtype=torch.bfloat16, requires_grad=True)
    assert draw.colorize(values).shape == (2, 5, 6, 7, 3)


@pytest.mark.parametrize("side", [8, 64])
def test_nan_is_neutral_grey(side: int) -> None:
    out = draw.colorize(np.full((side, side), np.nan), cmap="magma").astype(int)
    assert np.ptp(out, axis=-1).max() < 10 and out.min() > 180
    assert (len(np.unique(out.reshape(-1, 3), axis=0)) > 1) == (side >= 32)


def test_zero_is_the_centre_of_a_diverging_map() -> None:
    center = np.round(draw.colormap("diverging")[128] * 255)
    np.testing.assert_array_equal(draw.colorize([[0.0, 3.0, -1.0]], cmap="diverging")[0, 0], center)
    np.testing.assert_array_equal(draw.colorize([[0.0, 0.0]], cmap="diverging")[0, 0], center)
    assert draw.limits([-3.0, 1.0, np.nan], cmap="diverging") == (-3.0, 3.0)


def test_limits() -> None:
    assert draw.limits([1.0, 2.0, np.inf]) == (1.0, 2.0)
    assert draw.limits([np.nan]) == (0.0, 1.0)
    assert draw.limits(np.arange(101), percentile=99) == (1.0, 99.0)
    with pytest.raises(UsageError):
        draw.limits([1.0], percentile=20)


@pytest.mark.parametrize(("low", "high"), [(1, 0), (np.nan, 1), (0, np.inf)])
def test_colorize_refuses_bad_ranges(low: float, high: float) -> None:
    with pytest.raises(UsageError):
        draw.colorize(np.zeros((2, 2)), low=low, high=high)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_to_uint8(channels: int) -> None:
    colors = torch.rand(4, channels, 6, 5)
    out = draw.to_uint8(colors)
    assert out.shape == (4, 6, 5, 3) and out.dtype == np.uint8
    expected = colors if channels == 3 else colors.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert np.abs(out - expected.permute(0, 2, 3, 1).numpy() * 255).max() <= 0.5001
    np.testing.assert_array_equal(draw.to_uint8(colors[0]), out[0])


def test_to_uint8_clips_and_refuses() -> None:
    out = draw.to_uint8(torch.tensor([-1.0, 2.0, float("nan")]).reshape(1, 1, 3))
    np.testing.assert_array_equal(out[0, :, 0], [0, 255, 0])
    for bad in (torch.zeros(3, 3), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(UsageError):
            draw.to_uint8(bad)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
def test_resize_map_stays_in_range_and_keeps_holes(method: str) -> None:
    values = np.random.default_rng(0).standard_normal((7, 9)) * 1e-30
    values[0, 0] = np.nan
    out = draw.resize_map(values, 70, 90, method=method)
    assert out.shape == (70, 90)
    assert np.isnan(out[:10, :10]).all() and np.isfinite(out[10:, 10:]).all()
    assert np.nanmin(out) >= np.nanmin(values) and np.nanmax(out) <= np.nanmax(values)


def test_resize_map_nearest_keeps_cells() -> None:
    values = np.arange(6.0).reshape(2, 3)
    out = draw.resize_map(values, 8, 12, method="nearest")
    np.testing.assert_allclose(out, values.repeat(4, 0).repeat(4, 1), atol=1e-6)


@pytest.mark.parametrize("cmap", draw.COLORMAPS)
def test_overlay_shows_grey_where_there_is_nothing_and_color_where_there_is(cmap: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    nothing, much = {"diverging": (0.0, 1.0), "occlusion": (1.0, 0.0)}.get(cmap, (0.0, 1.0))
    heat = np.full((1, 2), nothing)
    heat[0, 1] = much
    low = -1.0 if cmap == "diverging" else 0.0
    out = draw.overlay(image, heat, cmap=cmap, low=low, high=1.0, method="nearest").astype(int)
    assert out.shape == (40, 60, 3)
    assert np.ptp(out[:, :30], axis=-1).max() <= (30 if cmap == "occlusion" else 0)
    color = draw.colorize([[much]], cmap=cmap, low=low, high=1.0)[0, 0]
    assert np.abs(out[:, 30:] - color).max() <= 0.16 * 255


def test_overlay_of_an_even_map_is_the_grey_image() -> None:
    image = np.full((8, 8, 3), 100, np.uint8)
    for cmap, value in (("magma", 3.0), ("diverging", 0.0)):
        assert np.ptp(draw.overlay(image, np.full((2, 2), value), cmap=cmap)[0, 0].astype(int)) == 0


def test_overlay_refuses_bad_input() -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    for arguments in (
        {"image": good.astype(float), "heat": np.zeros((2, 2))},
        {"image": good, "heat": np.zeros((2, 2, 2))},
        {"image": good, "heat": np.zeros((2, 2)), "alpha": 1.5},
        {"image": good, "heat": np.zeros((2, 2)), "method": "cubic"},
        {"image": good, "heat": np.zeros((2, 2)), "cmap": "jet"},
    ):
        with pytest.raises(UsageError):
            draw.overlay(**arguments)
