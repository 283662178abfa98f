"""Visualizations as Lightning callbacks: add them to any Trainer."""

from lit_viz.callbacks.attribution import AttributionCallback
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.callbacks.collecting import Batch, CollectingCallback, Tap
from lit_viz.callbacks.embeddings import Embeddings
from lit_viz.callbacks.filters import Filters
from lit_viz.callbacks.occlusion import Occlusion
from lit_viz.callbacks.patches import MaxActivatingPatches
from lit_viz.callbacks.saliency import Saliency

__all__ = [
    "AttributionCallback",
    "Batch",
    "CollectingCallback",
    "Embeddings",
    "Filters",
    "Look",
    "MaxActivatingPatches",
    "Occlusion",
    "Saliency",
    "Tap",
    "VisualizationCallback",
]
