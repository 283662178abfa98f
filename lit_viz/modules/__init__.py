"""LightningModules."""

from lit_viz.modules.classifier import ImageClassifier
from lit_viz.modules.decoder import FeatureDecoder
from lit_viz.modules.fast_style import FastStyleTransfer
from lit_viz.modules.inversion import FeatureInversion

__all__ = ["FastStyleTransfer", "FeatureDecoder", "FeatureInversion", "ImageClassifier"]
