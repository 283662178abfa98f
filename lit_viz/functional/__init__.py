"""How each visualization is computed: pure functions on any model, tensors in, tensors out."""

from lit_viz.functional.embedding import PCA, align_signs, pca
from lit_viz.functional.filters import filters, roughness
from lit_viz.functional.occlusion import check_window, occlusion, on_image
from lit_viz.functional.patches import Responses, TopResponses, cut, merge, strongest
from lit_viz.functional.receptive_field import (
    LayerInfo,
    ReceptiveField,
    format_layer_table,
    layer_table,
    receptive_field,
)
from lit_viz.functional.saliency import input_gradient, saliency
from lit_viz.functional.scores import class_scores, probabilities, resolve_target
from lit_viz.functional.tsne import tsne

__all__ = [
    "PCA",
    "LayerInfo",
    "ReceptiveField",
    "Responses",
    "TopResponses",
    "align_signs",
    "check_window",
    "class_scores",
    "cut",
    "filters",
    "format_layer_table",
    "input_gradient",
    "layer_table",
    "merge",
    "occlusion",
    "on_image",
    "pca",
    "probabilities",
    "receptive_field",
    "resolve_target",
    "roughness",
    "saliency",
    "strongest",
    "tsne",
]
