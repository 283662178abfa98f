"""Every callback that must pass the conformance harness. A new one joins by being listed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lit_viz.callbacks import (
    Embeddings,
    Filters,
    MaxActivatingPatches,
    Occlusion,
    Saliency,
    VisualizationCallback,
)


@dataclass(frozen=True)
class Case:
    """A callback under test.

    Attributes:
        id: Name of the test.
        make: Builds the callback; takes further arguments of its constructor.
        tags: Tags that it writes on the harness's network.
        collects: Whether it looks at validation passes rather than at probe images.
    """

    id: str
    make: Callable[..., VisualizationCallback]
    tags: tuple[str, ...]
    collects: bool = False

    def __str__(self) -> str:
        return self.id


def _with(callback: type[VisualizationCallback], **defaults: Any) -> Callable[..., VisualizationCallback]:
    return lambda **kwargs: callback(**{**defaults, **kwargs})


CASES = [
    Case(
        "filters",
        _with(Filters, layers=["conv1", "conv2"], change=True),
        ("filters/net.conv1", "filters/net.conv2", "filters/net.conv1/change", "filters/net.conv2/change"),
    ),
    Case("saliency", _with(Saliency, num_images=3), ("saliency/probe",)),
    Case("occlusion", _with(Occlusion, num_images=2, baseline="noise"), ("occlusion/probe",)),
    Case(
        "embeddings",
        # t-SNE has tests of its own: a process for each of these would cost a minute.
        _with(Embeddings, methods=["pca"], projector=False),
        ("embeddings/net.head", "embeddings/net.head/map", "embeddings/net.head/grid"),
        collects=True,
    ),
    Case(
        "patches",
        _with(MaxActivatingPatches, k=3, channels=4),
        ("patches/net.conv1", "patches/net.conv2"),
        collects=True,
    ),
]

TSNE = Case(
    "embeddings-tsne",
    _with(Embeddings),
    ("embeddings/net.head", "embeddings/net.head/map", "embeddings/net.head/grid"),
    collects=True,
)
