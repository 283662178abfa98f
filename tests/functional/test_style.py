"""Gram matrices and distances against loops."""

from __future__ import annotations

import pytest
import torch

from lit_viz.errors import UsageError
from lit_viz.functional.style import content_distances, gram_matrix, style_distances


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


def test_distances() -> None:
    one, two = (
        {"a": maps(2, 3, 3), "b": maps(2, 4, 4, seed=1)},
        {"a": maps(1, 3, 3, seed=2), "b": maps(2, 4, 4, seed=3)},
    )
    found = style_distances(one, two)
    for name in one:
        for i in range(2):
            torch.testing.assert_close(found[name][i], ((one[name][i] - two[name][i % len(two[name])]) ** 2).sum())
    one, two = {"a": maps(2, 3, 4, 5)}, {"a": maps(2, 3, 4, 5, seed=1)}
    for i in range(2):
        expected = ((one["a"][i] - two["a"][i]) ** 2).mean().float()
        torch.testing.assert_close(content_distances(one, two)["a"][i], expected)


def test_vectors_have_no_style() -> None:
    with pytest.raises(UsageError, match=r"\(N, C, h, w\).*\(2, 3\)"):
        gram_matrix(torch.zeros(2, 3))
