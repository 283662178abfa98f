"""Exact nearest neighbours in blocks, and what they say of a feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_viz.errors import UsageError, check_at_least, check_choice

Metric = Literal["cosine", "l2"]

QUERIES, REFERENCES = 1024, 4096  # of a block of distances: 32 MiB
PAIRS = 2**22  # numbers of a block of pairs


@dataclass(frozen=True)
class Neighbors:
    """The nearest references of each query.

    Attributes:
        distances: (Q, k), nearest first: 1 − cosine in [0, 2], or Euclidean in units of the features.
        indices: int64 (Q, k), which reference.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbors(
    queries: Tensor,
    reference: Tensor,
    k: int = 5,
    *,
    metric: Metric = "cosine",
    exclude: Tensor | None = None,
    batch_size: int | None = None,
) -> Neighbors:
    r"""The k nearest references of each query, exactly (the lecture's neighbours in feature space).

    Distances are $1 - \hat q \cdot \hat r$ of vectors of unit length ("cosine"; 1 for a vector of zeros) or
    $\lVert q - r \rVert$ ("l2"), in double precision. Of equal distances the lower index comes first. Memory does not
    grow with the product of queries and references.

    Args:
        queries: (Q, D), finite.
        reference: (N, D), finite.
        k: How many neighbours.
        metric: "cosine" or "l2".
        exclude: int64 (Q,), for each query the index of itself among the references, negative where it is not among
            them: no sample is its own neighbour.
        batch_size: Queries at once; 1,024 by default.

    Raises:
        UsageError: For shapes that don't fit, values that are not finite, or fewer references than neighbours.

    >>> line = torch.tensor([[0.0], [1.0], [3.0]])
    >>> nearest_neighbors(line, line, 1, metric="l2", exclude=torch.arange(3)).indices[:, 0].tolist()
    [1, 0, 1]
    """
    check_choice("metric", metric, ("cosine", "l2"))
    check_at_least("k", k, 1)
    check_at_least("batch_size", QUERIES if batch_size is None else batch_size, 1)
    if queries.dim() != 2 or reference.dim() != 2 or queries.shape[1] != reference.shape[1]:
        raise UsageError(
            f"queries and reference must be (samples, dimensions), equally many dimensions; got "
            f"{tuple(queries.shape)} and {tuple(reference.shape)}."
        )
    for name, values in (("queries", queries), ("reference", reference)):
        if not torch.isfinite(values).all():
            raise UsageError(f"{name} hold NaN or infinite values; the network's weights or its input are broken.")
    if exclude is not None and (exclude.shape != queries.shape[:1] or bool((exclude >= len(reference)).any())):
        raise UsageError(f"exclude must hold an index of the {len(reference)} references for each query.")
    others = len(reference) - int(exclude is not None and bool((exclude >= 0).any()))
    if k > others:
        raise UsageError(f"{k} neighbours were asked for, but there are only {others} other samples.")
    own = torch.full((len(queries),), -1, device=queries.device) if exclude is None else exclude.to(queries.device)
    with torch.no_grad():
        blocks = [
            _search(q, reference, k, metric, o)
            for q, o in zip(queries.split(batch_size or QUERIES), own.split(batch_size or QUERIES), strict=True)
        ]
    distances, indices = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    kept = torch.float64 if queries.dtype == torch.float64 else torch.float32
    return Neighbors((distances.sqrt() if metric == "l2" else distances.clamp(0, 2)).to(kept), indices)


def recall_at_k(features: Tensor, labels: Tensor, k: int = 5, *, metric: Metric = "cosine") -> float:
    """Recall@k of metric learning: the share of samples with their own label among their k nearest neighbours.

    After Jégou, Douze & Schmid (2011) and, for classes, Oh Song et al. (2016); Musgrave, Belongie & Lim (2020) tell
    what it leaves out. A sample that is alone with its label is a miss.

    Args:
        features: (N, D), finite.
        labels: int64 (N,); samples with a negative one, "unknown", are left out.
        k: How many neighbours; a sample is none of its own.
        metric: See `nearest_neighbors`.

    Returns:
        In [0, 1].

    Raises:
        UsageError: As in `nearest_neighbors`, for instance for fewer than k + 1 samples with a label.

    >>> recall_at_k(torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 0]), 1, metric="l2")
    0.5
    """
    own, theirs = _votes(features, labels, k, metric)
    return float((theirs == own[:, None]).any(dim=1).double().mean())


