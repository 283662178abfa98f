"""Style: Gram matrices of features, and how far images are from each other in style and in content."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_viz.errors import UsageError

Features = Mapping[str, Tensor]


def gram_matrix(features: Tensor, *, weights: Tensor | None = None) -> Tensor:
    r"""Which features of a layer come together, wherever in the image that is.

    $$G_{ij} = \frac{1}{C P} \sum_p F_{ip} F_{jp}$$

    over the P = h·w places of a map of C channels (Gatys, Ecker & Bethge, *Image Style Transfer Using Convolutional
    Neural Networks*, 2016; divided as by Johnson, Alahi & Fei-Fei, *Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution*, 2016). With weights m of places, P is their sum: the style of a region.

    Sums are taken in 32 bits, whatever the precision of the features: in 16 bits they overflow.

    Args:
        features: (N, C, h, w).
        weights: (N, 1, h, w) or (1, 1, h, w), not negative; None for 1 everywhere.

    Returns:
        (N, C, C), float32; float64 for features of that type.

    Raises:
        UsageError: For features that are no maps.

    >>> gram_matrix(torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]]))
    tensor([[[1.2500, 0.7500],
             [0.7500, 2.2500]]])
    """
    if features.dim() != 4:
        raise UsageError(f"a Gram matrix is one of maps (N, C, h, w); this layer puts out {tuple(features.shape)}.")
    with torch.autocast(features.device.type, enabled=False):
        values = features if features.dtype == torch.float64 else features.float()
        count = torch.tensor(float(values[0, 0].numel()), dtype=values.dtype, device=values.device)
        if weights is not None:
            weights = weights.to(values)
            count = weights.flatten(1).sum(dim=1).clamp(min=1e-12)[:, None, None]
            values = values * weights.sqrt()
        flat = values.flatten(2)
        return flat @ flat.transpose(1, 2) / (count * features.shape[1])


def style_distances(grams: Features, targets: Features) -> dict[str, Tensor]:
    """Squared differences of Gram matrices, summed over their entries: (N,) for each layer.

    Args:
        grams: (N, C, C) by layer.
        targets: Likewise, (N, C, C) or (1, C, C).
    """
    return {name: (gram - targets[name]).square().flatten(1).sum(dim=1) for name, gram in grams.items()}


def content_distances(features: Features, targets: Features) -> dict[str, Tensor]:
    """Mean squared differences of features, (N,) for each layer, in 32 bits.

    Args:
        features: (N, …) by layer.
        targets: Likewise.
    """
    found = {}
    for name, values in features.items():
        with torch.autocast(values.device.type, enabled=False):
            found[name] = (values.float() - targets[name].float()).square().flatten(1).mean(dim=1)
    return found
