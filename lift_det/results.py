"""Results of evaluations, measured or read from a training's `metrics.json`, and the file that keeps them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch

from lift_det.files import write_text_atomically
from lift_det.version import __version__

logger = logging.getLogger(f"detectron2.{__name__}")

#: what evaluators call boxes and masks -> what tables call them
TASKS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
#: of the names that evaluators give to figures of one class
CLASS_PREFIX = "AP-"

_DETECTION = re.compile(rf"({'|'.join(TASKS)})/(.+)", re.DOTALL)
_RECONSTRUCTION = re.compile(r"((?:cosine|rel_l2|error_reduction)_\w+)/(\w+)")


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The figures of one evaluation, and what they are of.

    Attributes:
        name: what tables and plots call it.
        figures: as the evaluator gives them. A detector's are in percent, NaN where something cannot be computed:
            ``{"bbox": {"AP": 31.2, "AP50": …, "AP-person": 40.0}, "segm": …}``. A LiFT's are
            those of :class:`lift_det.evaluation.ReconstructionEvaluator`.
        dataset: what was evaluated on; None where it is not known.
        num_images: evaluated; None where it is not known.
        objects: of each class in the ground truth, without crowds, in class order; empty where it is not known.
        config, weights: their paths; None where they are not known.
        iteration: of the training, where the figures were recorded during one.
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
    """The lines of a training's ``metrics.json``, one for each iteration that has any, in their order.

    Where a training was resumed from an earlier iteration, or started again in the same folder, what it had written
    from there on is left out: later lines win. A line that a kill cut off is left out with a warning.

    Args:
        folder: a training's output folder.

    Returns:
        Dicts of ``"iteration"`` and what was measured: ``"total_loss"``, ``"lr"``, ``"bbox/AP"`` …

    Raises:
        FileNotFoundError: there is no such folder, or no ``metrics.json`` in it.
        ValueError: it has no whole line.
    """
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        what = "no metrics.json in it" if os.path.isdir(folder) else "no such folder"
        raise FileNotFoundError(
            f"'{os.fspath(folder)}': {what}. Expected the output folder of a training (train.output_dir), which writes "
            "its first line there after train.log_period iterations."
        )
    lines: dict[int, dict[str, float]] = {}
    trained = -1
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            line = _read_line(text)
            if line is None:
                logger.warning(
                    "'%s': line %d is not whole and is left out. A training that was killed leaves such a line, or "
                    "one that is just writing it.",
                    path,
                    number,
                )
                continue
            iteration = line["iteration"]
            # Figures of an evaluation may come after losses of later iterations; losses only come back with a restart.
            if "total_loss" in line:
                if iteration <= trained:
                    lines = {i: kept for i, kept in lines.items() if i < iteration}
                trained = iteration
            lines.setdefault(iteration, {}).update(line)
    if not lines:
        raise ValueError(f"'{path}' has no whole line: the training had not come to its first one (train.log_period).")
    return [lines[iteration] for iteration in sorted(lines)]


def _read_line(text: str) -> dict[str, float] | None:
    # After a kill the next line may stand behind the half one. Objects are flat: the last brace opens a whole one.
    for candidate in (text, text[max(text.rfind("{"), 0) :]):
        try:
            line = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("iteration"), int):
            return line
    return None


def recorded_result(folder: str | os.PathLike, name: str | None = None, dataset: str | None = None) -> EvaluationResult:
    """The last evaluation that a training recorded in its ``metrics.json``.

    Args:
        folder: a training's output folder.
        name: for tables (the folder's).
        dataset: what the training evaluated on, if known; it is not in the file.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_metrics`, or no evaluation is recorded.
    """
    for line in reversed(read_metrics(folder)):
        figures: dict[str, dict[str, float]] = {}
        for key, value in line.items():
            if match := _DETECTION.fullmatch(key) or _RECONSTRUCTION.fullmatch(key):
                figures.setdefault(match[1], {})[match[2]] = value
        if figures:
            return EvaluationResult(
                name or folder_names([folder])[0], figures, dataset, iteration=int(line["iteration"])
            )
    raise ValueError(
        f"'{os.fspath(folder)}': no evaluation is recorded in metrics.json: the training had not come to its first one "
        "(train.eval_period)."
    )


def folder_names(folders: Sequence[str | os.PathLike]) -> list[str]:
    """A short name for each folder: its last part, with as many of those before as it takes to tell them apart.

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


def count_objects(dataset_dicts: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, int]:
    """How many objects of each class there are in detectron2's dataset dicts; crowds do not count."""
    counts = [0] * len(classes)
    for record in dataset_dicts:
        for annotation in record.get("annotations", ()):
            counts[annotation["category_id"]] += not annotation.get("iscrowd", 0)
    return dict(zip(classes, counts, strict=True))


def is_detection(result: EvaluationResult) -> bool:
    """Whether the figures are a detector's, and not a LiFT's."""
    return any(task in TASKS for task in result.figures)


def check_comparable(results: Sequence[EvaluationResult]) -> None:
    """Checks that there are results, and that all are of detectors or all of LiFTs.

    Raises:
        ValueError: they are not; the message names each.
    """
    if len({is_detection(result) for result in results}) != 1:
        kinds = ", ".join(f"'{result.name}' ({'detector' if is_detection(result) else 'LiFT'})" for result in results)
        raise ValueError(f"Expected evaluations of detectors, or of LiFTs alone, to compare, got {kinds or 'none'}.")


def overall_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of one task that are of all classes together: AP, AP50, AP75, by size."""
    order = ["AP", "AP50", "AP75", "APs", "APm", "APl", *figures]  # metrics.json is sorted otherwise
    return {name: figures[name] for name in order if name in figures and not name.startswith(CLASS_PREFIX)}


def class_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The AP of each class in one task, by its name."""
    return {name.removeprefix(CLASS_PREFIX): value for name, value in figures.items() if name.startswith(CLASS_PREFIX)}


def write_result(result: EvaluationResult, folder: str | os.PathLike) -> str:
    """Writes ``evaluation.json``, whole or not at all: the result, versions and the time. NaN is written as null.

    Returns:
        Its path.
    """
    path = os.path.join(folder, "evaluation.json")
    write_json(path, result_as_json(result))
    return path


def result_as_json(result: EvaluationResult) -> dict[str, Any]:
    """A result as JSON has it: NaN is None."""
    content = dataclasses.asdict(result)
    content["figures"] = {
        task: {figure: None if math.isnan(value) else value for figure, value in figures.items()}
        for task, figures in content["figures"].items()
    }
    return content


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """Writes figures, with versions and the time; the folder is made."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    versions = {"lift_det": __version__, "detectron2": detectron2.__version__, "torch": torch.__version__}
    time = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    text = json.dumps({**content, "versions": versions, "time": time}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, f"{text}\n")
