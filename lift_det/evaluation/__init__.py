"""Evaluation: COCO's and LVIS's figures, LiFT's reconstruction of features, and pictures of what a model finds."""

from .coco_evaluation import COCOEvaluator
from .coco_instances import instances_to_coco_json
from .detections_picture import draw_detections
from .evaluate import evaluate_detector, evaluated_dataset, evaluation_config
from .feature_maps import check_point, save_feature_maps, similarity_to, upsampled_features
from .feature_pictures import draw_feature_grid
from .feature_viewer import FeatureViewer
from .lvis_evaluation import LVISEvaluator
from .perturbed_detections import perturbed_detections
from .pictures import draw_features, draw_predictions, draw_upsampled, picture_predictions
from .predict_files import predict_files
from .prediction_file import PredictionFile
from .prediction_pictures import PredictionPictures
from .reconstruction import ReconstructionEvaluator, reconstruction_table
from .result_plots import plot_comparison, plot_training
from .result_tables import comparison_table, result_table, write_comparison
from .results import EvaluationResult, count_objects, folder_names, read_metrics, recorded_result, write_result

__all__ = [
    "COCOEvaluator",
    "EvaluationResult",
    "FeatureViewer",
    "LVISEvaluator",
    "PredictionPictures",
    "PredictionFile",
    "ReconstructionEvaluator",
    "check_point",
    "comparison_table",
    "count_objects",
    "draw_detections",
    "draw_feature_grid",
    "draw_features",
    "draw_predictions",
    "draw_upsampled",
    "evaluate_detector",
    "evaluated_dataset",
    "evaluation_config",
    "folder_names",
    "instances_to_coco_json",
    "perturbed_detections",
    "picture_predictions",
    "plot_comparison",
    "plot_training",
    "predict_files",
    "read_metrics",
    "reconstruction_table",
    "recorded_result",
    "result_table",
    "save_feature_maps",
    "similarity_to",
    "upsampled_features",
    "write_comparison",
    "write_result",
]
