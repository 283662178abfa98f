"""How each visualization is computed: pure functions on any model, tensors in, tensors out."""

from lit_viz.functional.cam import (
    activations_and_gradients,
    grad_cam,
    guided_grad_cam,
    hires_cam,
    last_spatial_layer,
    layer_cam,
    upsampled,
)
from lit_viz.functional.embedding import PCA, align_signs, pca
from lit_viz.functional.filters import filters, roughness
from lit_viz.functional.guided import deconvnet, find_activations, guided_backprop
from lit_viz.functional.integrated_gradients import completeness_error, integrated_gradients
from lit_viz.functional.occlusion import check_window, occlusion, on_image
from lit_viz.functional.patches import Responses, TopResponses, cut, merge, strongest
from lit_viz.functional.receptive_field import (
    LayerInfo,
    ReceptiveField,
    format_layer_table,
    layer_table,
    receptive_field,
)
from lit_viz.functional.saliency import input_gradient, input_x_gradient, saliency
from lit_viz.functional.smooth_grad import smooth_grad
from lit_viz.functional.scores import class_scores, probabilities, resolve_target
from lit_viz.functional.tsne import tsne
from lit_viz.functional.units import LayerUnits

__all__ = [
    "PCA",
    "LayerInfo",
    "LayerUnits",
    "ReceptiveField",
    "Responses",
    "TopResponses",
    "activations_and_gradients",
    "align_signs",
    "check_window",
    "class_scores",
    "completeness_error",
    "cut",
    "deconvnet",
    "filters",
    "find_activations",
    "format_layer_table",
    "grad_cam",
    "guided_backprop",
    "guided_grad_cam",
    "hires_cam",
    "input_gradient",
    "input_x_gradient",
    "integrated_gradients",
    "last_spatial_layer",
    "layer_cam",
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
    "smooth_grad",
    "strongest",
    "tsne",
    "upsampled",
]
