"""t-SNE beside scikit-learn's: time, and how well neighbours are kept.

    python benchmarks/embeddings.py                # three minutes on two cores

5,000 samples of 64 numbers: scikit-learn's digits, as they are and moved by a pixel. "from the epoch before": started
from the embedding of features that differ by a tenth of their deviation, as those of successive epochs do.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.manifold import TSNE, trustworthiness

from lit_viz.functional import tsne

NEIGHBORS = 10


def samples(count: int) -> np.ndarray:
    """(count, 64) float32, each feature with deviation 1 or constant."""
    images = load_digits().images
    moved = [np.roll(images, shift, axis=(1, 2)) for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]
    features = np.concatenate(moved).reshape(-1, 64)
    features = features[np.random.default_rng(0).permutation(len(features))[:count]]
    return (features / features.std()).astype(np.float32)


def timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    points = run()
    return time.perf_counter() - started, points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    features = samples(args.samples)
    noise = np.random.default_rng(1).standard_normal(features.shape).astype(np.float32)
    before = tsne(features + 0.1 * features.std() * noise)
    runs: dict[str, Callable[[], np.ndarray]] = {
        "scikit-learn": lambda: TSNE(init="pca", random_state=0).fit_transform(features),
        "ours": lambda: tsne(features),
        "ours, from the epoch before": lambda: tsne(features, init=before),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    kept: dict[str, float] = {}
    for _ in range(args.repeats):
        for name, run in runs.items():
            seconds, points = timed(run)
            times[name].append(seconds)
            kept[name] = trustworthiness(features, points, n_neighbors=NEIGHBORS)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("scikit-learn", "openTSNE"))
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {versions}\n")
    print(f"| t-SNE of {args.samples} × 64 | time | share | pairs | trustworthiness |\n| --- | --- | --- | --- | --- |")
    for name in runs:
        shares = [a / b for a, b in zip(times[name], times["scikit-learn"], strict=True)]
        print(
            f"| {name} | {statistics.median(times[name]):.1f} s | {statistics.median(shares):.2f} "
            f"| {min(shares):.2f}–{max(shares):.2f} | {kept[name]:.3f} |"
        )


if __name__ == "__main__":
    main()