def knn_accuracy(features: Tensor, labels: Tensor, k: int = 10, *, metric: Metric = "cosine") -> float:
    """How often the k nearest neighbours of a sample vote for its label (Fix & Hodges 1951), each sample left out once.

    Each neighbour has one vote; of labels with equally many the one with the nearest neighbour wins.

    Args:
        features: (N, D), finite.
        labels: int64 (N,); samples with a negative one, "unknown", are left out.
        k: How many neighbours.
        metric: See `nearest_neighbors`.

    Returns:
        In [0, 1].

    Raises:
        UsageError: As in `nearest_neighbors`, for instance for fewer than k + 1 samples with a label.
    """
    own, theirs = _votes(features, labels, k, metric)
    votes = (theirs[:, :, None] == theirs[:, None, :]).sum(dim=2)
    # The first of the largest is the nearest: what `argmax` returns of equal values is not defined.
    place = torch.arange(k, device=votes.device)
    winner = theirs.gather(1, (votes * k - place).argmax(dim=1, keepdim=True))[:, 0]
    return float((winner == own).double().mean())


def _votes(features: Tensor, labels: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """The labels of samples that have one, (n,), and of their neighbours among these, (n, k)."""
    if labels.shape != features.shape[:1]:
        raise UsageError(f"{tuple(labels.shape)} labels given for features {tuple(features.shape)}.")
    known = labels >= 0
    features, labels = features[known], labels[known]
    itself = torch.arange(len(features), device=features.device)
    found = nearest_neighbors(features, features, k, metric=metric, exclude=itself)
    return labels, labels[found.indices.to(labels.device)]


def _search(queries: Tensor, reference: Tensor, k: int, metric: Metric, own: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (squared for "l2") and indices for one block of queries.

    A matrix product screens a block of references; what may be among the nearest for all that rounding does is then
    measured directly, so that equal pairs are equally far.
    """
    # Neither TF32 nor autocast touch doubles.
    wide = torch.float32 if queries.device.type == "mps" else torch.float64
    queries = _prepared(queries, metric, wide)
    rounding = 8 * (queries.shape[1] + 2) * torch.finfo(wide).eps
    best = torch.full((len(queries), k), torch.inf, dtype=wide, device=queries.device)
    index = torch.full((len(queries), k), -1, device=queries.device)
    for start in range(0, len(reference), REFERENCES):
        block = _prepared(reference[start : start + REFERENCES].to(queries.device), metric, wide)
        rough = queries @ block.T
        slack = torch.full_like(best[:, 0], rounding)
        if metric == "l2":
            lengths = queries.square().sum(dim=1), block.square().sum(dim=1)
            rough = lengths[0][:, None] + lengths[1] - 2 * rough
            slack *= lengths[0] + lengths[1].max()
        else:
            rough = 1 - rough
        here = ((own >= start) & (own < start + len(block))).nonzero()[:, 0]
        rough[here, own[here] - start] = torch.inf
        bound = best[:, -1]
        if len(block) >= k:
            bound = torch.minimum(bound, rough.topk(k, dim=1, largest=False).values[:, -1])
        row, column = ((rough <= (bound + slack)[:, None]) & torch.isfinite(rough)).nonzero(as_tuple=True)
        if not len(row):
            continue
        distance = torch.cat(
            [
                _distance(queries[r], block[c], metric)
                for r, c in zip(
                    *(part.split(max(1, PAIRS // max(1, queries.shape[1]))) for part in (row, column)), strict=True
                )
            ]
        )
        counts = row.bincount(minlength=len(queries))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        new = torch.full((len(queries), int(counts.max())), torch.inf, dtype=wide, device=queries.device)
        which = torch.full(new.shape, -1, device=queries.device)
        new[row, place], which[row, place] = distance, column + start
        # In the order of indices before a stable sort: ties stay with the lower one.
        best, order = torch.cat([best, new], dim=1).sort(dim=1, stable=True)
        index = torch.cat([index, which], dim=1).gather(1, order[:, :k])
        best = best[:, :k]
    return best, index


def _prepared(values: Tensor, metric: Metric, dtype: torch.dtype) -> Tensor:
    values = values.to(dtype)
    if metric == "l2":
        return values
    length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    return values / torch.where(length > 0, length, 1)


def _distance(queries: Tensor, reference: Tensor, metric: Metric) -> Tensor:
    if metric == "l2":
        return (queries - reference).square().sum(dim=1)
    return 1 - (queries * reference).sum(dim=1)
