"""t-SNE keeps neighbours, reproducibly, and goes on from an earlier picture."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE, trustworthiness
from threadpoolctl import threadpool_limits

from lit_viz.functional import tsne


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in the worker; threads that wait for each other on a busy machine take ten times as long."""
    with threadpool_limits(1):
        yield


@cache
def digits() -> np.ndarray:
    return load_digits().data[:240].astype(np.float32)


@cache
def embedded(seed: int = 0) -> np.ndarray:
    return tsne(digits(), seed=seed)


def module() -> Any:
    return sys.modules["lit_viz.functional.tsne"]  # the name means the function, as an attribute of the package


def displacement(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b, axis=1).mean())


def test_neighbours_stay_neighbours() -> None:
    points = embedded()
    assert points.shape == (240, 2) and points.dtype == np.float32 and np.isfinite(points).all()
    for k in (5, 12):
        assert trustworthiness(digits(), points, n_neighbors=k) >= 0.9
        assert trustworthiness(digits(), np.random.default_rng(0).permutation(points), n_neighbors=k) < 0.6


def test_similarities_are_those_of_the_paper() -> None:
    """Equations 1 of section 2 and 3.1, written out in loops."""
    features, perplexity = digits()[:40].astype(np.float64), 7.0
    p = module().joint_probabilities(features, perplexity)
    conditional = np.zeros((40, 40))
    for i in range(40):
        others = [j for j in range(40) if j != i]
        squares = np.array([((features[i] - features[j]) ** 2).sum() for j in others])

        def entropy(beta: float, squares: np.ndarray = squares) -> float:
            q = np.exp(-beta * (squares - squares.min()))
            q /= q.sum()
            return -float((q * np.log(np.maximum(q, 1e-300))).sum())

        beta = brentq(lambda b: entropy(b) - np.log(perplexity), 1e-6, 1.0)
        q = np.exp(-beta * (squares - squares.min()))
        conditional[i, others] = q / q.sum()
    assert np.abs(p - (conditional + conditional.T) / 80).max() < 1e-6
    assert np.allclose(p.sum(), 1) and (np.diag(p) == 0).all()


def test_ends_where_scikit_learn_does_or_lower() -> None:
    """The same quantity is minimised; scikit-learn's exact method is the reference, in a plane of its own."""
    features = digits()
    reference = TSNE(init="pca", method="exact", random_state=0)
    reference.fit(features)
    p = module().joint_probabilities(module().principal_components(features - features.mean(0), 50), 30.0)
    assert module().divergence(reference.embedding_, p) == pytest.approx(reference.kl_divergence_, rel=1e-3)
    assert module().divergence(embedded(), p) <= 1.02 * reference.kl_divergence_


