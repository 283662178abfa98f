"""Visualizations as Lightning callbacks: add them to any Trainer."""

from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.callbacks.collecting import Batch, CollectingCallback, Tap
from lit_viz.callbacks.embeddings import Embeddings
from lit_viz.callbacks.filters import Filters
from lit_viz.callbacks.occlusion import Occlusion
from lit_viz.callbacks.patches import MaxActivatingPatches
from lit_viz.callbacks.saliency import Saliency

__all__ = [
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
