"""Evaluation of a detector on the test set of a config."""

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
from lift_det.results import EvaluationResult

from .coco_evaluation import COCOEvaluator, LVISEvaluator


def evaluation_config(cfg: DictConfig | CfgNode) -> DictConfig:
    """Returns a LazyConfig with ``dataloader.test`` and ``dataloader.evaluator``; a yacs config is converted.

    Raises:
        ValueError: the config has no evaluator for detectors, or the yacs config does not have exactly one test set.
    """
    if isinstance(cfg, CfgNode):
        return _convert_yacs(cfg)
    if "test" not in cfg.get("dataloader", {}) or "evaluator" not in cfg.dataloader:
        raise ValueError("The config has no dataloader.test or no dataloader.evaluator.")
    target = cfg.dataloader.evaluator._target_
    evaluator = locate(target) if isinstance(target, str) else target
    if not (isinstance(evaluator, type) and issubclass(evaluator, (UpstreamCOCOEvaluator, UpstreamLVISEvaluator))):
        raise ValueError(
            f"The config's evaluator is {target}: expected COCOEvaluator or LVISEvaluator. The results of a LiFT are "
            "in the metrics.json of its training (`lift-det eval --recorded`, recorded_result)."
        )
    return cfg


def _convert_yacs(cfg: CfgNode) -> DictConfig:
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST is {cfg.DATASETS.TEST}: expected one dataset, such as ('my_val',).")
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
    """Returns the annotation file, else the name, of a config's test set; None if there is no test set."""
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
    """Evaluates a detector on the test set of a config, with a progress bar.

    Args:
        model: its training mode is restored afterwards.
        cfg: see :func:`evaluation_config`; not modified.
        output_dir: folder for the evaluator's files.
        name, dataset, config, weights: attributes of the result. ``dataset`` defaults to :func:`evaluated_dataset`.

    Raises:
        ValueError: the dataset has no annotations.
        lift_det.data.DatasetError: the dataset cannot be loaded.
    """
    dataset = dataset or evaluated_dataset(cfg)
    records = instantiate(cfg.dataloader.test.dataset)
    loader = instantiate({**cfg.dataloader.test, "dataset": records})
    evaluator = instantiate({**cfg.dataloader.evaluator, "output_dir": os.fspath(output_dir)})
    with contextlib.redirect_stdout(io.StringIO()):  # COCO's table
        figures = inference_on_dataset(model, tqdm(loader, desc=name, unit="batch"), evaluator)
    if not figures:
        raise ValueError(f"'{dataset}' has no annotations to evaluate on. The predictions are in '{output_dir}'.")
    classes = MetadataCatalog.get(cfg.dataloader.evaluator.dataset_name).get("thing_classes") or []
    objects = dict.fromkeys(classes, 0)
    for record in records if classes else ():
        for annotation in record.get("annotations", ()):
            objects[classes[annotation["category_id"]]] += not annotation.get("iscrowd", 0)
    figures = {task: dict(values) for task, values in figures.items()}
    return EvaluationResult(name, figures, dataset, len(records), objects, config, weights)
