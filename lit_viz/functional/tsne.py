"""t-SNE, as a function and, run as a script, as a worker process beside a training run.

Nothing but NumPy is imported at first: scikit-learn takes longer to import than a few hundred points to embed, and a
worker on a busy machine takes that time from training.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Literal

import numpy as np

Engine = Literal["auto", "exact", "sklearn", "opentsne"]
ENGINES = ("auto", "exact", "sklearn", "opentsne")

DIMENSIONS = 50  # what features are reduced to first (van der Maaten & Hinton 2008, section 4.2)
EXACT = 1500  # samples up to which the sum over all pairs is quicker than approximating it
# Of the attraction, in the first steps of a fresh start. Of 4, 6, 8 and 12, 6 ended lowest on nine data sets.
EXAGGERATION, EXAGGERATED = 6.0, 250
COLD, WARM = 1000, 750  # iterations at most; from an earlier embedding they mostly settle in 100
CHECK, SETTLED = 25, 2e-4  # it is over when the divergence falls by less than this share in so many iterations


def tsne(
    features: np.ndarray,
    *,
    perplexity: float = 30.0,
    init: np.ndarray | None = None,
    seed: int = 0,
    engine: Engine = "auto",
) -> np.ndarray:
    r"""t-distributed stochastic neighbour embedding to the plane (van der Maaten & Hinton 2008).

    Points $y$ are placed so that the similarities $q_{ij} \propto (1 + \lVert y_i - y_j \rVert^2)^{-1}$ come close, in
    the Kullback–Leibler divergence, to those of the features, $p_{ij} \propto \exp(-\beta_i \lVert x_i - x_j \rVert^2)$
    made symmetric, with $\beta_i$ such that each sample has `perplexity` neighbours.

    Features are first reduced to 50 principal components, as in the paper. A fresh start is the plane of the first
    two components; from an earlier embedding the optimisation goes on without exaggeration, so that points move only
    as far as the features did and successive pictures can be compared.

    Args:
        features: (N, D), finite.
        perplexity: Effective number of neighbours; lowered to (N − 1) / 3 where there are few samples.
        init: (N, 2), the embedding of the same samples to start from.
        seed: Makes the result reproducible.
        engine: "exact" sums over all pairs, O(N²) in time and memory. "sklearn" and "opentsne" approximate, which pays
            for many samples. "auto": exact up to 1,500 samples, then openTSNE where it is installed, else scikit-learn.

    Returns:
        (N, 2) float32.

    Raises:
        ValueError: For fewer than 4 samples, values that are not finite, an `init` of another shape, or an engine that
            is unknown or not installed.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < 4:
        raise ValueError(f"t-SNE needs at least 4 samples (N, D), got {features.shape}.")
    if not np.isfinite(features).all():
        raise ValueError("features hold NaN or infinite values.")
    if init is not None and np.shape(init) != (len(features), 2):
        raise ValueError(f"init has shape {np.shape(init)}, expected {(len(features), 2)}.")
    engine = available_engine(engine, len(features))
    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2), np.float32)  # all samples are one point
    # Neither place nor scale matters, and squares must not leave the range of float32.
    features = features - features.mean(axis=0, dtype=np.float64)
    features = principal_components(features / np.abs(features).max(), DIMENSIONS).astype(np.float32)
    warm = init is not None and np.asarray(init).std() > 0
    start = np.asarray(init, np.float32) if warm else _fresh_start(features, seed)
    run = {"exact": _exact, "sklearn": _sklearn, "opentsne": _opentsne}[engine]
    points = run(features, start, warm, min(perplexity, (len(features) - 1) / 3), seed)
    return np.asarray(points, dtype=np.float32)


def available_engine(engine: str, samples: int = 0) -> str:
    """The engine that runs for so many samples.

    Raises:
        ValueError: If it is unknown or not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {', '.join(map(repr, ENGINES[:-1]))} or {ENGINES[-1]!r}, not {engine!r}.")
    installed = importlib.util.find_spec("openTSNE") is not None
    if engine == "opentsne" and not installed:
        raise ValueError('openTSNE is not installed: pip install openTSNE, or leave the engine at "auto".')
    if engine != "auto":
        return engine
    if samples <= EXACT:
        return "exact"
    return "opentsne" if installed else "sklearn"


def principal_components(features: np.ndarray, most: int) -> np.ndarray:
    """Centred (N, D) features on their first components, (N, at most `most`), float64, largest variance first."""
    features = features.astype(np.float64)
    if features.shape[1] <= len(features):
        axes = np.linalg.eigh(features.T @ features)[1][:, ::-1][:, :most]
    else:
        # Fewer samples than dimensions: the same from the products of samples.
        squares, vectors = np.linalg.eigh(features @ features.T)
        kept = slice(None, -min(most, len(features)) - 1, -1)
        lengths = np.sqrt(np.maximum(squares[kept], 0.0))
        # What the centring or the data left no variance for stays zero.
        axes = features.T @ vectors[:, kept] * np.where(lengths > 1e-6 * lengths[0], 1 / np.maximum(lengths, 1e-30), 0)
    # Eigenvectors come with either sign.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    return features @ (axes * np.where(largest < 0, -1, 1))


def joint_probabilities(features: np.ndarray, perplexity: float) -> np.ndarray:
    """Similarities $p_{ij}$ of all pairs, float32 (N, N), symmetric, adding up to one."""
    x = features.astype(np.float64)
    squares = (x * x).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0.0)
    np.fill_diagonal(distances, np.inf)
    distances -= distances.min(axis=1, keepdims=True)  # a common factor of a row, which would underflow
    np.fill_diagonal(distances, 0.0)
    finite = distances.mean(axis=1, keepdims=True)
    beta = 1 / np.where(finite > 0, finite, 1.0)
    low, high = np.zeros_like(beta), np.full_like(beta, np.inf)
    for _ in range(64):
        p = np.exp(-beta * distances)
        np.fill_diagonal(p, 0.0)
        total = p.sum(axis=1, keepdims=True)
        entropy = np.log(total) + beta * (p * distances).sum(axis=1, keepdims=True) / total
        excess = entropy - np.log(perplexity)
        if (np.abs(excess) < 1e-5).all():
            break
        low, high = np.where(excess > 0, beta, low), np.where(excess > 0, high, beta)
        beta = np.where(np.isinf(high), np.minimum(beta * 2, 1e300), (low + high) / 2)
    p /= total
    p += p.T.copy()
    return (p / p.sum()).astype(np.float32)


def divergence(points: np.ndarray, p: np.ndarray) -> float:
    """Kullback–Leibler divergence of the points' similarities from those of the features, in nats."""
    kernel = np.empty_like(p)
    total = _kernel(points.astype(np.float32), kernel)
    known = p > 0
    return float((p[known] * (np.log(p[known]) - np.log(kernel[known] / total))).sum(dtype=np.float64))


