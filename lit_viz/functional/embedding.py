"""Features in two dimensions: PCA, and the bookkeeping that keeps successive pictures comparable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_viz.errors import UsageError


@dataclass(frozen=True)
class PCA:
    """A principal component analysis.

    Attributes:
        points: (N, k), the data along the components, in units of the features.
        components: (k, D), orthonormal rows, strongest first.
        explained: (k,), share of the variance that each component explains, in [0, 1].
        mean: (D,), subtracted from the data.
    """

    points: Tensor
    components: Tensor
    explained: Tensor
    mean: Tensor


def pca(features: Tensor, k: int = 2) -> PCA:
    """Principal components (Pearson 1901).

    Signs are fixed so that the entry of largest magnitude in each component is positive: the same data give the same
    picture.

    Args:
        features: (N, D), finite.
        k: Number of components; where the data has fewer, the others are zero.

    Returns:
        Points, components, explained share of the variance, and the mean.

    Raises:
        UsageError: For fewer than two samples or values that are not finite.

    >>> line = torch.tensor([[0., 0.], [1., 2.], [2., 4.]])
    >>> pca(line, k=1).explained
    tensor([1.])
    """
    features = check_features(features)
    mean = features.mean(dim=0)
    centred = (features - mean).double()
    # The smaller of the two products has the same spectrum, and is far cheaper than an SVD of the features.
    few, many = sorted(centred.shape)
    product = centred.T @ centred if centred.shape[1] == few else centred @ centred.T
    power, vectors = torch.linalg.eigh(product)
    power = power.clamp(min=0).flip(0)
    # What rounding leaves of a direction without any variance has no meaning.
    found = min(k, int((power > power[0] * many * torch.finfo(power.dtype).eps).sum()))
    vectors = vectors.flip(1)[:, :found]
    components = (vectors if centred.shape[1] == few else centred.T @ vectors / power[:found].sqrt()).T
    lead = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, lead).sign()
    explained = power[:found] / power.sum().clamp(min=torch.finfo(power.dtype).tiny)
    points = centred @ components.T
    pad, missing = torch.nn.functional.pad, k - found
    return PCA(
        pad(points, (0, missing)).to(features),
        pad(components, (0, 0, 0, missing)).to(features),
        pad(explained, (0, missing)).to(features),
        mean,
    )


def align_signs(points: Tensor, previous: Tensor) -> Tensor:
    """Flips axes of (N, k) points so that each correlates with the same axis of the `previous` picture.

    Args:
        points: (N, k).
        previous: (N, k), the same samples some time earlier.
    """
    a, b = points - points.mean(0), previous - previous.mean(0)
    return torch.where((a * b).sum(dim=0) < 0, -points, points)


def check_features(features: Tensor) -> Tensor:
    """Returns (N, D) features in float32 or float64; says what is wrong with others."""
    if features.dim() != 2:
        raise UsageError(f"features must be (samples, dimensions), got {tuple(features.shape)}.")
    if len(features) < 2:
        raise UsageError(f"{len(features)} sample(s) are too few for a picture of the feature space.")
    if not torch.isfinite(features).all():
        raise UsageError("features hold NaN or infinite values; the network's weights or its input are broken.")
    return features if features.dtype == torch.float64 else features.float()
