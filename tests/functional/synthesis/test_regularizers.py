"""Penalties and constraints against plain loops, NumPy and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional.synthesis import (
    Blur,
    ClipSmallContribution,
    ClipSmallNorm,
    Decay,
    gaussian_blur,
    p_norm,
    total_variation,
)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def looped_variation(image: np.ndarray, beta: float) -> float:
    total = 0.0
    channels, height, width = image.shape
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                across = image[c, i, j + 1] - image[c, i, j] if j + 1 < width else 0.0
                down = image[c, i + 1, j] - image[c, i, j] if i + 1 < height else 0.0
                total += (across**2 + down**2) ** (beta / 2)
    return total


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 6), (2, 6, 1), (1, 1, 1)])
def test_total_variation_equals_a_plain_loop(beta: float, shape: tuple[int, ...]) -> None:
    x = images(2, *shape).double()
    expected = [looped_variation(image, beta) for image in x.numpy()]
    # The root is softened where an image is flat, by at most 1e-4 at each pixel.
    np.testing.assert_allclose(total_variation(x, beta=beta).numpy(), expected, rtol=1e-4, atol=1.2e-4 * x[0].numel())


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_total_variation_of_a_flat_image_is_nothing_and_has_a_gradient(beta: float) -> None:
    x = torch.full((1, 3, 20, 20), 0.3, requires_grad=True)
    value = total_variation(x, beta=beta)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_total_variation_gradient_and_errors() -> None:
    x = images(1, 2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: total_variation(v, beta=1.0), x)
    for beta in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="beta must be positive"):
            total_variation(x, beta=beta)


@pytest.mark.parametrize("p", [1.0, 2.0, 6.0])
def test_p_norm(p: float) -> None:
    x = images(3, 2, 4, 5).double()
    np.testing.assert_allclose(p_norm(x, p=p).numpy(), (np.abs(x.numpy()) ** p).sum(axis=(1, 2, 3)))
    assert torch.autograd.gradcheck(lambda v: p_norm(v, p=p), x.requires_grad_())


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 2.2])
@pytest.mark.parametrize("size", [(24, 31), (9, 40)])
def test_gaussian_blur_equals_scipy(sigma: float, size: tuple[int, int]) -> None:
    x = images(2, 3, *size).double()
    radius = math.ceil(3 * sigma)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))
    np.testing.assert_allclose(gaussian_blur(x, sigma).numpy(), expected, rtol=1e-10, atol=1e-12)


def test_gaussian_blur_of_small_images_keeps_flat_ones_flat() -> None:
    x = torch.full((1, 2, 3, 4), 0.7)
    torch.testing.assert_close(gaussian_blur(x, 5.0), x)
    assert torch.equal(gaussian_blur(x, 0.0), x) and gaussian_blur(images(1, 1, 1, 5), 2.0).shape == (1, 1, 1, 5)
    for sigma in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="sigma"):
            gaussian_blur(x, sigma)
        with pytest.raises(UsageError, match="sigma"):
            Blur(sigma)


def test_blur_every_so_many_steps() -> None:
    blur, x = Blur(0.8, every=3), images(1, 3, 8, 8)
    changed = []
    for step in range(7):
        before = x.clone()
        blur(x, torch.zeros_like(x), step)
        changed.append(not torch.equal(before, x))
        if changed[-1]:
            torch.testing.assert_close(x, gaussian_blur(before, 0.8))
    assert changed == [False, False, True, False, False, True, False]


def test_decay_in_closed_form() -> None:
    start, center = images(2, 3, 4, 4), torch.tensor([0.5, -1.0, 2.0]).reshape(3, 1, 1)
    for middle in (center, 0.25):
        decay, x = Decay(0.1, center=middle), start.clone()
        for step in range(20):
            decay(x, torch.zeros_like(x), step)
        torch.testing.assert_close(x, middle + (start - middle) * 0.9**20)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="share from 0 to 1"):
            Decay(share)


def cleared(image: np.ndarray, sizes: np.ndarray, percentile: float, center: np.ndarray) -> np.ndarray:
    """All pixels of which fewer than the given share of pixels is smaller stay; in a plain loop."""
    out, ranked = image.copy(), np.sort(sizes.ravel())
    bound = ranked[min(round(len(ranked) * percentile / 100), len(ranked) - 1)]
    for i, j in np.ndindex(sizes.shape):
        if sizes[i, j] < bound:
            out[:, i, j] = center
    return out


@pytest.mark.parametrize("percentile", [0, 10, 50, 97, 100])
@pytest.mark.parametrize("center", [0.0, 0.4, torch.tensor([0.5, -1.0, 0.2]).reshape(3, 1, 1)])
def test_clips_of_what_is_small_equal_a_loop(percentile: float, center: Tensor | float) -> None:
    x, gradient = images(2, 3, 6, 7).double(), images(2, 3, 6, 7, seed=1).double()
    middle = torch.as_tensor(center, dtype=torch.float64).expand(3, 1, 1).numpy()
    norms = np.sqrt(((x.numpy() - middle) ** 2).sum(axis=1))
    shares = np.abs(((x.numpy() - middle) * gradient.numpy()).sum(axis=1))
    for make, sizes in ((ClipSmallNorm, norms), (ClipSmallContribution, shares)):
        found = x.clone()
        make(percentile, center=center)(found, gradient, 0)
        expected = [cleared(a, b, percentile, middle[:, 0, 0]) for a, b in zip(x.numpy(), sizes, strict=True)]
        np.testing.assert_array_equal(found.numpy(), np.stack(expected))
        gone = (found != x).any(dim=1).flatten(1).sum(dim=1)
        assert (gone == min(round(42 * percentile / 100), 41)).all()
    for bad in (-1, 101, math.nan):
        with pytest.raises(UsageError, match="between 0 and 100"):
            ClipSmallNorm(bad)


def test_pixels_of_equal_size_stay_together() -> None:
    x = torch.ones(1, 3, 4, 4)
    ClipSmallNorm(50)(x, torch.zeros_like(x), 0)
    assert torch.equal(x, torch.ones(1, 3, 4, 4))
