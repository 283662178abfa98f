"""Gram matrices and distances against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_viz.errors import UsageError
from lit_viz.functional.style import gram_matrix, luminance, match_colors, with_luminance


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_loop(features: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    n, c, h, w = features.shape
    gram = torch.zeros(n, c, c, dtype=features.dtype)
    for k in range(n):
        total = 0.0
        for y in range(h):
            for x in range(w):
                m = 1.0 if weights is None else float(weights[k % len(weights), 0, y, x])
                total += m
                for i in range(c):
                    for j in range(c):
                        gram[k, i, j] += m * features[k, i, y, x] * features[k, j, y, x]
        gram[k] /= total * c
    return gram


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 5, 2, 1)])
def test_a_gram_matrix_is_a_sum_over_places(shape: tuple[int, ...]) -> None:
    features = maps(*shape)
    torch.testing.assert_close(gram_matrix(features), by_loop(features))


@pytest.mark.parametrize("count", [1, 2])
def test_a_region_has_a_style_of_its_own(count: int) -> None:
    features, weights = maps(2, 3, 4, 5), maps(count, 1, 4, 5, seed=1).abs()
    torch.testing.assert_close(gram_matrix(features, weights=weights), by_loop(features, weights))
    halves = torch.zeros(1, 1, 4, 5, dtype=torch.float64)
    halves[..., :2] = 1
    torch.testing.assert_close(gram_matrix(features, weights=halves), gram_matrix(features[..., :2]))


def test_it_knows_no_places() -> None:
    features = maps(1, 3, 4, 6)
    shuffled = features.flatten(2)[:, :, torch.randperm(24, generator=torch.Generator().manual_seed(0))].view(
        1, 3, 6, 4
    )
    torch.testing.assert_close(gram_matrix(shuffled), gram_matrix(features))
    # Nor how large the image is.
    torch.testing.assert_close(gram_matrix(torch.cat([features, features], dim=3)), gram_matrix(features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_features_in_16_bits_do_not_overflow(dtype: torch.dtype) -> None:
    features = (300 * maps(1, 8, 64, 64)).to(dtype)  # squares are beyond the largest number of float16
    gram = gram_matrix(features)
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram, gram_matrix(features.double()).float(), rtol=1e-5, atol=1e-1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gram_matrix(features), gram, rtol=0, atol=0)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_its_gradient_in_both_orders_of_memory(order: torch.memory_format) -> None:
    features = torch.rand(2, 4, 5, 3, dtype=torch.float64).contiguous(memory_format=order).requires_grad_(True)
    weights, where = torch.rand(2, 4, 4, dtype=torch.float64), torch.rand(2, 1, 5, 3, dtype=torch.float64)
    for masks in (None, where):
        found = gram_matrix(features, weights=masks)
        flat = (features if masks is None else features * masks.sqrt()).flatten(2)
        expected = flat @ flat.mT / (4 * (15 if masks is None else masks.sum((1, 2, 3))[:, None, None]))
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad((gram * weights).sum(), features)[0] for gram in (found, expected)]
        torch.testing.assert_close(*slopes)
        assert slopes[0].is_contiguous(memory_format=order)
    torch.autograd.gradgradcheck(gram_matrix, features)
    torch.autograd.gradcheck(gram_matrix, features, check_forward_ad=True, check_batched_grad=True)
    maps = features.detach()[None].expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(torch.func.vmap(gram_matrix)(maps)[1], gram_matrix(features))


def test_vectors_have_no_style() -> None:
    with pytest.raises(UsageError, match=r"\(N, C, h, w\).*\(2, 3\)"):
        gram_matrix(torch.zeros(2, 3))


def test_matched_colors_have_mean_and_covariance_of_the_other_image() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[0.10, 0.02, 0.0], [0.03, 0.08, 0.01], [0.0, 0.04, 0.06]])
    like = 0.5 + torch.einsum("dc,nchw->ndhw", mixing, torch.randn(1, 3, 30, 40, generator=generator).clamp(-2, 2))
    colors = torch.rand(1, 3, 20, 25, generator=generator)
    found = match_colors(colors, like)
    inside = ((found > 0) & (found < 1)).all()
    assert inside  # otherwise what is compared below was cut off
    for a, b in ((found, like),):
        torch.testing.assert_close(a.mean(dim=(2, 3)), b.mean(dim=(2, 3)), atol=1e-5, rtol=0)
        covariances = [np.cov(image[0].flatten(1).numpy(), ddof=0) for image in (a, b)]
        np.testing.assert_allclose(*covariances, atol=1e-6)
    torch.testing.assert_close(match_colors(like, like), like, atol=1e-5, rtol=0)
    # Along directions without variance nothing can be stretched.
    flat = match_colors(torch.full((1, 3, 4, 4), 0.2), like)
    torch.testing.assert_close(flat, like.mean(dim=(2, 3), keepdim=True).expand_as(flat), atol=1e-5, rtol=0)


def test_brightness_takes_the_place_of_brightness() -> None:
    from skimage.color import rgb2yiq

    generator = torch.Generator().manual_seed(0)
    colors = 0.3 + 0.4 * torch.rand(2, 3, 5, 6, generator=generator)
    wanted = 0.4 + 0.2 * torch.rand(2, 1, 5, 6, generator=generator)
    found = with_luminance(colors, wanted)
    before, after = (rgb2yiq(image.permute(0, 2, 3, 1).numpy()) for image in (colors, found))
    np.testing.assert_allclose(after[..., 0], wanted[:, 0].numpy(), atol=2e-3)  # scikit-image has rounded weights
    inside = ((found > 1e-3) & (found < 1 - 1e-3)).all(dim=1).numpy()
    assert inside.mean() > 0.8
    np.testing.assert_allclose(after[..., 1:][inside], before[..., 1:][inside], atol=2e-3)
    torch.testing.assert_close(luminance(colors)[:, 0], torch.from_numpy(before[..., 0]), atol=2e-3, rtol=0)
    # Where such a colour does not exist, a paler one of that brightness stands in.
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    for y in (0.0, 0.1, 0.9, 1.0):
        found = with_luminance(red, torch.full((1, 1, 1, 1), y))
        assert found.min() >= 0 and found.max() <= 1 + 1e-6
        assert float(luminance(found)) == pytest.approx(y, abs=1e-6)
