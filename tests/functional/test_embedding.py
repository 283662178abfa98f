"""PCA and what is measured on a picture against scikit-learn, and the signs that keep pictures comparable."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.decomposition
import torch
from sklearn.manifold import trustworthiness as trusted
from sklearn.metrics import silhouette_score
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional import align_signs, pca, silhouette, trustworthiness


def cloud(count: int, dimensions: int, seed: int = 0) -> Tensor:
    """Gaussian, with axes of different length in a rotated frame, off centre."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64))[0]
    spread = torch.linspace(3, 0.5, dimensions, dtype=torch.float64)
    noise = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    return noise * spread @ rotation + 10 * torch.randn(dimensions, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("count", "dimensions", "k"), [(200, 12, 2), (50, 12, 5), (9, 40, 3), (30, 2, 2), (2, 5, 1)])
def test_equals_scikit_learn(count: int, dimensions: int, k: int) -> None:
    features = cloud(count, dimensions)
    reference = sklearn.decomposition.PCA(k, svd_solver="full").fit(features.numpy())
    found = pca(features, k)
    signs = np.sign((found.components.numpy() * reference.components_).sum(1))
    assert np.allclose(found.components, signs[:, None] * reference.components_, atol=1e-9)
    assert np.allclose(found.points, signs * reference.transform(features.numpy()), atol=1e-9)
    assert np.allclose(found.explained, reference.explained_variance_ratio_, atol=1e-12)
    assert np.allclose(found.mean, reference.mean_, atol=1e-12)
    single = pca(features.float(), k)
    assert single.points.dtype == torch.float32 and torch.allclose(single.points.double(), found.points, atol=1e-3)


def test_points_are_the_data_along_the_components() -> None:
    features = cloud(60, 7)
    found = pca(features, 7)
    assert torch.allclose(found.components @ found.components.T, torch.eye(7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found.points @ found.components + found.mean, features, atol=1e-10)
    assert found.explained.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_signs_are_fixed(seed: int) -> None:
    features = cloud(60, 7, seed)
    found = pca(features, 3)
    lead = found.components.abs().argmax(1)
    assert (found.components[torch.arange(3), lead] > 0).all()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(pca(features[order], 3).points, found.points[order], atol=1e-9)
    mirrored = pca(2 * features.mean(0) - features, 3)  # the same axes: minus the data is minus the points
    assert torch.allclose(mirrored.points, -found.points, atol=1e-9)


def test_align_signs() -> None:
    before = cloud(60, 3)
    noise = 0.1 * cloud(60, 3, 1)
    moved = (before + noise) * torch.tensor([-1.0, 1.0, -1.0]) + 100
    aligned = align_signs(moved, before)
    assert torch.equal(aligned, moved * torch.tensor([-1.0, 1.0, -1.0]))
    assert torch.equal(align_signs(aligned, before), aligned)


def test_constant_features() -> None:
    found = pca(torch.full((10, 4), 0.1))
    assert found.points.abs().max() < 1e-6 and torch.isfinite(found.components).all()
    exact = pca(torch.full((10, 4), 0.5))
    assert (exact.points == 0).all() and (exact.explained == 0).all()


def test_fewer_components_than_asked_for_are_filled_with_zeros() -> None:
    features = cloud(20, 1)
    found = pca(features, 3)
    assert found.points.shape == (20, 3) and found.components.shape == (3, 1) and found.explained.shape == (3,)
    assert torch.allclose(found.points[:, 0], features[:, 0] - features.mean()) and (found.points[:, 1:] == 0).all()
    assert found.explained.tolist() == pytest.approx([1, 0, 0])


def test_half_precision_is_computed_in_single() -> None:
    features = cloud(60, 7).bfloat16()
    found = pca(features)
    assert found.points.dtype == torch.float32 and torch.equal(found.points, pca(features.float()).points)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(5), r"\(samples, dimensions\), got \(5,\)"),
        (torch.zeros(5, 2, 2), r"\(5, 2, 2\)"),
        (torch.zeros(1, 4), "1 sample"),
        (torch.zeros(0, 4), "0 sample"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), "NaN or infinite"),
        (torch.tensor([[0.0, 1.0], [torch.inf, 1.0]]), "NaN or infinite"),
    ],
)
def test_errors(features: Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pca(features)


@pytest.mark.parametrize("shape", [(300, 8), (40, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pca_equals_scikit_learns_for_wide_and_for_tall_data(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from sklearn.decomposition import PCA as Reference

    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(*shape, generator=generator, dtype=torch.float64) * torch.linspace(1, 9, shape[1])).to(dtype)
    found, reference = pca(data, 3), Reference(3, svd_solver="full").fit(data.double().numpy())
    assert found.points.dtype == found.components.dtype == dtype
    same = {"atol": 1e-3, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-8, "rtol": 1e-8}
    expected = torch.tensor(reference.transform(data.double().numpy())).to(dtype)
    torch.testing.assert_close(align_signs(found.points, expected), expected, **same)
    torch.testing.assert_close(found.explained, torch.tensor(reference.explained_variance_ratio_).to(dtype), **same)


def test_pca_does_not_depend_on_the_default_type() -> None:
    data = torch.randn(20, 5)
    expected = pca(data).points
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(pca(data).points, expected)
        assert align_signs(expected, -expected).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_silhouette_equals_scikit_learns(classes: int) -> None:
    labels = torch.randint(0, classes, (300,), generator=torch.Generator().manual_seed(0))
    labels[5] = classes  # alone in its class
    features = cloud(300, 6) + 4 * torch.nn.functional.one_hot(labels % 6, 6)
    expected = silhouette_score(features.numpy(), labels.numpy())
    assert silhouette(features, labels) == pytest.approx(expected, abs=1e-9)
    assert silhouette(features.float(), labels) == pytest.approx(expected, abs=1e-4)
    unknown = torch.cat([labels, torch.full((20,), -1)])
    assert silhouette(torch.cat([features, 100 * cloud(20, 6)]), unknown) == pytest.approx(expected, abs=1e-9)


def test_silhouette_of_points_and_of_one_heap() -> None:
    labels = torch.arange(40) % 4
    assert silhouette(torch.eye(4)[labels], labels) == pytest.approx(1)
    assert silhouette(torch.zeros(40, 3), labels) == 0


@pytest.mark.parametrize("k", [1, 5, 12])
def test_trustworthiness_equals_scikit_learns(k: int) -> None:
    features = cloud(300, 8)
    for points in (pca(features).points, cloud(300, 2, 1), features):
        expected = trusted(features.numpy(), points.numpy(), n_neighbors=k)
        assert trustworthiness(features, points, k) == pytest.approx(expected, abs=1e-12)
    assert trustworthiness(features, features, k) == 1


def test_mistakes_in_measures() -> None:
    for labels, words in (
        (torch.zeros(6), r"got 1 class\(es\)"),
        (torch.arange(6), r"got 6 class\(es\)"),
        (torch.zeros(5), r"\(5,\) labels given"),
    ):
        with pytest.raises(UsageError, match=words):
            silhouette(torch.randn(6, 2), labels.long())
    with pytest.raises(UsageError, match="3 neighbours are too many of 6 samples"):
        trustworthiness(torch.randn(6, 2), torch.randn(6, 2), 3)
    with pytest.raises(UsageError, match="5 points given for 6 samples"):
        trustworthiness(torch.randn(6, 2), torch.randn(5, 2), 1)
