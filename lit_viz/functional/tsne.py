"""t-SNE, as a function and, run as a script, as a worker process beside a training run.

Nothing of torch is imported here: the worker starts in a fraction of a second and stays small.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import numpy as np


def tsne(
    features: np.ndarray,
    *,
    perplexity: float = 30.0,
    init: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """t-distributed stochastic neighbour embedding to the plane (van der Maaten & Hinton 2008).

    Features are first reduced to 50 principal components, as in the paper. A fresh start is the plane of the first
    two components; from an earlier embedding the optimisation goes on without exaggeration, so that points move only
    as far as the features did and successive pictures can be compared.

    Args:
        features: (N, D), finite.
        perplexity: Effective number of neighbours; lowered to (N − 1) / 3 where there are few samples.
        init: (N, 2), the embedding of the same samples to start from.
        seed: Makes the result reproducible.

    Returns:
        (N, 2) float32.

    Raises:
        ValueError: For fewer than 4 samples, values that are not finite, or an `init` of another shape.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 4:
        raise ValueError(f"t-SNE needs at least 4 samples (N, D), got {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values.")
    if init is not None and np.shape(init) != (len(features), 2):
        raise ValueError(f"init has shape {np.shape(init)}, expected {(len(features), 2)}.")
    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2), np.float32)  # all samples are one point
    # Neither place nor scale matters, and squares must not leave the range of float32.
    features = features - features.mean(axis=0, dtype=np.float64)
    features = (features / np.abs(features).max()).astype(np.float32)
    if min(features.shape) > 50:
        features = PCA(50, random_state=seed).fit_transform(features)
    warm = init is not None and np.asarray(init).std() > 0
    method = TSNE(
        perplexity=min(perplexity, (len(features) - 1) / 3),
        init=np.asarray(init, np.float32) if warm else "pca" if features.shape[1] > 1 else "random",
        early_exaggeration=1.0 if warm else 12.0,
        max_iter=300 if warm else 1000,
        random_state=seed,
        n_jobs=1,
    )
    return method.fit_transform(features).astype(np.float32)


def serve() -> None:
    """Answers jobs until standard input closes: one JSON line names an .npz of arguments and where the answer goes."""
    # Imports take longer than an embedding: now, while whoever started this is still preparing.
    import sklearn.decomposition
    import sklearn.manifold  # noqa: F401

    _stand_back()
    for line in sys.stdin:
        job = json.loads(line)
        answer = Path(job["answer"])
        try:
            with np.load(job["arguments"]) as arguments:
                result = {"points": tsne(**{k: _plain(v) for k, v in arguments.items()})}
        except Exception:
            result = {"error": np.array(traceback.format_exc())}
        Path(job["arguments"]).unlink(missing_ok=True)
        partial = answer.with_suffix(".partial.npz")
        np.savez(partial, **result)
        partial.replace(answer)  # appears whole or not at all


def _stand_back() -> None:
    """Takes about a tenth of a core where training keeps all cores busy, and all of one that is idle.

    Less would be nothing: threads that wait for each other spin, so that cores look busy all the time, and every
    embedding would be left for the end. More would stall training: while the worker has a core, the other threads of
    an operation wait.
    """
    if hasattr(os, "nice"):
        os.nice(10)


def _plain(value: np.ndarray) -> np.ndarray | float | int:
    return value.item() if value.ndim == 0 else value


if __name__ == "__main__":
    serve()
