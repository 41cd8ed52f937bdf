"""A detector's evaluation on the test set of its config, a LazyConfig or yacs's."""

from __future__ import annotations

import contextlib
import io
import os

from detectron2.config import CfgNode, LazyCall, instantiate
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator as UpstreamCOCOEvaluator
from detectron2.evaluation import LVISEvaluator as UpstreamLVISEvaluator
from detectron2.evaluation import inference_on_dataset
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from tqdm import tqdm

from lift_det.data import DatasetMapper, get_dataset_dicts
from lift_det.results import EvaluationResult, count_objects

from .coco_evaluation import COCOEvaluator
from .lvis_evaluation import LVISEvaluator


def evaluation_config(cfg: DictConfig | CfgNode) -> DictConfig:
    """What a detector is evaluated on and by: ``dataloader.test`` and ``dataloader.evaluator``.

    Args:
        cfg: a LazyConfig, which is given back; or yacs's, whose one test set is put in that form.

    Raises:
        ValueError: there is no evaluator of detectors, or yacs's config has no test set or several.
    """
    if isinstance(cfg, CfgNode):
        return _config_of_yacs(cfg)
    if "test" not in cfg.get("dataloader", {}) or "evaluator" not in cfg.dataloader:
        raise ValueError("The config has no dataloader.test with a dataloader.evaluator: there is nothing to evaluate.")
    target = cfg.dataloader.evaluator._target_
    evaluator = locate(target) if isinstance(target, str) else target
    if not (isinstance(evaluator, type) and issubclass(evaluator, (UpstreamCOCOEvaluator, UpstreamLVISEvaluator))):
        raise ValueError(
            f"The config's evaluator is {target}, not COCO's or LVIS's: its model is no detector. What the training "
            "of a LiFT has measured is in its metrics.json (recorded_result, `lift-det eval --recorded`)."
        )
    return cfg


def _config_of_yacs(cfg: CfgNode) -> DictConfig:
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {cfg.DATASETS.TEST}: expected one data set, such as ('my_val',).")
    (name,) = cfg.DATASETS.TEST
    evaluator = LVISEvaluator if MetadataCatalog.get(name).get("evaluator_type") == "lvis" else COCOEvaluator
    test = LazyCall(build_detection_test_loader)(
        dataset=LazyCall(get_dataset_dicts)(names=name, filter_empty=False),
        mapper=LazyCall(DatasetMapper)(**DatasetMapper.from_config(cfg, is_train=False)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    dataloader = {"test": test, "evaluator": LazyCall(evaluator)(dataset_name=name)}
    return OmegaConf.create({"dataloader": dataloader}, flags={"allow_objects": True})


def evaluated_dataset(cfg: DictConfig | CfgNode) -> str | None:
    """What a config evaluates on: the annotation file that it names, else the data set's name, else None."""
    if isinstance(cfg, CfgNode):
        names = cfg.DATASETS.TEST
    else:
        dataset = cfg.get("dataloader", {}).get("test", {}).get("dataset", {})
        names = dataset.get("json_file") or dataset.get("names") or dataset.get("root")
    return names if isinstance(names, str) or names is None else ", ".join(map(str, names))


def evaluate_detector(
    model: nn.Module,
    cfg: DictConfig,
    output_dir: str | os.PathLike,
    *,
    name: str = "model",
    dataset: str | None = None,
    config: str | None = None,
    weights: str | None = None,
) -> EvaluationResult:
    """Runs a detector over a test set, with a progress bar, and evaluates it as its config says.

    Args:
        model: left in the mode it was in.
        cfg: with ``dataloader.test`` and ``dataloader.evaluator``, see :func:`evaluation_config`; not changed.
        output_dir: for the evaluator's files: predictions, as COCO results and as torch's.
        name: of the result.
        dataset: what the result says of the data (:func:`evaluated_dataset`).
        config, weights: paths that the result is to name.

    Raises:
        ValueError: the data set has no annotations.
        lift_det.data.DatasetError: it cannot be loaded.
    """
    dataset = dataset or evaluated_dataset(cfg)
    records = instantiate(cfg.dataloader.test.dataset)
    loader = instantiate({**cfg.dataloader.test, "dataset": records})  # they are not loaded again
    evaluator = instantiate({**cfg.dataloader.evaluator, "output_dir": os.fspath(output_dir)})
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's table, whose figures the result has
        figures = inference_on_dataset(model, tqdm(loader, desc=name, unit="batch"), evaluator)
    if not figures:
        raise ValueError(f"'{dataset}' has no annotations to evaluate on. Predictions are in '{output_dir}'.")
    classes = MetadataCatalog.get(cfg.dataloader.evaluator.dataset_name).get("thing_classes")
    return EvaluationResult(
        name,
        {task: dict(values) for task, values in figures.items()},
        dataset,
        num_images=len(records),
        objects=count_objects(records, classes) if classes else {},
        config=config,
        weights=weights,
    )
