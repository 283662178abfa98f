"""Visualizations as Lightning callbacks: add them to any Trainer."""

from lit_viz.callbacks.activations import Activations
from lit_viz.callbacks.ascent import ActivationMaximization
from lit_viz.callbacks.attribution import AttributionCallback
from lit_viz.callbacks.base import Look, VisualizationCallback
from lit_viz.callbacks.cam import GradCAM
from lit_viz.callbacks.collecting import Batch, CollectingCallback, Tap
from lit_viz.callbacks.dream import DeepDream
from lit_viz.callbacks.embeddings import Embeddings
from lit_viz.callbacks.facets import Facets
from lit_viz.callbacks.faithfulness import Faithfulness
from lit_viz.callbacks.filters import Filters
from lit_viz.callbacks.fooling import FoolingImages
from lit_viz.callbacks.guided import GuidedBackprop
from lit_viz.callbacks.inversion import Inversion
from lit_viz.callbacks.neighbors import NearestNeighbors
from lit_viz.callbacks.occlusion import Occlusion
from lit_viz.callbacks.patches import MaxActivatingPatches
from lit_viz.callbacks.rollout import AttentionRollout
from lit_viz.callbacks.saliency import Saliency
from lit_viz.callbacks.segmentation import ObjectExtraction

__all__ = [
    "ActivationMaximization",
    "Activations",
    "AttentionRollout",
    "AttributionCallback",
    "Batch",
    "CollectingCallback",
    "DeepDream",
    "Embeddings",
    "Facets",
    "Faithfulness",
    "Filters",
    "FoolingImages",
    "GradCAM",
    "GuidedBackprop",
    "Inversion",
    "Look",
    "MaxActivatingPatches",
    "NearestNeighbors",
    "ObjectExtraction",
    "Occlusion",
    "Saliency",
    "Tap",
    "VisualizationCallback",
]
