"""LightningModules."""

from lit_viz.modules.classifier import ImageClassifier

__all__ = ["ImageClassifier"]
