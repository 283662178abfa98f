"""LightningModules."""

from lit_viz.modules.classifier import ImageClassifier
from lit_viz.modules.decoder import FeatureDecoder
from lit_viz.modules.fast_style import FastStyleTransfer
from lit_viz.modules.inversion import FeatureInversion
from lit_viz.modules.style import StyleTransfer
from lit_viz.modules.texture import TextureSynthesis

__all__ = [
    "FastStyleTransfer",
    "FeatureDecoder",
    "FeatureInversion",
    "ImageClassifier",
    "StyleTransfer",
    "TextureSynthesis",
]
