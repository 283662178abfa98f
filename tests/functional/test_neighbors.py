"""Nearest neighbours against scikit-learn, and ties and exclusion against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neighbors import NearestNeighbors as Reference
from torch import Tensor

from lit_viz.errors import UsageError
from lit_viz.functional import knn_accuracy, nearest_neighbors, neighbors, recall_at_k


def cloud(count: int, dimensions: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(queries: Tensor, reference: Tensor, k: int, metric: str, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """One pair at a time; of equal distances the lower index first."""
    rows = []
    for i, q in enumerate(queries.double()):
        found = []
        for j, r in enumerate(reference.double()):
            if exclude is not None and int(exclude[i]) == j:
                continue
            norms = float(q.norm() * r.norm())
            cosine = 1 - float(q @ r) / norms if norms else 1.0
            found.append((cosine if metric == "cosine" else float((q - r).norm()), j))
        rows.append(sorted(found)[:k])
    table = torch.tensor(rows, dtype=torch.float64)
    return table[..., 0], table[..., 1].long()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """References in blocks of seven, pairs in blocks of three."""
    monkeypatch.setattr(neighbors, "REFERENCES", 7)
    monkeypatch.setattr(neighbors, "PAIRS", 18)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_equals_scikit_learn(metric: str, batch_size: int | None) -> None:
    queries, reference = cloud(23), cloud(9000, seed=1)
    known = Reference(n_neighbors=8, algorithm="brute", metric="cosine" if metric == "cosine" else "euclidean")
    distances, indices = known.fit(reference.numpy()).kneighbors(queries.numpy())
    found = nearest_neighbors(queries, reference, 8, metric=metric, batch_size=batch_size)
    assert np.array_equal(found.indices, indices)
    assert np.allclose(found.distances, distances, atol=1e-12)
    single = nearest_neighbors(queries.float(), reference.float(), 8, metric=metric)
    assert single.distances.dtype == torch.float32 and np.allclose(single.distances, distances, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 4, 15])
@pytest.mark.usefixtures("small_blocks")
def test_ties_go_to_the_lower_index_over_blocks(metric: str, k: int) -> None:
    """Few different vectors, a zero one among them, so that most distances are equal."""
    kinds = torch.tensor([[0, 0], [3, 0], [0, 2], [3, 4]], dtype=torch.float64)
    reference = kinds[torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(2))]
    exclude = torch.arange(30)
    exclude[::4] = -1
    found = nearest_neighbors(reference, reference, k, metric=metric, exclude=exclude, batch_size=4)
    distances, indices = by_hand(reference, reference, k, metric, exclude)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances, distances)


@pytest.mark.usefixtures("small_blocks")
def test_copies_are_equally_far_whatever_rounding_does() -> None:
    """A matrix product sums the columns of different blocks in different orders."""
    base = cloud(1, 67) * 1e3
    reference = base.repeat(40, 1)
    reference[13] += 1e-9
    found = nearest_neighbors(base, reference, 39, metric="l2")
    assert found.indices[0].tolist() == [i for i in range(40) if i != 13]
    assert (found.distances == 0).all()


def test_near_distances_survive_a_far_origin() -> None:
    """|q|² + |r|² − 2 q·r alone would lose them."""
    queries, reference = cloud(5) + 1e6, cloud(50, seed=1) + 1e6
    found = nearest_neighbors(queries, reference, 6, metric="l2")
    distances, indices = by_hand(queries, reference, 6, "l2", None)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.distances, distances, rtol=1e-12, atol=0)


def test_precision_settings_of_the_run_do_not_matter() -> None:
    queries, reference = cloud(9).float(), cloud(60, seed=1).float()
    expected = nearest_neighbors(queries, reference, 6)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = nearest_neighbors(queries, reference, 6)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.distances, expected.distances)


def test_memory_does_not_grow_with_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """No intermediate is larger than a block."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return out

    monkeypatch.setattr(neighbors, "REFERENCES", 64)
    monkeypatch.setattr(neighbors, "PAIRS", 2048)
    reference = cloud(3000, 2)
    with Watch():
        nearest_neighbors(cloud(300, 2, 1), reference, 5, metric="l2", batch_size=32)
    assert largest <= reference.numel() < 300 * 3000


