"""Evaluation: LiFT's reconstruction of features, and pictures of what a model sees and finds."""

from .pictures import draw_features, draw_predictions, draw_upsampled
from .reconstruction import ReconstructionEvaluator, reconstruction_table

__all__ = [
    "ReconstructionEvaluator",
    "draw_features",
    "draw_predictions",
    "draw_upsampled",
    "reconstruction_table",
]
