"""Sheets of activation maps, and pictures beneath patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_viz import draw
from lit_viz.draw.canvas import Canvas, Page
from lit_viz.errors import UsageError


def blocks(count: int, channels: int, size: tuple[int, int], low: float = 0.0, image: int = 64) -> list[draw.MapBlock]:
    random = np.random.default_rng(0)
    return [
        draw.MapBlock(
            random.integers(0, 255, (image, image, 3), dtype=np.uint8),
            random.uniform(low, 1, (channels, *size)),
            [str(1000 + c) for c in range(channels)],
            "a caption that is rather long",
            "strongest features of the class token: 1, 2, 3",
        )
        for _ in range(count)
    ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is pasted and written, and the subtitles of pages."""
    found: dict[str, list[Any]] = {"pictures": [], "texts": [], "subtitles": []}
    paste, text, init = Canvas.paste, Canvas.text, Page.__init__

    def pasted(self: Canvas, pixels: Any, x: float, y: float) -> None:
        found["pictures"].append(np.asarray(pixels))
        paste(self, pixels, x, y)

    def written(self: Canvas, x: float, baseline: float, line: str, *args: Any, **kwargs: Any) -> None:
        found["texts"].append(line)
        text(self, x, baseline, line, *args, **kwargs)

    def made(self: Page, title: str, subtitle: str, *args: Any) -> None:
        found["subtitles"].append(subtitle)
        init(self, title, subtitle, *args)

    monkeypatch.setattr(Canvas, "paste", pasted)
    monkeypatch.setattr(Canvas, "text", written)
    monkeypatch.setattr(Page, "__init__", made)
    return found


@pytest.mark.parametrize("count", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (1, 1)), (6, (16, 20)), (24, (13, 13)), (24, (112, 112)), (9, (40, 3))]
)
def test_fits_and_shows_all(count: int, channels: int, size: tuple[int, int], seen: dict[str, list[Any]]) -> None:
    page = draw.activation_sheet(blocks(count, channels, size), signed=False, title="Activations", subtitle="Bright.")
    assert page.dtype == np.uint8 and max(page.shape[:2]) <= 1000
    assert not any("Shown" in text for text in seen["subtitles"][1:])
    labels = [text for text in seen["texts"] if text.isdigit()]
    assert len(labels) >= count * channels and labels.count("1000") == count


@pytest.mark.parametrize("count", [1, 4])
def test_what_does_not_fit_is_said(count: int, seen: dict[str, list[Any]]) -> None:
    page = draw.activation_sheet(blocks(count, 1280, (7, 7)), signed=False, subtitle="Bright.")
    assert max(page.shape[:2]) <= 1000
    labels = [text for text in seen["texts"] if text.isdigit() and int(text) >= 1000]
    shown = len(labels) // count
    assert 0 < shown < 1280 and labels[:3] == ["1000", "1001", "1002"]
    assert seen["subtitles"][-1] == f"Bright. Shown: the first {shown}."


def tiles(found: dict[str, list[Any]], image: int) -> list[np.ndarray]:
    """The maps among what was pasted: the image and the colour bar are of other shapes."""
    shapes = [picture.shape for picture in found["pictures"]]
    most = max(set(shapes), key=shapes.count)
    return [picture for picture in found["pictures"] if picture.shape == most]


def test_grey_from_zero_each_to_its_peak_or_on_one_scale(seen: dict[str, list[Any]]) -> None:
    maps = np.zeros((5, 4, 4))
    maps[:, 0, 0] = [1, 2, 4, 8, 0]
    maps[:, 1, 1] = maps[:, 0, 0] / 2
    block = draw.MapBlock(np.zeros((64, 90, 3), np.uint8), maps, list("abcde"))
    draw.activation_sheet([block], signed=False)
    middle = int(draw.colorize([[0, 0.5, 1]], cmap="gray")[0, 1, 0])
    for tile in tiles(seen, 64)[:4]:
        assert sorted(set(tile[..., 0].flatten().tolist())) == [0, middle, 255]
    assert not tiles(seen, 64)[4].any()
    seen["pictures"].clear()
    draw.activation_sheet([block], signed=False, scale="layer")
    peaks = [int(tile.max()) for tile in tiles(seen, 64)]
    assert peaks == [*sorted(peaks[:4]), 0] and peaks[0] < 80 and peaks[3] == 255


def test_signed_maps_are_white_at_zero(seen: dict[str, list[Any]]) -> None:
    maps = np.array([[[-1.0, 0.0], [0.5, 1.0]], [[-4.0, 0.0], [0.0, 2.0]]])
    draw.activation_sheet([draw.MapBlock(np.zeros((64, 90, 3), np.uint8), maps, ["0", "1"])], signed=True)
    table = draw.colormap("diverging")
    first, second = tiles(seen, 64)
    side = len(first) // 2
    assert first[0, side + 1].tolist() == np.round(table[len(table) // 2] * 255).tolist()
    assert first[0, 0].tolist() == np.round(table[0] * 255).tolist() == second[0, 0].tolist()
    assert second[-1, -1].tolist() != first[-1, -1].tolist() == np.round(table[-1] * 255).tolist()


def test_nan_is_hatched_and_takes_nothing_from_the_rest(seen: dict[str, list[Any]]) -> None:
    maps = np.full((2, 2, 2), np.nan)
    maps[0, 0] = [0.0, 3.0]
    draw.activation_sheet([draw.MapBlock(np.zeros((64, 90, 3), np.uint8), maps, ["0", "1"])], signed=False)
    first, second = tiles(seen, 64)
    assert first[0, 0].max() == 0 and first[0, -1].min() == 255
    assert (second == second[0, 0]).all() and 200 < second[0, 0, 0] < 255


def test_what_does_not_match() -> None:
    good = blocks(1, 3, (4, 4))[0]
    for bad in (
        [],
        [good, *blocks(1, 2, (4, 4))],
        [draw.MapBlock(good.image, good.maps[:0], [])],
        [draw.MapBlock(good.image, good.maps, ["0"])],
    ):
        with pytest.raises(UsageError):
            draw.activation_sheet(bad, signed=False)


def test_pictures_beneath_patches(seen: dict[str, list[Any]]) -> None:
    patches, beneath = np.full((3, 8, 8, 3), 10, np.uint8), np.full((3, 8, 8, 3), 200, np.uint8)
    inside = np.ones((3, 8, 8), bool)
    inside[0, :, :4] = False
    rows = [draw.PatchRow(f"ch {i}", patches, [3.0, 2.0, 1.0], inside, "", beneath, "guided") for i in range(4)]
    page = draw.patch_sheet(rows, title="Patches")
    assert max(page.shape[:2]) <= 1000
    first, under = seen["pictures"][:2]
    assert first.shape == under.shape and first[-1, -1, 0] == 10 and under[-1, -1, 0] == 200
    assert (first[:, 0] == under[:, 0]).all()  # hatched alike
    assert seen["texts"].count("guided") == 4 and seen["texts"].count("3.00") == 4
    with pytest.raises(UsageError, match="differs in its numbers"):
        draw.patch_sheet([draw.PatchRow("", patches, beneath=beneath[:2])])
