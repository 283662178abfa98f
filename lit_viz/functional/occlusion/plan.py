"""Which positions of the patch are computed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MOST_GROUPS = 8
"""Along one axis."""


@dataclass(frozen=True)
class Work:
    """What computing one step takes.

    Attributes:
        rows: (P,) for each position of the patch along rows, the rows of the result that change.
        columns: (Q,) likewise along columns.
        cost: Of one pixel of the result, in multiply-adds.
        whole: Of the whole result.
        limit: Rows and columns of the whole map.
    """

    rows: np.ndarray
    columns: np.ndarray
    cost: float
    whole: float
    limit: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Groups of positions.

    Attributes:
        rows: Groups of positions along rows, each an ascending array of their numbers.
        columns: Groups along columns; each group of rows meets each of columns.
        computed: What that leaves to compute for all positions, in multiply-adds.
        whole: The same for passes of the whole image.
    """

    rows: list[np.ndarray]
    columns: list[np.ndarray]
    computed: float
    whole: float

    @property
    def saved(self) -> float:
        """How many times less there is to compute than in passes of the whole image."""
        return self.whole / self.computed


def plan(work: list[Work], constant: float, together: Callable[[int, int], int], overhead: float) -> Plan:
    """Groups positions so that little is computed.

    A batch computes windows of one size, the largest that one of its positions needs. So positions that need windows
    alike belong together (all those inside; those at a border, where windows are cut off), but a batch has a cost of
    its own, and few large ones are better than many small ones. Rows and columns are grouped apart, in order of cost,
    by dynamic programming for each number of groups; then the best pair of numbers is taken.

    Args:
        work: What changes in windows.
        constant: Cost of what is computed whole, in multiply-adds for each position.
        together: From the numbers of rows and columns in a pair of groups to how many batches they take.
        overhead: Of a batch, in multiply-adds.
    """
    rows = np.stack([w.rows for w in work]).astype(np.float64)
    columns = np.stack([w.columns for w in work]).astype(np.float64)
    cost = np.array([w.cost for w in work])
    limit = np.array([w.limit[0] * w.limit[1] for w in work], dtype=np.float64)
    by_rows = _partitions(rows, cost * columns.mean(axis=1))
    by_columns = _partitions(columns, cost * rows.mean(axis=1))
    best, least = None, np.inf
    whole = rows.shape[1] * columns.shape[1] * (sum(w.whole for w in work) + constant)
    for row_groups in by_rows:
        heights = np.stack([rows[:, g].max(axis=1) for g in row_groups], axis=1)
        tall = np.array([len(g) for g in row_groups])
        for column_groups in by_columns:
            widths = np.stack([columns[:, g].max(axis=1) for g in column_groups], axis=1)
            wide = np.array([len(g) for g in column_groups])
            areas = np.minimum(heights[:, :, None] * widths[:, None, :], limit[:, None, None])
            computed = float(tall @ (np.einsum("s,sij->ij", cost, areas) + constant) @ wide)
            batches = sum(together(r, c) for r in tall.tolist() for c in wide.tolist())
            if computed + batches * overhead < least:
                least = computed + batches * overhead
                groups = [np.sort(g) for g in row_groups], [np.sort(g) for g in column_groups]
                best = Plan(*groups, computed, whole)
    assert best is not None
    return best


def _partitions(sizes: np.ndarray, weight: np.ndarray) -> list[list[np.ndarray]]:
    """Positions along one axis in 1, 2, … groups, each with the least total of group size × cost of its largest.

    Args:
        sizes: (S, P), what each of S steps needs for each of P positions.
        weight: (S,), the cost of one pixel along the axis.
    """
    order = np.argsort(weight @ sizes, kind="stable")
    sizes = sizes[:, order]
    count = sizes.shape[1]
    cost = np.full((count + 1, count + 1), np.inf)  # of positions [i, j) as one group
    for i in range(count):
        largest = np.maximum.accumulate(sizes[:, i:], axis=1)
        cost[i, i + 1 :] = (weight @ largest) * np.arange(1, count - i + 1)
    best = np.full((MOST_GROUPS + 1, count + 1), np.inf)
    cut = np.zeros((MOST_GROUPS + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for groups in range(1, MOST_GROUPS + 1):
        totals = best[groups - 1][:, None] + cost
        cut[groups], best[groups] = totals.argmin(axis=0), totals.min(axis=0)
    found = []
    for groups in range(1, min(MOST_GROUPS, count) + 1):
        parts, end = [], count
        for g in range(groups, 0, -1):
            begin = int(cut[g, end])
            parts.append(order[begin:end])
            end = begin
        found.append(parts[::-1])
    return found
