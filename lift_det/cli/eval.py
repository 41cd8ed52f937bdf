"""`lift-det eval`: AP of trained models, overall, by size and of each class; several of them side by side."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from .arguments import UsageError, accept_overrides, read_model_arguments, split_overrides

if TYPE_CHECKING:
    from lift_det.engine import Predictor
    from lift_det.engine.recipes.own_data import OwnCoco
    from lift_det.evaluation import EvaluationResult

_EPILOG = """\
examples:
  lift-det eval output/mine
  lift-det eval output/mine --dataset my_test.json:images/
  lift-det eval --config-file COCO/mask_rcnn_lift_vitdet_b_100ep.py --weights model_final.pth
  lift-det eval output/lift output/bilinear --output output/comparison
  lift-det eval output/* --recorded

Of each model it writes evaluation.json and the predictions (coco_instances_results.json); of several folders, where
--output is given, comparison.md, comparison.png and comparison.json besides. --recorded evaluates nothing, and reads
what trainings, of LiFTs too, have written to metrics.json.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `eval` to the command."""
    parser = subparsers.add_parser(
        "eval",
        help="evaluate trained models, and compare them",
        description="Evaluates models on their config's test set or on another, and prints AP: overall, by size and of "
        "each class.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="DIR | KEY=VALUE",
        help="output folders of trainings, those of metrics.json, and overrides of their configs",
    )
    parser.add_argument(
        "--config-file", metavar="CONFIG", help="in place of folders: a path, or a name that `lift-det configs` lists"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="of --config-file; with one folder, in place of its best or last"
    )
    parser.add_argument("--dataset", metavar="JSON:IMAGES", help="COCO-format annotations, and the folder of images")
    parser.add_argument(
        "--output", metavar="DIR", help="(inference/ in the training's folder; with --dataset inference_NAME/ there)"
    )
    parser.add_argument("--recorded", action="store_true", help="read the last figures that trainings have recorded")
    parser.add_argument("--device", help="cuda or cpu (cuda where there is one)")
    accept_overrides(parser, "folders")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print and write."""
    from lift_det.evaluation import comparison_table, result_table, write_comparison
    from lift_det.visualization import plot_comparison

    folders, overrides = split_overrides(arguments.folders)
    if bool(folders) == bool(arguments.config_file):
        raise UsageError("name models: output folders of trainings, or --config-file CONFIG --weights FILE")
    if arguments.weights and len(folders) > 1:
        raise UsageError("--weights FILE goes with one folder")
    if arguments.recorded:
        if arguments.config_file or arguments.weights or arguments.dataset or overrides:
            raise UsageError("--recorded evaluates nothing: it goes with folders and --output alone")
        results = _recorded(folders)
    else:
        results = _evaluate(arguments, folders, overrides)
    if len(results) > 1 and arguments.output:
        written = write_comparison(results, arguments.output)
        written.append(os.path.join(arguments.output, "comparison.png"))
        plot_comparison(results, written[-1])
        print(f"Written: {', '.join(written)}")
    if len(results) > 1:
        print(f"\n{comparison_table(results)}")
    else:
        print(f"\n{_headline(results[0])}\n\n{result_table(results[0])}")
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


def _evaluate(arguments: argparse.Namespace, folders: list[str], overrides: list[str]) -> list[EvaluationResult]:
    from lift_det.config import find_config
    from lift_det.engine import Predictor, load_model
    from lift_det.evaluation import evaluate_detector, evaluation_config, folder_names, write_result

    models = []
    for folder in folders or [None]:
        named = argparse.Namespace(folder=folder, config_file=arguments.config_file, weights=arguments.weights)
        cfg, weights = read_model_arguments(named, overrides)
        # before the first is evaluated, so that what is wrong with the last is not said after an hour
        models.append((cfg, evaluation_config(cfg), weights, _output(arguments, folder or weights)))
    names = folder_names(folders) if folders else [os.path.splitext(os.path.basename(arguments.weights))[0]]
    configs = [os.path.join(f, "config.yaml") for f in folders] or [find_config(arguments.config_file)]
    results, data = [], None
    for name, config, (cfg, test_cfg, weights, output) in zip(names, configs, models, strict=True):
        if arguments.output and len(names) > 1:
            output = os.path.join(output, name)
        if arguments.dataset:
            predictor = Predictor(cfg, weights, device=arguments.device)
            model, data = predictor.model, data or _check_dataset(arguments.dataset, predictor, output)
            _use_dataset(test_cfg, data, predictor)
        else:
            model = load_model(cfg, weights, arguments.device)
        results.append(
            evaluate_detector(
                model, test_cfg, output, name=name, dataset=_annotations(arguments), config=config, weights=weights
            )
        )
        print(f"Written: {write_result(results[-1], output)}")
    return results


def _output(arguments: argparse.Namespace, place: str) -> str:
    """Where an evaluation is written: --output, or in the training's folder, or beside the weights."""
    if arguments.output:
        return arguments.output
    if "://" in place:
        raise UsageError("--output DIR: where is the result to be written, as the weights are in no folder here?")
    folder = place if os.path.isdir(place) else os.path.dirname(place)
    annotations = _annotations(arguments)
    stem = f"_{os.path.splitext(os.path.basename(annotations))[0]}" if annotations else ""
    return os.path.join(folder, f"inference{stem}")


def _annotations(arguments: argparse.Namespace) -> str | None:
    from lift_det.data import parse_dataset

    return os.path.abspath(parse_dataset(arguments.dataset)[0]) if arguments.dataset else None


def _check_dataset(dataset: str, predictor: Predictor, output: str) -> OwnCoco:
    from lift_det.engine.recipes import check_own_coco, own_coco

    return own_coco(check_own_coco(dataset, output, _categories(predictor)), output)


def _use_dataset(test_cfg: Any, data: OwnCoco, predictor: Predictor) -> None:
    """Puts the data set in the config's place; of the first model's classes it is, the others' may not be the same."""
    from lift_det.engine.recipes import use_dataset
    from lift_det.evaluation import COCOEvaluator

    if dict(data.categories) != _categories(predictor):
        raise ValueError(f"'{data.json_file}' has the classes of the first model, but not those of another one.")
    use_dataset(test_cfg, "test", data)
    evaluator = test_cfg.dataloader.evaluator
    evaluator._target_, evaluator.dataset_name = COCOEvaluator, data.name
    evaluator.tasks = ["bbox"] if data.masks == "none" else None  # of the predictions


def _categories(predictor: Predictor) -> dict[int, str]:
    """A model's class names by category id."""
    return dict(zip(predictor.category_ids, predictor.class_names, strict=True))


def _headline(result: EvaluationResult) -> str:
    parts = [f"{result.name}: "]
    if result.iteration is not None:
        parts.append(f"recorded at iteration {result.iteration}, ")
    if result.num_images is not None:
        objects = f", {sum(result.objects.values())} objects" if result.objects else ""
        parts.append(f"{result.num_images} images{objects} of ")
    parts.append(result.dataset or "data not known")
    if result.weights:
        parts.append(f"; weights {result.weights}")
    return "".join(parts)
