"""A model's layers at a glance: what they put out, what they see of the image, what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lit_viz.functional.receptive_field.fields import (
    ReceptiveField,
    field_of,
    has_units,
    image_size,
    innermost,
    trace,
)
from lit_viz.layers import named_layers

_WIDTH = 110
_LONGEST_NAME = 40


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a model that runs.

    Attributes:
        name: Full name.
        type: Class of the module.
        shape: Shape of its last output, without the batch dimension.
        field: Its receptive field; None for outputs that are no maps, tokens or vectors.
        parameters: Number of parameters, those of layers inside included.
        calls: How often it is called in one forward pass.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    field: ReceptiveField | None
    parameters: int
    calls: int

    @property
    def sees(self) -> str:
        """Size of the receptive field in pixels, `height×width`, in words."""
        if self.field is None:
            return "–"
        if self.field.is_global:
            return "global"
        height, width = self.field.size
        return f"{'≤ ' if self.field.approximations else ''}{height}×{width}"


def layer_table(model: nn.Module, image: Tensor | Sequence[int], *, containers: bool = False) -> list[LayerInfo]:
    """All layers that run, in the order in which they start.

    Args:
        model: Takes images (1, C, H, W).
        image: An example (N, C, H, W), of which the first image is used, or the shape (C, H, W).
        containers: Also list layers that have others inside.

    Raises:
        UsageError: For a malformed image.
    """
    runs = trace(model, image, named_layers(model))
    if not containers:
        runs = innermost(runs)
    return [
        LayerInfo(
            name=name,
            type=type(run.module).__name__,
            shape=run.shape[1:],
            field=field_of(name, run, image_size(image)) if has_units(run) else None,
            parameters=sum(p.numel() for p in run.module.parameters()),
            calls=run.calls,
        )
        for name, run in runs.items()
    ]


def format_layer_table(layers: Sequence[LayerInfo]) -> str:
    """A plain-text table, at most 110 columns wide.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
    >>> print(format_layer_table(layer_table(net, (3, 32, 32))))
    layer  type    output   sees  stride  parameters  calls
    0      Conv2d  8×15×15  3×3   2×2            224      1
    1      ReLU    8×15×15  3×3   2×2              0      1
    """
    header = ("layer", "type", "output", "sees", "stride", "parameters", "calls")
    rows = [
        (
            _shortened(layer.name, _LONGEST_NAME),
            _shortened(layer.type, 20),
            "×".join(map(str, layer.shape)) or "1",
            layer.sees,
            "×".join(map(str, layer.field.stride)) if layer.field and layer.field.stride else "–",
            f"{layer.parameters:,}",
            str(layer.calls),
        )
        for layer in layers
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if i < 5 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    )
    return "\n".join(line.rstrip()[:_WIDTH] for line in lines)


def _shortened(text: str, length: int) -> str:
    """With an ellipsis at the front if it is too long: the end of a name tells more."""
    return text if len(text) <= length else "…" + text[1 - length :]
