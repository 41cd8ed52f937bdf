"""Results of evaluations, and the files `metrics.json` and `evaluation.json`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch

from lift_det.files import write_text_atomically
from lift_det.version import __version__

logger = logging.getLogger(f"detectron2.{__name__}")

#: names of tasks in evaluators, and in tables and plots
TASKS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
_RECONSTRUCTION = ("cosine_", "rel_l2_", "error_reduction_")


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The results of one evaluation.

    Attributes:
        name: name in tables.
        figures: metrics by task, for a detector in percent, such as ``{"bbox": {"AP": 31.2, "AP-person": 40.0}}``. A
            metric is NaN if there are no objects for it.
        dataset: name or annotation file of the dataset.
        num_images: number of evaluated images.
        objects: number of objects of each class, without crowds, in class order.
        config, weights: paths.
        iteration: iteration of the training, if the evaluation was part of one.
    """

    name: str
    figures: Mapping[str, Mapping[str, float]]
    dataset: str | None = None
    num_images: int | None = None
    objects: Mapping[str, int] = dataclasses.field(default_factory=dict)
    config: str | None = None
    weights: str | None = None
    iteration: int | None = None


def read_metrics(folder: str | os.PathLike) -> list[dict[str, float]]:
    """Reads ``metrics.json`` in the output folder of a training, and returns a dict for each iteration, in order.

    If the training was resumed from an earlier iteration, later lines replace earlier ones. Incomplete lines of a
    training that was killed are skipped with a warning.

    Raises:
        FileNotFoundError: the folder or its ``metrics.json`` does not exist.
        ValueError: the file has no complete line.
    """
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"There is no '{path}'. Expected the output folder of a training (train.output_dir). The training writes "
            "the file after train.log_period iterations."
        )
    lines: dict[int, dict[str, float]] = {}
    trained = -1
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            line = _read_line(text)
            if line is None:
                logger.warning("'%s': line %d is incomplete and is skipped.", path, number)
                continue
            iteration = line["iteration"]
            # An evaluation may be written after losses of later iterations, but losses are in order unless resumed.
            if "total_loss" in line:
                if iteration <= trained:
                    lines = {i: kept for i, kept in lines.items() if i < iteration}
                trained = iteration
            lines.setdefault(iteration, {}).update(line)
    if not lines:
        raise ValueError(f"'{path}' has no complete line. The first is written after train.log_period iterations.")
    return [lines[iteration] for iteration in sorted(lines)]


def _read_line(text: str) -> dict[str, float] | None:
    # A resumed training may append its first line to an incomplete one. There are no nested braces.
    for candidate in (text, text[max(text.rfind("{"), 0) :]):
        try:
            line = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("iteration"), int):
            return line
    return None


def recorded_result(folder: str | os.PathLike, name: str | None = None, dataset: str | None = None) -> EvaluationResult:
    """Reads the last evaluation from ``metrics.json`` in the output folder of a training.

    Args:
        folder: the output folder.
        name: of the result. By default the name of the folder.
        dataset: of the result; the file does not contain it.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_metrics`, or there was no evaluation.
    """
    for line in reversed(read_metrics(folder)):
        figures: dict[str, dict[str, float]] = {}
        for key, value in line.items():
            task, _, figure = key.partition("/")
            if task in TASKS or task.startswith(_RECONSTRUCTION):
                figures.setdefault(task, {})[figure] = value
        if figures:
            name = name or folder_names([folder])[0]
            return EvaluationResult(name, figures, dataset, iteration=int(line["iteration"]))
    raise ValueError(f"'{os.fspath(folder)}': metrics.json has no evaluation. The first is at train.eval_period.")


def folder_names(folders: Sequence[str | os.PathLike]) -> list[str]:
    """Returns the shortest ends of the folders' paths that differ from each other.

    Raises:
        ValueError: a folder is named twice.
    """
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"'{path}' is named twice.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def write_result(result: EvaluationResult, folder: str | os.PathLike) -> str:
    """Writes ``evaluation.json`` atomically and returns its path."""
    path = os.path.join(folder, "evaluation.json")
    write_json(path, dataclasses.asdict(result))
    return path


def write_json(path: str, content: dict[str, Any]) -> None:
    """Writes JSON atomically, with versions and the time. Creates the folder. NaN becomes null."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    versions = {"lift_det": __version__, "detectron2": detectron2.__version__, "torch": torch.__version__}
    time = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    content = _nan_to_none({**content, "versions": versions, "time": time})
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
