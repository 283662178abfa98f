"""Every callback that must pass the conformance harness. A new one joins by being listed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lit_viz.callbacks import (
    ActivationMaximization,
    Activations,
    DeepDream,
    Embeddings,
    Facets,
    Faithfulness,
    Filters,
    FoolingImages,
    GradCAM,
    GuidedBackprop,
    Inversion,
    MaxActivatingPatches,
    NearestNeighbors,
    ObjectExtraction,
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
    Case(
        "patches-guided",
        _with(MaxActivatingPatches, k=2, channels=3, guided=True, name="guided_patches"),
        ("guided_patches/net.conv1", "guided_patches/net.conv2"),
        collects=True,
    ),
    Case("activations", _with(Activations, num_images=3), ("activations/net.relu1", "activations/net.relu2")),
    Case("smooth-grad", _with(Saliency, method="smooth_grad", num_images=3, samples=4), ("smooth_grad/probe",)),
    Case(
        "integrated-gradients",
        _with(Saliency, method="integrated_gradients", num_images=3, steps=4),
        ("integrated_gradients/probe",),
    ),
    Case("guided-backprop", _with(GuidedBackprop, num_images=3), ("guided_backprop/probe",)),
    Case(
        "deconvnet-units",
        _with(GuidedBackprop, method="deconv", layer="conv2", channels=2, num_images=3),
        ("deconvnet/net.conv2",),
    ),
    Case(
        "grad-cam",
        _with(GradCAM, guided=True, num_images=3),
        ("grad_cam/net.relu2", "grad_cam/net.relu2/guided"),
    ),
    Case(
        "faithfulness",
        _with(Faithfulness, of=[Saliency(), Occlusion()], num_images=2, steps=4, randomization=True, stages=2),
        ("faithfulness/curves", "faithfulness/randomization"),
    ),
    Case(
        "embeddings-layers",
        _with(Embeddings, layer=["conv1", "conv2"], methods=["pca"], projector=False, name="layers"),
        ("layers/pca", "layers/net.conv2/map", "layers/net.conv2/grid"),
        collects=True,
    ),
    Case("neighbors", _with(NearestNeighbors, k=3, num_images=3), ("neighbors/net.head",), collects=True),
    Case("ascent", _with(ActivationMaximization, classes=2, steps=2), ("ascent/classes",)),
    Case(
        "ascent-layer",
        _with(ActivationMaximization, layer="conv2", channels=2, steps=2, name="features"),
        ("features/net.conv2",),
    ),
    Case("fooling", _with(FoolingImages, num_images=2, steps=3), ("fooling/probe",)),
    Case("inversion", _with(Inversion, layers=["conv1", "relu2"], num_images=2, steps=1), ("inversion/probe",)),
    Case("dream", _with(DeepDream, num_images=2, octaves=2, steps=2), ("dream/net.conv2",)),
    Case("objects", _with(ObjectExtraction, num_images=3, samples=3), ("objects/probe",)),
    Case(
        "facets",
        # The names are given, since those of a stream can't be found.
        _with(Facets, target=["bee", 2], class_names=["ant", "bee", "cat"], facets=2, steps=2),
        ("facets/bee", "facets/cat"),
        collects=True,
    ),
]

TSNE = Case(
    "embeddings-tsne",
    _with(Embeddings),
    ("embeddings/net.head", "embeddings/net.head/map", "embeddings/net.head/grid"),
    collects=True,
)