def test_a_settled_picture_is_a_minimum() -> None:
    """Its gradient, by torch's autograd through the formula, is far below that of a start."""
    features = digits()[:120]
    p = torch.from_numpy(module().joint_probabilities(module().principal_components(features, 50), 30.0)).double()

    def slope(points: np.ndarray) -> float:
        y = torch.from_numpy(points).double().requires_grad_()
        kernel = 1 / (1 + torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
        q = kernel.masked_fill(torch.eye(len(y), dtype=torch.bool), 0)
        q = q / q.sum()
        known = p > 0
        return float(torch.autograd.grad((p[known] * (p[known] / q[known]).log()).sum(), y)[0].norm())

    points = tsne(features)
    assert slope(points) < 0.02 * slope(points * 0.5)


def test_components_are_those_of_the_svd() -> None:
    for count, dimensions in ((60, 20), (20, 60)):
        features = np.random.default_rng(0).normal(size=(count, dimensions)) * np.linspace(1, 3, dimensions)
        features -= features.mean(axis=0)
        found = module().principal_components(features, 10)
        u, values, _ = np.linalg.svd(features, full_matrices=False)
        assert np.abs(np.abs(found) - np.abs(u[:, :10] * values[:10])).max() < 1e-8


@pytest.mark.parametrize("engine", ["exact", "sklearn", "opentsne"])
def test_every_engine_keeps_neighbours_and_goes_on(engine: str) -> None:
    if engine == "opentsne":
        pytest.importorskip("openTSNE")
    features = digits()[:200]
    points = tsne(features, engine=engine)
    assert trustworthiness(features, points, n_neighbors=5) >= 0.95
    assert np.array_equal(tsne(features, engine=engine), points)
    again = tsne(features, init=points, engine=engine)
    assert displacement(again, points) < 0.2 * float(np.linalg.norm(points, axis=1).mean())
    assert trustworthiness(features, again, n_neighbors=5) >= 0.95


def test_engine_by_the_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    choose, exact = module().available_engine, module().EXACT
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (choose("auto", exact), choose("auto", exact + 1)) == ("exact", "sklearn")
    with pytest.raises(ValueError, match="pip install openTSNE"):
        choose("opentsne")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert (choose("auto", exact), choose("auto", exact + 1)) == ("exact", "opentsne")
    with pytest.raises(ValueError, match="engine is 'auto'"):
        choose("umap")


def test_is_reproducible_and_leaves_the_input_alone() -> None:
    features, state = digits()[:100].copy(), np.random.get_state()[1].copy()
    first = tsne(features, seed=3)
    assert np.array_equal(tsne(features, seed=3), first)
    line = features[:, 10:11]  # has no plane to start from: the start is random
    assert np.array_equal(tsne(line, seed=3), tsne(line, seed=3))
    assert not np.array_equal(tsne(line, seed=3), tsne(line, seed=4))
    assert np.array_equal(features, digits()[:100]) and np.array_equal(np.random.get_state()[1], state)


def test_a_warm_start_stays_near() -> None:
    moved = digits() + np.random.default_rng(0).normal(0, 1.0, digits().shape)  # as after some training
    warm = tsne(moved, init=embedded())
    cold = [TSNE(init="random", random_state=seed).fit_transform(moved) for seed in (0, 1)]
    assert displacement(warm, embedded()) < 0.1 * displacement(*cold)
    extent = float(np.linalg.norm(embedded() - embedded().mean(0), axis=1).mean())
    assert 0 < displacement(warm, embedded()) < 0.1 * extent
    for k in (5, 12):
        assert trustworthiness(moved, warm, n_neighbors=k) >= 0.9


def test_a_warm_start_follows_the_features() -> None:
    """Samples that changed places among the features change places in the picture."""
    swapped = digits().copy()
    first, second = np.arange(0, 120), np.arange(120, 240)
    swapped[first], swapped[second] = digits()[second], digits()[first]
    warm = tsne(swapped, init=embedded())
    assert trustworthiness(swapped, embedded(), n_neighbors=5) < 0.7
    assert trustworthiness(swapped, warm, n_neighbors=5) >= 0.9


def test_place_and_scale_of_the_features_do_not_matter() -> None:
    features = digits()[:150]
    expected = tsne(features)
    assert np.allclose(tsne(features * 4 + 16), expected, atol=1e-3 * np.abs(expected).max())
    for scale in (1e-30, 1e30):  # squares leave the range of float32
        points = tsne(features * scale)
        assert trustworthiness(features, points, n_neighbors=5) >= 0.9


@pytest.mark.parametrize(("count", "dimensions"), [(4, 1), (4, 2), (5, 3), (8, 80), (12, 2)])
def test_few_samples(count: int, dimensions: int) -> None:
    features = np.random.default_rng(0).normal(size=(count, dimensions))
    for init in (None, tsne(features)):
        points = tsne(features, init=init)
        assert points.shape == (count, 2) and np.isfinite(points).all() and points.std() > 0


def test_many_dimensions_go_through_pca() -> None:
    """A single far direction among hundreds of noisy ones is kept."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 300))
    features[:60, 0] += 60
    points = tsne(features)
    halves = np.linalg.norm(points[:60].mean(0) - points[60:].mean(0))
    assert halves > 2 * np.linalg.norm(points[:60] - points[:60].mean(0), axis=1).mean()
    assert np.array_equal(points, tsne(features))


CONSTANT = """
import runpy, sys
import numpy as np
tsne = runpy.run_path(sys.argv[1])["tsne"]
for value in (0, 0.1, 1 / 3, 1000.123, -7e7):
    for shape in ((60, 2), (60, 64), (5, 3)):
        assert (tsne(np.full(shape, value)) == 0).all()
almost = np.full((60, 5), 0.3)
almost[7] += 1
assert np.isfinite(tsne(almost)).all()
start = np.random.default_rng(0).normal(size=(60, 2))
assert np.isfinite(tsne(almost, init=start)).all()
assert np.isfinite(tsne(np.random.default_rng(0).normal(size=(60, 5)), init=np.zeros((60, 2)))).all()
rounding = np.full((60, 5), 0.3, np.float32)
rounding[::3] = np.nextafter(np.float32(0.3), np.float32(1))
assert np.isfinite(tsne(rounding)).all()
"""


def test_samples_that_are_all_alike() -> None:
    # In a process of its own, as the worker runs it: without the package.
    command = [sys.executable, "-c", CONSTANT, tsne.__code__.co_filename]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tsne(digits()[:40])
        tsne(np.full((10, 3), 0.1))


@pytest.mark.parametrize(
    ("features", "init", "words"),
    [
        (np.zeros((3, 2)), None, r"at least 4 samples \(N, D\), got \(3, 2\)"),
        (np.zeros(9), None, r"got \(9,\)"),
        (np.array([[0.0], [1.0], [2.0], [np.nan]]), None, "NaN"),
        (np.array([[0.0], [1.0], [2.0], [np.inf]]), None, "infinite"),
        (np.zeros((5, 2)), np.zeros((4, 2)), r"init has shape \(4, 2\), expected \(5, 2\)"),
        (np.zeros((5, 2)), np.zeros((5, 3)), r"\(5, 3\)"),
    ],
)
def test_errors(features: np.ndarray, init: np.ndarray | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tsne(features, init=init)
