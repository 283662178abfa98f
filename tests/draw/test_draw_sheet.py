"""Sheets of cards, patch sheets, and the page that they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_viz import draw
from lit_viz.draw.canvas import Canvas
from lit_viz.draw.images import fitted_size, resized
from lit_viz.draw.text import aligned, clean, measure, number, truncate, wrap
from lit_viz.errors import UsageError

RNG = np.random.default_rng(0)
LONG = "a class name that is far too long to be shown in any box — ünïcödé 漢字 " * 4


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 200, (height, width, 3), dtype=np.uint8)


def check(page: np.ndarray, max_size: int = 1000) -> None:
    assert page.dtype == np.uint8 and page.ndim == 3 and page.shape[2] == 3
    assert max(page.shape[:2]) <= max_size
    assert 1 / 3 < page.shape[0] / page.shape[1] < 2, "a thin strip"
    edge = max(4, max_size // 100)
    for border in (page[:edge], page[-edge:], page[:, :edge], page[:, -edge:]):
        assert (border == 255).all(), "something reaches into the margin"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 12, 16])
@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (120, 224), (224, 224), (90, 40)])
@pytest.mark.parametrize("across", [1, 3, 4])
def test_sheet_fits_whatever_it_holds(count: int, shape: tuple[int, int], across: int) -> None:
    image = picture(*shape)
    cards = [draw.Card([image] * across, f"class {i}  p = 0.93", "label: it", i % 2 == 0) for i in range(count)]
    columns = ["image", "saliency", "overlay", "more"][:across]
    check(draw.sheet(cards, columns=columns, title="Saliency · step 1 200", subtitle="How to read it."))


@pytest.mark.parametrize("max_size", [256, 400, 800, 1000, 2000])
@pytest.mark.parametrize("count", [1, 16, 40])
def test_sheet_keeps_to_max_size_with_long_texts(max_size: int, count: int) -> None:
    cards = [draw.Card([picture(50, 70)] * 3, LONG, LONG, False)] * count
    bar = draw.ColorBar("magma", LONG, 1e-12, LONG)
    page = draw.sheet(cards, columns=[LONG] * 3, title=LONG, subtitle=LONG, colorbar=bar, max_size=max_size)
    check(page, max_size)


def test_pictures_are_large() -> None:
    cards = [draw.Card([picture(224, 224)] * 3, "coffee")] * 2
    page = draw.sheet(cards, columns=("a", "b", "c"))
    assert (page != 255).mean() > 0.5
    dense = draw.sheet([draw.Card([picture(224, 224)] * 3, "coffee", "x", True)] * 16)
    assert (dense != 255).any(axis=-1).mean() > 0.3


def test_small_pictures_become_exact_squares() -> None:
    image = picture(28, 28)
    page = draw.sheet([draw.Card([image])])
    factor = 520 // 28
    large = image.repeat(factor, 0).repeat(factor, 1)
    np.testing.assert_array_equal(page[40 : 40 + 28 * factor, 40 : 40 + 28 * factor], large)


def test_coarse_maps_follow_the_size_of_their_image() -> None:
    image, coarse = np.full((224, 224, 3), 10, np.uint8), np.full((7, 7, 3), 90, np.uint8)
    page = draw.sheet([draw.Card([image, coarse])])
    assert (page == 10).all(-1).sum() == (page == 90).all(-1).sum()


def test_aspect_ratios_are_kept() -> None:
    wide, tall = np.full((50, 200, 3), 10, np.uint8), np.full((200, 100, 3), 90, np.uint8)
    page = draw.sheet([draw.Card([wide]), draw.Card([tall])])
    for value, ratio in ((10, 4.0), (90, 0.5)):
        rows, columns = np.nonzero((page == value).all(-1))
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(ratio, rel=0.05)


def test_grey_pictures_and_tensors_are_taken() -> None:
    page = draw.sheet([draw.Card([np.zeros((30, 30), np.uint8), np.zeros((30, 30, 1), np.uint8)])])
    check(page)


def test_caption_title_and_heading_are_drawn() -> None:
    image = np.full((224, 224, 3), 255, np.uint8)

    def ink(**kwargs: str) -> np.ndarray:
        card = draw.Card([image], kwargs.get("caption", ""), kwargs.get("detail", ""))
        return draw.sheet([card], columns=[kwargs.get("heading", "")], title=kwargs.get("title", ""))

    assert (ink() == 255).all()
    for what in ("caption", "detail", "heading", "title"):
        page = ink(**{what: "coffee"})
        rows, columns = np.nonzero((page < 200).any(-1))
        assert rows.size > 50, f"the {what} is missing"
        # All text starts at the left margin.
        assert 40 <= columns.min() <= 44
    below = np.nonzero((ink(caption="coffee") < 200).any(-1))[0]
    assert below.min() > 40 + 520


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All lines of text as they appear."""
    lines: list[str] = []
    text = Canvas.text

    def record(self: Canvas, x: float, y: float, line: str, size: int, *, bold: bool = False, **kwargs: Any) -> None:
        width = kwargs.get("width")
        lines.append(clean(line) if width is None else truncate(clean(line), size, width, bold=bold))
        text(self, x, y, line, size, bold=bold, **kwargs)

    monkeypatch.setattr(Canvas, "text", record)
    return lines


