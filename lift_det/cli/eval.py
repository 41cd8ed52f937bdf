"""Evaluates and compares trained detectors: AP overall, by size and by class.

examples:
  lift-det eval output/mine
  lift-det eval output/mine --dataset my_test.json:images/
  lift-det eval --config-file COCO/mask_rcnn_lift_vitdet_b_100ep.py --weights model_final.pth
  lift-det eval output/lift output/bilinear --output output/comparison
  lift-det eval output/* --recorded

For each model, evaluation.json and predictions (coco_instances_results.json) are written; for several models with
--output, also comparison.md and comparison.json. --recorded reads the last evaluation from metrics.json instead, also
for trainings of LiFT.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from .arguments import UsageError, add_device_argument, add_overrides, read_model_arguments

if TYPE_CHECKING:
    from lift_det.engine import Predictor
    from lift_det.evaluation import EvaluationResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="DIR",
        help="output folders of trainings; KEY=VALUE overrides their configs",
    )
    parser.add_argument(
        "--config-file", metavar="CONFIG", help="instead of folders: a path or a name from `lift-det configs`"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="for --config-file or a single folder (default: best or last in the folder)"
    )
    parser.add_argument(
        "--dataset",
        metavar="JSON:IMAGES",
        help="annotations and folder of images (default: the test set of the config)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="(default: inference/ or, with --dataset, inference_NAME/ beside the weights)"
    )
    parser.add_argument("--recorded", action="store_true", help="read recorded evaluations instead of evaluating")
    add_device_argument(parser)
    add_overrides(parser, "folders")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates the models, and writes and prints the results."""
    from lift_det.evaluation import comparison_table, result_table, write_comparison

    if bool(arguments.folders) == bool(arguments.config_file):
        raise UsageError("name models: either output folders of trainings, or --config-file CONFIG --weights FILE")
    if arguments.weights and len(arguments.folders) > 1:
        raise UsageError("--weights FILE needs a single folder")
    if arguments.recorded and (arguments.config_file or arguments.weights or arguments.dataset or arguments.overrides):
        raise UsageError("--recorded can only be used with folders and --output")
    results = _recorded(arguments.folders) if arguments.recorded else _evaluate(arguments)
    if len(results) > 1 and arguments.output:
        print(f"Written: {', '.join(write_comparison(results, arguments.output))}")
    if len(results) > 1:
        print(f"\n{comparison_table(results)}")
    else:
        (result,) = results
        source = f"weights {result.weights}" if result.iteration is None else f"iteration {result.iteration}"
        images = "" if result.num_images is None else f"{result.num_images} images of "
        print(f"\n{result.name}: {images}{result.dataset or 'unknown data'}, {source}\n\n{result_table(result)}")
    return 0


def _recorded(folders: list[str]) -> list[EvaluationResult]:
    from lift_det import config
    from lift_det.evaluation import evaluated_dataset, folder_names, recorded_result

    results = []
    for folder, name in zip(folders, folder_names(folders), strict=True):
        path = os.path.join(folder, "config.yaml")
        dataset = evaluated_dataset(config.load(path)) if os.path.isfile(path) else None
        results.append(recorded_result(folder, name, dataset))
    return results


def _evaluate(arguments: argparse.Namespace) -> list[EvaluationResult]:
    from lift_det.config import find_config
    from lift_det.data import parse_dataset
    from lift_det.engine import Predictor, load_model
    from lift_det.engine.recipes import check_own_coco, own_coco
    from lift_det.evaluation import evaluate_detector, evaluation_config, folder_names, write_result

    json_file = os.path.abspath(parse_dataset(arguments.dataset)[0]) if arguments.dataset else None
    names = folder_names(arguments.folders) or [os.path.splitext(os.path.basename(arguments.weights or ""))[0]]
    models = []
    for folder in arguments.folders or [None]:
        named = argparse.Namespace(folder=folder, config_file=arguments.config_file, weights=arguments.weights)
        cfg, weights = read_model_arguments(named, arguments.overrides)
        config_file = os.path.join(folder, "config.yaml") if folder else find_config(arguments.config_file)
        output = arguments.output or _default_output(folder or os.path.dirname(weights), json_file)
        # all are read before the first evaluation, so that errors are found early
        models.append((cfg, evaluation_config(cfg), config_file, weights, output))
    results, data = [], None
    for name, (cfg, test_cfg, config_file, weights, output) in zip(names, models, strict=True):
        if arguments.output and len(names) > 1:
            output = os.path.join(output, name)
        if json_file:
            predictor = Predictor(cfg, weights, device=arguments.device, mask_format=None)
            data = data or own_coco(check_own_coco(arguments.dataset, output, _categories(predictor)), output)
            _use_dataset(test_cfg, data, predictor)
            model = predictor.model
        else:
            model = load_model(cfg, weights, arguments.device, mask_format=None)
        result = evaluate_detector(
            model, test_cfg, output, name=name, dataset=json_file, config=config_file, weights=weights
        )
        print(f"Written: {write_result(result, output)}")
        results.append(result)
    return results


def _default_output(folder: str, json_file: str | None) -> str:
    if "://" in folder:
        raise UsageError("weights from a URL need --output DIR")
    name = f"_{os.path.splitext(os.path.basename(json_file))[0]}" if json_file else ""
    return os.path.join(folder, f"inference{name}")


def _use_dataset(test_cfg: Any, data: Any, predictor: Predictor) -> None:
    """Sets the dataset of a model's test config. It was checked with the classes of the first model."""
    from lift_det.engine.recipes import use_dataset
    from lift_det.evaluation import COCOEvaluator

    if dict(data.categories) != _categories(predictor):
        raise ValueError(f"'{data.json_file}' has the classes of the first model, but not those of another model.")
    use_dataset(test_cfg, "test", data)
    evaluator = test_cfg.dataloader.evaluator
    evaluator._target_, evaluator.dataset_name = COCOEvaluator, data.json_file
    evaluator.tasks = ["bbox"] if data.masks == "none" else None  # None: the tasks of the predictions


def _categories(predictor: Predictor) -> dict[int, str]:
    return dict(zip(predictor.category_ids, predictor.class_names, strict=True))
