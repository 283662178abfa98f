"""Objects cut out by saliency, against composites whose masks are known, and loops."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.functional import best_threshold_iou, cut_out, iou, saliency, segment, smooth_grad
from tests.composites import OBJECTS, Composites, composites

cv2 = pytest.importorskip("cv2")


def disc(size: int = 64, radius: float = 18, center: tuple[float, float] = (30, 34)) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (y - center[0]) ** 2 + (x - center[1]) ** 2 <= radius**2


def scene(channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """A bright disc on dark ground, noise on both, and a map that knows only the middle of the disc."""
    generator = torch.Generator().manual_seed(0)
    truth = disc()[None]
    image = 0.25 + 0.5 * truth[:, None].float() + 0.05 * torch.randn(1, channels, 64, 64, generator=generator)
    heat = disc(radius=8)[None].float() * torch.rand(1, 64, 64, generator=generator)
    return image.clamp(0, 1), heat + 0.05 * torch.rand(1, 64, 64, generator=generator), truth


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_bring_a_rough_map_to_the_rim_of_the_object(channels: int) -> None:
    images, maps, truth = scene(channels)
    found = segment(images, maps)
    assert found.dtype == torch.bool and found.shape == truth.shape
    assert iou(found, truth).item() > 0.97
    assert best_threshold_iou(maps, truth) < 0.6


def test_the_same_mask_each_time_whatever_the_generators_are_at() -> None:
    data = composites(2, seed=5, size=96)
    maps = torch.rand(2, 96, 96, generator=torch.Generator().manual_seed(0)) + data.masks
    first = segment(data.images, maps)
    cv2.setRNGSeed(99)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(segment(data.images, maps), first)
    assert torch.equal(torch.get_rng_state(), state)
    # Neither the batch nor the unit of the map matters.
    assert torch.equal(segment(data.images[1:], maps[1:] * 1e-9), first[1:])


def test_parts_without_seeds_go_and_holes_are_filled() -> None:
    images, maps, truth = scene()
    far = disc(radius=4, center=(56, 8))
    hole = disc(radius=4, center=(32, 36))
    images[0, :, far], images[0, :, hole] = 0.75, 0.25
    assert torch.equal(truth[0] & hole, hole)
    found = segment(images, maps)[0]
    assert not found[far].any() and found[hole].all()


def test_a_flat_map_gives_an_empty_mask() -> None:
    images, _, _ = scene()
    assert not segment(images, torch.zeros(1, 64, 64)).any()
    assert not segment(images, torch.full((1, 64, 64), 3.0)).any()


def test_an_image_of_one_colour_and_a_tiny_one() -> None:
    _, maps, _ = scene()
    assert segment(torch.full((1, 3, 64, 64), 0.5), maps).shape == (1, 64, 64)
    assert segment(torch.rand(2, 1, 3, 2), torch.rand(2, 3, 2)).shape == (2, 3, 2)


def test_what_can_not_be_segmented() -> None:
    images, maps, _ = scene()
    broken = maps.clone()
    broken[0, 3, 4] = torch.nan
    for arguments, options, message in (
        ((images, broken), {}, "NaN or infinity"),
        ((images, maps / 0), {}, "NaN or infinity"),
        ((images, maps[:, :32]), {}, "don't fit"),
        ((images * 4 - 2, maps), {}, "to_color"),
        (((images * 255).byte(), maps), {}, "colours"),
        ((images, maps), {"background": 0.8}, "quantiles"),
        ((images, maps), {"foreground": 1.0}, "quantiles"),
        ((images, maps), {"smoothing": -1.0}, "smoothing"),
        ((images, maps), {"iterations": 0}, "iterations"),
    ):
        with pytest.raises(UsageError, match=message):
            segment(*arguments, **options)  # type: ignore[arg-type]


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    images, maps, _ = scene()
    with pytest.raises(UsageError, match=r'pip install "lit-viz\[segmentation\]"'):
        segment(images, maps)


def test_iou_is_that_of_sets() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(5, 7, 6, generator=generator) < p for p in (0.3, 0.6))
    expected = []
    for first, second in zip(a, b, strict=True):
        one, two = ({tuple(p) for p in m.nonzero().tolist()} for m in (first, second))
        expected.append(len(one & two) / len(one | two))
    torch.testing.assert_close(iou(a, b), torch.tensor(expected))
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert iou(nothing, nothing).item() == 1 and iou(nothing, ~nothing).item() == 0
    with pytest.raises(UsageError, match=r"\(N, H, W\)"):
        iou(a, b[:3])


def test_best_threshold_is_one_for_all_images() -> None:
    truth = torch.tensor([[[True, False, False, False]], [[True, True, False, False]]])
    maps = torch.tensor([[[1.0, 0.6, 0.1, 0.0]], [[1.0, 0.5, 0.1, 0.0]]])
    by_hand = [
        iou(maps / maps.amax((1, 2), keepdim=True) >= level, truth).mean().item() for level in np.linspace(0, 1, 201)
    ]
    by_hand += [
        iou(torch.stack([m >= np.quantile(m, level) for m in maps]), truth).mean().item()
        for level in np.linspace(0, 1, 201)
    ]
    assert best_threshold_iou(maps, truth) == pytest.approx(max(by_hand)) == pytest.approx(0.75)
    # Thresholds of its own would be right for each image.
    assert [best_threshold_iou(m[None], t[None]) for m, t in zip(maps, truth, strict=True)] == [1, 1]


def test_cut_out() -> None:
    images, mask = torch.rand(2, 3, 60, 56, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 60, 56).bool()
    mask[:, 10:30, 20:40] = True
    for background in ("checkerboard", "white"):
        out = cut_out(images, mask, background=background)
        inside = mask[:, None].expand_as(images)
        assert torch.equal(out[inside], images[inside])
        colors = set(out[~inside].tolist())
        assert len(colors) == (2 if background == "checkerboard" else 1) and max(colors) == 1
    transparent = cut_out(images[:, :1], mask, background="transparent")
    assert torch.equal(transparent[:, 3].bool(), mask) and torch.equal(
        transparent[:, :3], images[:, :1].expand(-1, 3, -1, -1)
    )
    with pytest.raises(UsageError, match="masks"):
        cut_out(images, mask[:1])


def test_composites_are_what_they_say() -> None:
    data, again, other = composites(6, seed=2), composites(6, seed=2), composites(6, seed=3)
    assert data.names == list(OBJECTS) == other.names
    assert torch.equal(data.images, again.images) and torch.equal(data.masks, again.masks)
    assert not torch.equal(data.images, other.images)
    assert data.images.shape == (6, 3, 224, 224) and data.masks.shape == (6, 224, 224)
    assert data.images.min() >= 0 and data.images.max() <= 1
    assert ((data.masks.float().mean((1, 2)) > 0.03) & (data.masks.float().mean((1, 2)) < 0.7)).all()
    assert all(t.split(", ")[0] != t.split(", ")[1] for t in data.textures)
    assert all(", " not in t for t in composites(3, clutter=0).textures)


def explained(model: nn.Module, count: int) -> tuple[Composites, Tensor, Tensor, Tensor]:
    """Composites that played no part in the choice of defaults, as EfficientNet-Lite takes them, and its classes."""
    data = composites(count, seed=1)
    pixels = (data.images - 127 / 255) / (128 / 255)
    with torch.no_grad():
        predicted = model(pixels).argmax(dim=1)
    return data, pixels, predicted, saliency(model, pixels, predicted)


def test_masks_from_gradients_beat_any_threshold(network: Callable[[str], nn.Module]) -> None:
    data, _, _, raw = explained(network("efficientnet_lite0"), 6)
    found = iou(segment(data.images, raw), data.masks).mean().item()
    assert found >= best_threshold_iou(raw, data.masks) + 0.10


@pytest.mark.slow
def test_masks_from_smooth_gradients_beat_all_that_is_simple(network: Callable[[str], nn.Module]) -> None:
    model = network("efficientnet_lite0")
    data, pixels, predicted, raw = explained(model, 24)
    smooth = smooth_grad(model, pixels, predicted).abs().amax(dim=1)
    found = iou(segment(data.images, smooth), data.masks).mean().item()
    assert found >= best_threshold_iou(raw, data.masks) + 0.10
    assert found >= best_threshold_iou(smooth, data.masks) + 0.10
    distance = torch.linspace(-1, 1, 224).square()[:, None] + torch.linspace(-1, 1, 224).square()
    assert found >= best_threshold_iou(2 - distance.expand(24, -1, -1), data.masks) + 0.10  # circles in the middle
    assert iou(segment(data.images, raw), data.masks).mean().item() >= best_threshold_iou(raw, data.masks) + 0.10
