"""Convolution with fewer multiplications is convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_viz.functional import winograd


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 0), (1, 2)])
@pytest.mark.parametrize("size", [(3, 3), (4, 7), (8, 5), (12, 16)])
@pytest.mark.parametrize("tiles", [1, 3000, winograd.TILES])
@pytest.mark.parametrize("tile", [2, 4])
def test_it_equals_torch(
    size: tuple[int, int], padding: tuple[int, int], tiles: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes odd and even, a few images or rows of tiles at once, and both orders of memory."""
    monkeypatch.setattr(winograd, "TILES", tiles)
    image, weight, bias = drawn(3, 5, *size), drawn(7, 5, 3, 3, seed=1), drawn(7, seed=2)
    kernels = winograd.filters(weight, tile=tile)
    for given in (image, image.contiguous(memory_format=torch.channels_last)):
        expected = F.conv2d(image, weight, bias, padding=padding)
        found = winograd.convolution(given, kernels, bias, padding)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            winograd.convolution(given, kernels, None, padding), expected - bias[:, None, None], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("tile", "share"), [(2, 4e-6), (4, 16e-6)])
def test_what_it_rounds(tile: int, share: float) -> None:
    """A sum of n terms, one after the other, rounds by about √n ε: here √(9 · 512) · 6e-8 = 4e-6."""
    image, weight = drawn(2, 512, 10, 10).relu(), drawn(64, 512, 3, 3, seed=1)
    expected = F.conv2d(image, weight, padding=1)
    found = winograd.convolution(image.float(), winograd.filters(weight.float(), tile=tile), None, (1, 1))
    assert found.dtype == torch.float32 and (found - expected).abs().max() <= share * expected.abs().max()


def test_when_it_pays() -> None:
    assert winograd.pays(512, 512, (14, 14)) and winograd.pays(256, 256, (8, 8))
    assert not winograd.pays(64, 64, (56, 56))  # transforms cost more than they save
    assert not winograd.pays(512, 512, (1, 1))  # three of four results would be thrown away


@pytest.mark.parametrize(
    ("weight", "stride", "dilation", "groups", "suits"),
    [
        (torch.zeros(2, 2, 3, 3), (1, 1), (1, 1), 1, True),
        (torch.zeros(2, 2, 3, 3), (1, 2), (1, 1), 1, False),
        (torch.zeros(2, 2, 3, 3), (1, 1), (2, 2), 1, False),
        (torch.zeros(2, 1, 3, 3), (1, 1), (1, 1), 2, False),
        (torch.zeros(2, 2, 1, 3), (1, 1), (1, 1), 1, False),
        (torch.zeros(2, 2, 3, 3, dtype=torch.bfloat16), (1, 1), (1, 1), 1, False),
        (torch.zeros(2, 2, 3, 3, device="meta"), (1, 1), (1, 1), 1, False),
    ],
)
def test_what_it_suits(weight: Tensor, stride: tuple, dilation: tuple, groups: int, suits: bool) -> None:
    assert winograd.suits(weight, stride, dilation, groups) is suits


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 2)])
def test_gradients_of_weights(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(winograd, "TILES", 1)  # a row of tiles at once
    image = torch.randn(3, 5, size[0] + 2, size[1] + 2, dtype=torch.float64)
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    made = F.conv2d(image, weight)
    slopes = torch.randn_like(made)
    found = winograd.weight_gradient(slopes, image)
    torch.testing.assert_close(found, torch.autograd.grad(made, weight, slopes)[0], rtol=0, atol=1e-11)