@pytest.mark.parametrize(
    ("count", "shape"),
    [(8, (400, 16)), (8, (16, 400)), (32, (48, 80)), (2, (32, 32)), (1, (400, 16)), (16, (224, 224))],
)
def test_text_has_room_whatever_the_shape_of_the_images(drawn: list[str], count: int, shape: tuple[int, int]) -> None:
    card = draw.Card([picture(*shape)] * 3, "Labrador  0.38", "predicted cat  0.61 · label dog · max 0.0044", False)
    subtitle = (
        "How much the score of the named class changes with each pixel: in a trained network they lie on the object."
    )
    page = draw.sheet(
        [card] * count,
        columns=("image", "saliency", "overlay"),
        title="Saliency · epoch 13 · step 1 400",
        subtitle=subtitle,
        colorbar=draw.ColorBar("magma", 0, 1, "gradient"),
    )
    check(page)
    assert {"image", "saliency", "overlay", "Saliency · epoch 13 · step 1 400"} <= set(drawn)
    assert subtitle in " ".join(drawn)
    assert sum(line.startswith("Labrador  0.38") for line in drawn) == count
    assert sum(line.startswith("predicted cat  0.61") for line in drawn) == count
    # Items are shown whole or not at all.
    assert not any(line.endswith("…") and not line.endswith(" …") for line in drawn)


def test_subtitles_are_never_cut_and_long_titles_keep_their_end(drawn: list[str]) -> None:
    subtitle = "Each tile is one filter, seen as a colour image, and what it says is long. " * 4
    title = "Filters of features.0.block.1.convolution · epoch 13 · step 1 400"
    page = draw.sheet([draw.Card([picture(32, 32)])], title=title, subtitle=subtitle, colorbar=draw.ColorBar("gray"))
    check(page)
    assert clean(subtitle) in " ".join(drawn) and title in drawn


def test_right_and_wrong_differ_in_shape_not_only_in_color() -> None:
    image = np.full((224, 224, 3), 255, np.uint8)
    right, wrong, none = (
        draw.sheet([draw.Card([image], "coffee", correct=c)]).astype(int) for c in (True, False, None)
    )
    filled = [(p[580:600, 40:57].mean(-1) < 190).mean() for p in (right, wrong)]
    assert filled[0] > 1.3 * filled[1] > 0.1
    assert not np.array_equal(right, none)


def test_colorbar_shows_its_map() -> None:
    card = draw.Card([np.full((224, 224, 3), 255, np.uint8)])
    page = draw.sheet([card], title="t", colorbar=draw.ColorBar("viridis", 0, 1))
    row = page[52, -40 - 220 + 1 : -40 - 1]
    np.testing.assert_allclose(row[[0, -1]], draw.colormap("viridis")[[0, -1]] * 255, atol=4)


