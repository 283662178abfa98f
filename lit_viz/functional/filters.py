"""The weights of a convolution, ready to be looked at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_viz.errors import UsageError
from lit_viz.layers import find_layer, first_convolution


def filters(model: nn.Module, layer: str | None = None) -> Tensor:
    """A copy of a convolution's weights.

    The first layer's filters are inner products with the image, so they can be looked at as images (Krizhevsky,
    Sutskever & Hinton 2012, figure 3). A trained first layer shows oriented edges and opposing colours; noise there
    means a network that has not converged, or too little regularisation.

    Args:
        model: Any module.
        layer: Dotted name of a 2-d convolution; by default the first one.

    Returns:
        float32 (filters, input channels per group, height, width), on the CPU.

    Raises:
        UsageError: If there is no such layer or it is no 2-d convolution.

    >>> filters(nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU())).shape
    torch.Size([8, 3, 5, 5])
    """
    name, module = first_convolution(model) if layer is None else find_layer(model, layer)
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or not isinstance(weight, Tensor) or weight.dim() != 4:
        raise UsageError(
            f"layer '{name}' is a {type(module).__name__}, not a 2-d convolution, so it has no filters to show; "
            f"leave `layer` out for the first convolution."
        )
    if hasattr(weight, "full_tensor"):  # sharded over ranks: each of them must take part
        weight = weight.full_tensor()
    return weight.detach().float().cpu().clone()


def roughness(weights: Tensor) -> Tensor:
    r"""Total variation of each filter relative to its norm: low for smooth, structured filters, high for noise.

    $$\frac{\sum |w_{y+1,x} - w_{y,x}| + \sum |w_{y,x+1} - w_{y,x}|}{\lVert w \rVert_2}$$

    Args:
        weights: (filters, channels, height, width).

    Returns:
        (filters,), dimensionless; NaN for a filter that is zero.
    """
    down = weights.diff(dim=2).abs().sum(dim=(1, 2, 3))
    across = weights.diff(dim=3).abs().sum(dim=(1, 2, 3))
    return (down + across) / torch.linalg.vector_norm(weights, dim=(1, 2, 3))
