"""Features in two dimensions: PCA, what keeps successive pictures comparable, and how good a picture is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_viz.errors import UsageError, check_at_least
from lit_viz.functional.neighbors import nearest_neighbors

ROWS = 256  # of a matrix of distances at once


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


def silhouette(features: Tensor, labels: Tensor) -> float:
    r"""How well classes are told apart by distance, the mean silhouette (Rousseeuw 1987).

    For each sample $(b - a) / \max(a, b)$ with $a$ its mean Euclidean distance to its own class, without itself, and
    $b$ that to the nearest other class; 0 for a sample that is alone in its class. O(N²) in time.

    Args:
        features: (N, D), finite.
        labels: int64 (N,); samples with a negative one, "unknown", are left out.

    Returns:
        In [−1, 1]: 1 for classes that are points, about 0 for classes that lie in each other.

    Raises:
        UsageError: If there are fewer than two classes, or none with two samples.
    """
    if labels.shape != features.shape[:1]:
        raise UsageError(f"{tuple(labels.shape)} labels given for features {tuple(features.shape)}.")
    known = labels >= 0
    values = check_features(features[known]).double()
    classes, index = labels[known].to(values.device).unique(return_inverse=True)
    if not 1 < len(classes) < len(values):
        raise UsageError(f"a silhouette needs two classes, one of them with two samples; got {len(classes)} class(es).")
    member = torch.nn.functional.one_hot(index, len(classes)).to(values)
    sizes = member.sum(dim=0)
    total = torch.zeros((), dtype=values.dtype, device=values.device)
    for rows in torch.arange(len(values), device=values.device).split(ROWS):
        # Rounding would leave some distance of a sample to itself.
        own, sums = index[rows, None], torch.cdist(values[rows], values).scatter(1, rows[:, None], 0.0) @ member
        others = (sizes[index[rows]] - 1)[:, None]
        within = sums.gather(1, own) / others.clamp(min=1)
        nearest = (sums / sizes).scatter(1, own, torch.inf).amin(dim=1, keepdim=True)
        larger = torch.maximum(within, nearest)
        total += torch.where((others > 0) & (larger > 0), (nearest - within) / larger.clamp(min=1e-300), 0).sum()
    return float(total / len(values))


def trustworthiness(features: Tensor, points: Tensor, k: int = 5) -> float:
    r"""How far neighbours in a picture can be trusted to be neighbours among the features (Venna & Kaski 2001).

    $$T = 1 - \frac{2}{N k (2N - 3k - 1)} \sum_i \sum_{j \in U_i} (r(i, j) - k)$$

    where $U_i$ are those of the k nearest neighbours of $i$ in the picture that are not among its k nearest by
    features, and $r(i, j)$ is the rank of $j$ there. O(N²) in time.

    Args:
        features: (N, D), finite.
        points: (N, d), finite, the picture.
        k: How many neighbours; less than N / 2.

    Returns:
        In [0, 1]: 1 if all neighbours are real, about 0.5 for a picture at random.

    Raises:
        UsageError: For shapes that don't fit, or too few samples.
    """
    check_at_least("k", k, 1)
    values, places = check_features(features).double(), check_features(points)
    count = len(values)
    if len(places) != count:
        raise UsageError(f"{len(places)} points given for {count} samples.")
    if 2 * k >= count:
        raise UsageError(f"{k} neighbours are too many of {count} samples: less than half of them can be asked for.")
    itself = torch.arange(count, device=places.device)
    shown = nearest_neighbors(places, places, k, metric="l2", exclude=itself).indices.to(values.device)
    excess = 0
    for rows in torch.arange(count, device=values.device).split(ROWS):
        distance = torch.cdist(values[rows], values).scatter(1, rows[:, None], torch.inf)
        nearer = distance[:, None, :] < distance.gather(1, shown[rows])[:, :, None]
        excess += int((nearer.sum(dim=2) + 1 - k).clamp(min=0).sum())
    return 1 - 2 * excess / (count * k * (2 * count - 3 * k - 1))


def check_features(features: Tensor) -> Tensor:
    """Returns (N, D) features in float32 or float64; says what is wrong with others."""
    if features.dim() != 2:
        raise UsageError(f"features must be (samples, dimensions), got {tuple(features.shape)}.")
    if len(features) < 2:
        raise UsageError(f"{len(features)} sample(s) are too few for a picture of the feature space.")
    if not torch.isfinite(features).all():
        raise UsageError("features hold NaN or infinite values; the network's weights or its input are broken.")
    return features if features.dtype == torch.float64 else features.float()