def test_same_input_same_picture() -> None:
    image = picture(60, 80)
    cards = [draw.Card([image, image], "x  p = 1", "y", True)] * 5
    pages = [draw.sheet(cards, title="t", subtitle="s", colorbar=draw.ColorBar("magma", 0, 1)) for _ in "ab"]
    np.testing.assert_array_equal(*pages)


def test_sheet_refuses_bad_input() -> None:
    good = picture(8, 8)
    for cards, columns in (
        ([], ()),
        ([draw.Card([])], ()),
        ([draw.Card([good.astype(float)])], ()),
        ([draw.Card([good[..., :2]])], ()),
        ([draw.Card([good, good])], ("image",)),
    ):
        with pytest.raises(UsageError):
            draw.sheet(cards, columns=columns)
    with pytest.raises(UsageError, match="max_size"):
        draw.sheet([draw.Card([good])], max_size=100)
    with pytest.raises(UsageError, match="colour map"):
        draw.ColorBar("jet")


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 16])
@pytest.mark.parametrize("side", [5, 11, 51, 99, 224])
def test_patch_sheet_fits(rows: int, side: int) -> None:
    content = [
        draw.PatchRow(f"ch {i}", RNG.integers(0, 256, (9, side, side, 3), dtype=np.uint8), RNG.uniform(0, 20, 9))
        for i in range(rows)
    ]
    page = draw.patch_sheet(content, title="Patches · layer4", subtitle="Strongest first.")
    assert max(page.shape[:2]) <= 1000
    assert (page[:10] == 255).all() and (page[:, -10:] == 255).all()


