"""Evaluation: LiFT's reconstruction of features, and pictures of what a model sees and finds."""

from .pictures import draw_features, draw_predictions
from .reconstruction import ReconstructionEvaluator

__all__ = ["ReconstructionEvaluator", "draw_features", "draw_predictions"]
