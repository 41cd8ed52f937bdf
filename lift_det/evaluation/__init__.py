"""Evaluation of detectors (COCO, LVIS) and of LiFT, and tables of results."""

from lift_det.results import EvaluationResult, folder_names, read_metrics, recorded_result, write_result

from .coco_evaluation import COCOEvaluator, LVISEvaluator, instances_to_coco_json, with_category_ids
from .evaluate import evaluate_detector, evaluated_dataset, evaluation_config
from .reconstruction import ReconstructionEvaluator, reconstruction_table
from .result_tables import comparison_table, result_table, write_comparison

__all__ = [
    "COCOEvaluator",
    "EvaluationResult",
    "LVISEvaluator",
    "ReconstructionEvaluator",
    "comparison_table",
    "evaluate_detector",
    "evaluated_dataset",
    "evaluation_config",
    "folder_names",
    "instances_to_coco_json",
    "read_metrics",
    "reconstruction_table",
    "recorded_result",
    "result_table",
    "with_category_ids",
    "write_comparison",
    "write_result",
]