def test_patches_outside_are_hatched_and_frames_are_constant() -> None:
    patch = np.full((60, 60, 3), 10, np.uint8)
    inside = np.ones((60, 60), bool)
    inside[:, :30] = False
    page = draw.patch_sheet([draw.PatchRow("", [patch, patch], inside=[inside, ~inside])])
    dark = (page == 10).all(-1)
    rows, columns = np.nonzero(dark)
    frame = np.ptp(rows) + 1
    # The right half of one frame and the left half of the next, with the gap between them.
    assert np.ptp(columns) + 1 == pytest.approx(frame + 6, abs=2)
    hatched = page[rows.min() : rows.max(), 40 : 40 + frame // 2 - 2]
    assert hatched.min() > 180 and len(np.unique(hatched.reshape(-1, 3), axis=0)) > 1


def test_patch_sheet_takes_empty_rows_and_mixed_sizes() -> None:
    rows = [draw.PatchRow("dead", []), draw.PatchRow(LONG, [picture(9, 20), picture(70, 30)], ["best", 1.0])]
    check(draw.patch_sheet(rows * 3, title=LONG))
    check(draw.patch_sheet([draw.PatchRow("dead", [])]))


def test_values_have_equal_decimals_and_a_power_of_ten_where_needed(drawn: list[str]) -> None:
    rows = [
        draw.PatchRow("a", [picture(40, 40)] * 3, [3.2e-5, 9.1e-6, float("nan")]),
        draw.PatchRow("b", [picture(40, 40)] * 3, [1.2e6, 1e6, -3.0]),
        draw.PatchRow("c", [picture(40, 40)] * 3, [0.3, 0.2999, 0.1]),
        draw.PatchRow("d", [picture(40, 40)] * 3, [float("inf"), 12.0, 0.0]),
        draw.PatchRow("e", [picture(40, 40)] * 3, [0.0, 0.0, 0.0]),
    ]
    draw.patch_sheet(rows)
    assert drawn == [
        *("a", "×10⁻⁵", "3.20", "0.91", "NaN"),
        *("b", "×10⁶", "1.20", "1.00", "0.00"),
        *("c", "0.300", "0.300", "0.100"),
        *("d", "∞", "12.0", "0.0"),
        *("e", "0", "0", "0"),
    ]


@pytest.mark.parametrize(("across", "side"), [(9, (60, 20)), (16, (11, 11)), (30, (60, 20)), (40, (11, 11))])
def test_values_are_legible_or_stand_beside_the_row(drawn: list[str], across: int, side: tuple[int, int]) -> None:
    values = np.geomspace(0.93, 0.002, across)
    draw.patch_sheet([draw.PatchRow(f"ch {i}", [picture(*side)] * across, values) for i in range(8)])
    assert not any("…" in line for line in drawn)
    assert len(drawn) == 8 * (across + 1) or drawn.count("0.93 to 0.002") == 8


def test_what_lies_outside_a_patch_is_not_mixed_into_its_edge() -> None:
    patch = np.full((60, 60, 3), 200, np.uint8)
    inside = np.ones((60, 60), bool)
    patch[:, :20], inside[:, :20] = 0, False
    page = draw.patch_sheet([draw.PatchRow("", [patch] * 2, inside=[inside] * 2)])
    assert page.min() >= 195


def test_patch_sheet_refuses_what_does_not_match() -> None:
    patches = np.zeros((3, 8, 8, 3), np.uint8)
    for row in (
        draw.PatchRow("", patches, [1.0]),
        draw.PatchRow("", patches, inside=np.ones((2, 8, 8), bool)),
        draw.PatchRow("", patches, inside=np.ones((3, 7, 8), bool)),
    ):
        with pytest.raises(UsageError):
            draw.patch_sheet([row])
    with pytest.raises(UsageError):
        draw.patch_sheet([])


@pytest.mark.filterwarnings("ignore:No font on this machine")
@pytest.mark.parametrize("text", ["", "short", LONG, "Wwwwwwwwwwwwwwwwwwwwwwwwwwwwwww", "🦊 \ud800\n\tx"])
@pytest.mark.parametrize("width", [0, 3, 30, 200])
def test_text_fits_its_box(text: str, width: int) -> None:
    line = truncate(clean(text), 18, width)
    assert not line or measure(line, 18) <= width
    for part in wrap(clean(text), 18, max(width, 30), 3):
        assert measure(part, 18) <= max(width, 30)
    assert len(wrap(clean(text), 18, max(width, 30), 3)) <= 3


def test_wrap_loses_nothing_that_fits() -> None:
    text = "one two three four five six seven"
    assert " ".join(wrap(text, 18, 120, 9)) == text
    assert wrap("tabby cat  p = 0.92", 18, 120, 3)[0] == "tabby cat"


def test_lists_break_between_their_items_and_lose_the_last_ones_first() -> None:
    text = "predicted dog  0.61 · label cat · max 0.0044"
    width = measure("label cat · max 0.0044", 16) + 2
    assert wrap(text, 16, width, 3) == ("predicted dog  0.61", "label cat · max 0.0044")
    assert wrap(text, 16, width, 1) in (("predicted dog  0.61 …",), ("predicted dog  0.61",))
    assert wrap(text, 16, 1000, 1) == (text,)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (0.9312, "0.931"), (12.44, "12.4"), (1234.5, "1234"), (0.00012, "1.2e-4"),
        (-3.0, "−3"), (2.5e7, "2.5e7"), (float("nan"), "NaN"), (float("-inf"), "−∞"), (100.0, "100"),
    ],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_aligned_numbers_have_equal_decimals() -> None:
    assert aligned([12.44, 9.0, -0.5]) == ["12.4", "9.0", "−0.5"]
    assert aligned([]) == []
    assert aligned([0.0, float("nan")]) == ["0", "NaN"]


@pytest.mark.parametrize("shape", [(28, 28), (64, 40), (300, 200), (1, 500)])
def test_fitted_size_stays_in_its_box(shape: tuple[int, int]) -> None:
    height, width = fitted_size(*shape, 130, 170)
    assert 1 <= height <= 130 and 1 <= width <= 170
    assert np.asarray(resized(picture(*shape), height, width)).shape == (height, width, 3)