def _kernel(points: np.ndarray, out: np.ndarray) -> float:
    """Writes 1 / (1 + squared distance) of all pairs, zero for a point and itself; returns the sum."""
    squares = (points * points).sum(axis=1, keepdims=True)
    one = np.ones_like(squares)
    np.matmul(np.hstack([-2 * points, squares, one]), np.hstack([points, one, squares + 1]).T, out=out)
    np.maximum(out, 1.0, out=out)  # rounding
    np.reciprocal(out, out=out)
    np.fill_diagonal(out, 0.0)
    return float(out.sum())


def _exact(features: np.ndarray, start: np.ndarray, warm: bool, perplexity: float, seed: int) -> np.ndarray:
    """All pairs at every step (van der Maaten & Hinton 2008, sections 3.3 and 3.4)."""
    p = joint_probabilities(features, perplexity)
    points = (start - start.mean(axis=0)).astype(np.float32)
    if warm:
        return _descend(points, p, steps=WARM)
    points = _descend(points, p, steps=EXAGGERATED, exaggeration=EXAGGERATION, momentum=0.5)
    # Afresh: the momentum of points that were pulled together so hard would throw them apart.
    return _descend(points, p, steps=COLD - EXAGGERATED)


def _descend(
    points: np.ndarray, p: np.ndarray, *, steps: int, exaggeration: float = 1.0, momentum: float = 0.8
) -> np.ndarray:
    r"""Gradient descent with momentum and gains (Jacobs 1988), until it settles.

    $$\frac{\partial C}{\partial y_i} = 4 \sum_j (p_{ij} - q_{ij}) (y_i - y_j) (1 + \lVert y_i - y_j \rVert^2)^{-1}$$
    """
    rate = max(len(points) / EXAGGERATION, 200.0)  # after Belkina et al. (2019); the gradient's factor 4 is in it
    kernel, force = np.empty_like(p), np.empty_like(p)
    update, gains, last = np.zeros_like(points), np.ones_like(points), np.inf
    one = np.ones_like(points[:, :1])
    for step in range(steps):
        total = _kernel(points, kernel)
        np.multiply(kernel, -1 / (total * exaggeration), out=force)
        force += p
        force *= kernel
        moments = force @ np.hstack([points, one])
        gradient = exaggeration * (moments[:, 2:] * points - moments[:, :2])
        gains = np.where(update * gradient < 0, gains + 0.2, np.maximum(gains * 0.8, 0.01)).astype(np.float32)
        update = momentum * update - rate * gains * gradient
        points = points + update
        if exaggeration == 1 and step % CHECK == 0:
            now = divergence(points, p)
            if last - now < SETTLED * now:
                break
            last = now
    return points - points.mean(axis=0)


def _sklearn(features: np.ndarray, start: np.ndarray, warm: bool, perplexity: float, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    method = TSNE(
        perplexity=perplexity,
        init=start,
        early_exaggeration=1.0 if warm else 12.0,
        max_iter=300 if warm else COLD,
        random_state=seed,
        n_jobs=1,
    )
    return method.fit_transform(features)


def _opentsne(features: np.ndarray, start: np.ndarray, warm: bool, perplexity: float, seed: int) -> np.ndarray:
    from openTSNE import TSNE

    logging.getLogger("openTSNE").setLevel(logging.ERROR)  # it warns of every start that is not a fresh one
    stages = {"early_exaggeration_iter": 0, "n_iter": 100} if warm else {"n_iter": COLD // 2}
    method = TSNE(perplexity=perplexity, initialization=start.astype(np.float64), random_state=seed, n_jobs=1, **stages)
    return np.asarray(method.fit(features.astype(np.float64)))


def _fresh_start(features: np.ndarray, seed: int) -> np.ndarray:
    """The plane of the first two components, small; for features on a line, another axis at random."""
    plane = features[:, :2].astype(np.float64)
    scale = 1e-4 / max(float(plane[:, 0].std()), 1e-30)
    if plane.shape[1] < 2:
        noise = np.random.default_rng(seed).normal(scale=1e-4, size=(len(plane), 1))
        return np.hstack([plane * scale, noise]).astype(np.float32)
    return (plane * scale).astype(np.float32)


def serve() -> None:
    """Answers jobs until standard input closes: one JSON line names an .npz of arguments and where the answer goes."""
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


def _plain(value: np.ndarray) -> np.ndarray | float | int | str:
    return value.item() if value.ndim == 0 else value


if __name__ == "__main__":
    serve()
