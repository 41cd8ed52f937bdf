"""Drawings of detections and feature maps, and plots of trainings."""

from .curves import plot_training
from .detections import draw_detections, draw_predictions, picture_predictions
from .feature_maps import check_point, draw_feature_maps, principal_colours, save_feature_maps, similarity_to
from .prediction_pictures import PredictionPictures

__all__ = [
    "PredictionPictures",
    "check_point",
    "draw_detections",
    "draw_feature_maps",
    "draw_predictions",
    "picture_predictions",
    "plot_training",
    "principal_colours",
    "save_feature_maps",
    "similarity_to",
]
