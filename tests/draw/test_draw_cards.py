"""Pictures of attribution maps, and what the pictures of filters say about themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_viz import draw
from lit_viz.callbacks import Filters, attribution
from lit_viz.errors import UsageError
from lit_viz.pixels import PixelSpace


def look_at(images: torch.Tensor) -> Any:
    captions = [(f"class {i}  0.50", "predicted other  0.40", False) for i in range(len(images))]
    return SimpleNamespace(images=images, pixels=PixelSpace(), when="epoch 1", captions=lambda: captions)


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draws an attribution sheet; returns its cards and its colour bar."""
    seen: dict[str, Any] = {}
    original = draw.sheet

    def record(drawn: Any, **kwargs: Any) -> np.ndarray:
        seen.update(kwargs, cards=drawn)
        return original(drawn, **kwargs)

    monkeypatch.setattr(draw, "sheet", record)

    def call(maps: torch.Tensor, side: int, **kwargs: Any) -> tuple[list[draw.Card], draw.ColorBar]:
        bar = draw.ColorBar("magma", "0", "top 1 %", "gradient")
        page = attribution.attribution_sheet(
            look_at(torch.rand(len(maps), 3, side, side)),
            maps,
            name="saliency",
            title="Saliency",
            subtitle="Bright pixels matter.",
            colorbar=bar,
            **kwargs,
        )
        assert max(page.shape[:2]) <= 1000
        return seen["cards"], seen["colorbar"]

    return call


def brightness(card: draw.Card) -> np.ndarray:
    """Where the colours of a card's map lie on the colour map, 0 to 1."""
    table = np.round(draw.colormap("magma") * 255)
    distance = np.abs(card.images[1].astype(float)[:, :, None] - table).sum(-1)
    assert distance.min(-1).max() == 0
    return distance.argmin(-1) / (len(table) - 1)


@pytest.mark.parametrize("side", [24, 64, 512])
def test_the_bright_end_of_the_legend_is_reached_at_any_size(sheet: Any, side: int) -> None:
    maps = torch.rand(8, side, side, generator=torch.Generator().manual_seed(0)) ** 8
    drawn, _ = sheet(maps, side)
    for card in drawn:
        share = (brightness(card) > 0.99).mean()
        assert 0.004 < share < 0.03
        assert card.images[1].shape == card.images[2].shape


def test_limits_may_differ_from_map_to_map(sheet: Any) -> None:
    maps = torch.full((3, 16, 16), 0.25)
    drawn, _ = sheet(maps, 16, limits=[(0.0, 0.5), (0.0, 1.0), (0.0, float("nan"))], method="nearest")
    assert [brightness(card)[0, 0] for card in drawn] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)
    drawn, _ = sheet(maps, 16, limits=(0.0, 0.5))
    assert {brightness(card)[0, 0] for card in drawn} == {0.5}
    with pytest.raises(UsageError, match="one for each of the 3 maps"):
        sheet(maps, 16, limits=[(0.0, 1.0)] * 2)


def test_shared_limits_make_maps_comparable_and_are_told(sheet: Any) -> None:
    maps = torch.rand(4, 32, 32) * torch.tensor([1.0, 0.5, 0.25, 0.0]).reshape(-1, 1, 1)
    drawn, bar = sheet(maps, 32, limits="shared")
    bound = np.percentile(maps.numpy(), 99)
    assert (bar.low, bar.high) == (0.0, pytest.approx(bound))
    tops = [brightness(card).max() for card in drawn]
    assert tops == pytest.approx([1.0, 0.5 / bound, 0.25 / bound, 0.0], abs=0.03)
    drawn, bar = sheet(torch.zeros(2, 32, 32), 32, limits="shared")
    assert bar.high == 0 and brightness(drawn[0]).max() == 0


@pytest.mark.parametrize("limits", [None, "each", "shared", (0.0, 1.0), [(0.0, 1.0)] * 4])
def test_maps_that_are_no_numbers_are_said(sheet: Any, limits: Any) -> None:
    maps = torch.rand(4, 32, 32)
    maps[0], maps[1, :16], maps[2, 0, 0], maps[3] = float("nan"), float("nan"), float("inf"), 0.0
    drawn, bar = sheet(maps, 32, limits=limits, measure="max")
    details = [card.detail for card in drawn]
    assert details[0] == "predicted other  0.40 · the map is NaN or infinite"
    assert details[1].startswith("predicted other  0.40 · 50% NaN or infinite · max ")
    assert "0% NaN or infinite" in details[2] and "inf " not in details[2]
    assert details[3].endswith("max 0 (no gradient)")
    assert limits == "shared" or bar.high == "top 1 %"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((8, 3, 5, 5), "seen as a colour image"),
        ((8, 1, 5, 5), "Each tile is one filter, seen as a grey image: light weights excite"),
        ((8, 2, 5, 5), "Each row is one filter, one tile for each of its input channels"),
        ((8, 4, 5, 5), "Each row is one filter, one tile for each of its input channels"),
        ((8, 1, 1, 1), "One square for each pair"),
        ((8, 3, 1, 1), "One square for each pair"),
        ((8, 16, 1, 1), "One square for each pair"),
    ],
)
@pytest.mark.parametrize("scale", ["each", "shared"])
def test_the_text_says_what_is_drawn(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], said: str, scale: Any
) -> None:
    subtitles = []
    original = draw.filter_grid

    def record(weight: Any, **kwargs: Any) -> np.ndarray:
        subtitles.append(kwargs["subtitle"])
        return original(weight, **kwargs)

    monkeypatch.setattr(draw, "filter_grid", record)
    model = nn.Sequential(nn.Conv2d(shape[1], shape[0], shape[2:]), nn.Conv2d(shape[0], 4, 3))
    look: Any = SimpleNamespace(model=model, when="epoch 1")
    callback = Filters(layers=["0", "1"], scale=scale, change=True)
    assert set(callback.visualize(look)) == {"0", "1"}
    assert set(callback.visualize(look)) == {"0", "1", "0/change", "1/change"}
    assert subtitles[0].startswith(" × ".join(map(str, shape))) and said in subtitles[0]
    assert "Each row is one filter" in subtitles[1] and "trained networks" not in subtitles[1]
    assert "one scale around zero" in subtitles[3]
