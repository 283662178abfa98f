"""How each visualization is computed: pure functions on any model, tensors in, tensors out."""

from lit_viz.functional.activations import LayerMaps, activations, layer_maps, telling_layers
from lit_viz.functional.ascent import RECIPES, Recipe, activation_maximization, recipe_for
from lit_viz.functional.cam import (
    activations_and_gradients,
    grad_cam,
    guided_grad_cam,
    hires_cam,
    layer_cam,
    upsampled,
)
from lit_viz.functional.dream import Dream, GuideMatch, Octave, check_dream, deep_dream, dream_layer, dream_zoom
from lit_viz.functional.embedding import PCA, align_signs, pca, silhouette, trustworthiness
from lit_viz.functional.facets import Facets, facet_images, find_facets, head_features, match_facets, tv_denoised
from lit_viz.functional.faithfulness import (
    Curves,
    Randomization,
    boxes_to_masks,
    energy_inside,
    insertion_deletion,
    pointing_score,
    randomization_check,
)
from lit_viz.functional.filters import filters, roughness
from lit_viz.functional.fooling import Fooling, fooling_image, same_size_noise
from lit_viz.functional.guided import Activations, deconvnet, find_activations, guided_backprop
from lit_viz.functional.integrated_gradients import completeness_error, integrated_gradients
from lit_viz.functional.inversion import FeatureMatch, Inversion, invert_features, psnr
from lit_viz.functional.neighbors import Neighbors, knn_accuracy, nearest_neighbors, recall_at_k
from lit_viz.functional.occlusion import Grid, OcclusionMap, check_window, occlusion, occlusion_map, on_image
from lit_viz.functional.patches import Responses, TopResponses, cut, merge, strongest
from lit_viz.functional.receptive_field import (
    LayerInfo,
    ReceptiveField,
    format_layer_table,
    layer_table,
    receptive_field,
)
from lit_viz.functional.rollout import attention_rollout, attention_weights, recording_attention, rolled_out
from lit_viz.functional.saliency import input_gradient, input_x_gradient, saliency
from lit_viz.functional.scores import class_scores, probabilities, resolve_target
from lit_viz.functional.segmentation import best_threshold_iou, cut_out, iou, segment
from lit_viz.functional.smooth_grad import smooth_grad
from lit_viz.functional.spatial_layer import last_spatial_layer
from lit_viz.functional.style import gram_matrix
from lit_viz.functional.synthesis import (
    Channel,
    ClassScore,
    Direction,
    Energy,
    Objective,
    Synthesis,
    Unit,
    total_variation,
)
from lit_viz.functional.texture import Texture, efros_leung, image_quilting
from lit_viz.functional.tsne import tsne
from lit_viz.functional.units import LayerUnits

__all__ = [
    "PCA",
    "RECIPES",
    "Activations",
    "Channel",
    "ClassScore",
    "Curves",
    "Direction",
    "Dream",
    "Energy",
    "Facets",
    "FeatureMatch",
    "Fooling",
    "Grid",
    "GuideMatch",
    "Inversion",
    "LayerInfo",
    "LayerMaps",
    "LayerUnits",
    "Neighbors",
    "Objective",
    "OcclusionMap",
    "Octave",
    "Randomization",
    "ReceptiveField",
    "Recipe",
    "Responses",
    "Synthesis",
    "Texture",
    "TopResponses",
    "Unit",
    "activation_maximization",
    "activations",
    "activations_and_gradients",
    "align_signs",
    "attention_rollout",
    "attention_weights",
    "best_threshold_iou",
    "boxes_to_masks",
    "check_dream",
    "check_window",
    "class_scores",
    "completeness_error",
    "cut",
    "cut_out",
    "deconvnet",
    "deep_dream",
    "dream_layer",
    "dream_zoom",
    "efros_leung",
    "energy_inside",
    "facet_images",
    "filters",
    "find_activations",
    "find_facets",
    "fooling_image",
    "format_layer_table",
    "grad_cam",
    "gram_matrix",
    "guided_backprop",
    "guided_grad_cam",
    "head_features",
    "hires_cam",
    "image_quilting",
    "input_gradient",
    "input_x_gradient",
    "insertion_deletion",
    "integrated_gradients",
    "invert_features",
    "iou",
    "knn_accuracy",
    "last_spatial_layer",
    "layer_cam",
    "layer_maps",
    "layer_table",
    "match_facets",
    "merge",
    "nearest_neighbors",
    "occlusion",
    "occlusion_map",
    "on_image",
    "pca",
    "pointing_score",
    "probabilities",
    "psnr",
    "randomization_check",
    "recall_at_k",
    "receptive_field",
    "recipe_for",
    "recording_attention",
    "resolve_target",
    "rolled_out",
    "roughness",
    "saliency",
    "same_size_noise",
    "segment",
    "silhouette",
    "smooth_grad",
    "strongest",
    "telling_layers",
    "total_variation",
    "trustworthiness",
    "tsne",
    "tv_denoised",
    "upsampled",
]