def test_recall_equals_a_loop() -> None:
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(0))
    labels[7], labels[20:24] = 5, -1  # one that is alone, some that are unknown
    features = cloud(60) + 1.5 * torch.nn.functional.one_hot(labels.clamp(min=0), 6)
    known = (labels >= 0).nonzero()[:, 0]
    for metric in ("cosine", "l2"):
        for k in (1, 5):
            _, found = by_hand(features[known], features[known], k, metric, torch.arange(len(known)))
            hits = [any(labels[known[j]] == labels[known[i]] for j in row) for i, row in enumerate(found)]
            assert recall_at_k(features, labels, k, metric=metric) == pytest.approx(np.mean(hits))
            assert 0 < np.mean(hits) < 1


def test_knn_accuracy_equals_scikit_learns_without_ties() -> None:
    labels = torch.randint(0, 2, (80,), generator=torch.Generator().manual_seed(0))
    features = cloud(80) + labels[:, None]
    hits = []
    for i in range(80):  # odd k of two classes: no ties
        rest = torch.arange(80) != i
        known = KNeighborsClassifier(7).fit(features[rest].numpy(), labels[rest].numpy())
        hits.append(known.predict(features[i : i + 1].numpy())[0] == int(labels[i]))
    assert knn_accuracy(features, labels, 7, metric="l2") == pytest.approx(np.mean(hits))
    assert 0.5 < np.mean(hits) < 1


def test_of_labels_with_equally_many_votes_the_nearest_wins() -> None:
    features = torch.tensor([[0.0], [1.0], [2.1], [3.3], [4.6], [100.0]])
    labels = torch.tensor([1, 1, 0, 0, 1, -1])
    # Of the first: 1 0 0 1; of the second: 1 0 0 1; third: 1 0 1 1; fourth: 0 1 1 1; last: 0 0 1 1.
    assert knn_accuracy(features, labels, 4, metric="l2") == pytest.approx(2 / 5)
    many = torch.tensor([3, 9, 9, 3, 1])  # the first is asked: neighbours 9 9 3 1, then a tie with k = 2 of 9 9
    assert knn_accuracy(features[:5], many, 2, metric="l2") == pytest.approx(_votes_by_hand(features[:5], many, 2))


def _votes_by_hand(features: Tensor, labels: Tensor, k: int) -> float:
    _, found = by_hand(features, features, k, "l2", torch.arange(len(features)))
    hits = []
    for i, row in enumerate(found):
        theirs = [int(labels[j]) for j in row]
        hits.append(max(theirs, key=lambda c: (theirs.count(c), -theirs.index(c))) == int(labels[i]))
    return float(np.mean(hits))


@pytest.mark.parametrize("k", [1, 2, 3, 6, 10])
def test_votes_equal_a_loop(k: int) -> None:
    labels = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(3))
    features = cloud(50) + torch.nn.functional.one_hot(labels, 6)
    assert knn_accuracy(features, labels, k, metric="l2") == pytest.approx(_votes_by_hand(features, labels, k))


@pytest.mark.parametrize(
    ("queries", "reference", "options", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 2), {}, r"\(2, 3\) and \(4, 2\)"),
        (torch.zeros(3), torch.zeros(4, 2), {}, r"\(samples, dimensions\)"),
        (torch.full((2, 3), torch.nan), torch.zeros(9, 3), {}, "queries hold NaN"),
        (torch.zeros(2, 3), torch.full((9, 3), torch.inf), {}, "reference hold NaN or infinite"),
        (torch.zeros(2, 3), torch.zeros(4, 3), {}, "5 neighbours were asked for, but there are only 4 other"),
        (torch.zeros(2, 3), torch.zeros(5, 3), {"exclude": torch.tensor([0, -1])}, "only 4 other"),
        (torch.zeros(2, 3), torch.zeros(9, 3), {"exclude": torch.tensor([0, 9])}, "index of the 9 references"),
        (torch.zeros(2, 3), torch.zeros(9, 3), {"exclude": torch.tensor([0])}, "for each query"),
        (torch.zeros(2, 3), torch.zeros(9, 3), {"metric": "l1"}, "metric is 'cosine' or 'l2', not 'l1'"),
        (torch.zeros(2, 3), torch.zeros(9, 3), {"k": 0}, "k must be a whole number, at least 1"),
    ],
)
def test_errors(queries: Tensor, reference: Tensor, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        nearest_neighbors(queries, reference, **options)


def test_too_few_samples_with_a_label() -> None:
    labels = torch.tensor([0, 0, -1, -1])
    with pytest.raises(UsageError, match="only 1 other"):
        recall_at_k(torch.zeros(4, 2), labels, 2)
    with pytest.raises(UsageError, match="labels given for features"):
        knn_accuracy(torch.zeros(4, 2), labels[:3], 1)
