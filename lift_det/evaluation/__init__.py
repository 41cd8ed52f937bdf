"""Evaluation: COCO's and LVIS's figures, LiFT's reconstruction of features, and pictures of what a model finds."""

from .coco_evaluation import COCOEvaluator
from .coco_instances import instances_to_coco_json
from .lvis_evaluation import LVISEvaluator
from .perturbed_detections import perturbed_detections
from .pictures import draw_features, draw_predictions, draw_upsampled
from .reconstruction import ReconstructionEvaluator, reconstruction_table

__all__ = [
    "COCOEvaluator",
    "LVISEvaluator",
    "ReconstructionEvaluator",
    "draw_features",
    "draw_predictions",
    "draw_upsampled",
    "instances_to_coco_json",
    "perturbed_detections",
    "reconstruction_table",
]
