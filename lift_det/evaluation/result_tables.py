"""Markdown tables of evaluations."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from lift_det.files import write_text_atomically
from lift_det.results import TASKS, EvaluationResult, write_json

_OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_CLASS_PREFIX = "AP-"  # of the AP of a class


def result_table(result: EvaluationResult) -> str:
    """Formats an evaluation as Markdown. For a detector: overall metrics of each task, then the AP of each class.

    A dash means that there are no objects for the metric.
    """
    tasks = {name: _sorted(result.figures[task]) for task, name in TASKS.items() if task in result.figures}
    if not tasks:
        return comparison_table([result])
    names = list(dict.fromkeys(name for figures in tasks.values() for name in figures))
    columns = [name for name in names if not name.startswith(_CLASS_PREFIX)]
    classes = [name.removeprefix(_CLASS_PREFIX) for name in names if name.startswith(_CLASS_PREFIX)]
    rows = [[task, *(_cell(figures.get(name)) for name in columns)] for task, figures in tasks.items()]
    table = _table(rows, ["", *columns])
    if not classes:
        return table
    rows = [[name, *(_cell(figures.get(_CLASS_PREFIX + name)) for figures in tasks.values())] for name in classes]
    header = ["class", *(f"AP, {task}" for task in tasks)]
    if result.objects:
        header.append("objects")
        rows = [[*row, result.objects.get(row[0], "")] for row in rows]
    return f"{table}\n\n{_table(rows, header)}"


def comparison_table(results: Sequence[EvaluationResult]) -> str:
    """Formats evaluations side by side as Markdown, with the differences from the first in brackets.

    Each row is a metric with its name in ``metrics.json``, such as "bbox/AP-person". A cell is empty if a result does
    not have the metric, and a dash if there are no objects for it. A line above the table notes different datasets.
    """
    rows = []
    for task in dict.fromkeys(task for result in results for task in result.figures):
        figures = [result.figures.get(task, {}) for result in results]
        digits = 1 if task in TASKS or task.startswith("error_reduction") else 4
        for name in _sorted({name: None for values in figures for name in values}):
            first = figures[0].get(name)
            row = [f"{task}/{name}", _cell(first, digits)]
            for values in figures[1:]:
                value = values.get(name)
                comparable = None not in (first, value) and not math.isnan(value - first)
                # adding 0.0 turns -0.0 into 0.0
                difference = f" ({round(value - first, digits) + 0.0:+.{digits}f})" if comparable else ""
                row.append(_cell(value, digits) + difference)
            rows.append(row)
    table = _table(rows, ["", *(result.name for result in results)])
    data = [f"{result.name}: {result.dataset}, {result.num_images} images" for result in results]
    if len({(result.dataset, result.num_images) for result in results}) > 1:
        return f"**Not the same data.** {'; '.join(data).replace(', None images', '')}.\n\n{table}"
    return table


def write_comparison(results: Sequence[EvaluationResult], folder: str | os.PathLike) -> list[str]:
    """Writes ``comparison.md`` (:func:`comparison_table`) and ``comparison.json``, and returns their paths."""
    table, data = (os.path.join(folder, name) for name in ("comparison.md", "comparison.json"))
    write_json(data, {"results": [dataclasses.asdict(result) for result in results]})
    write_text_atomically(table, f"{comparison_table(results)}\n")
    return [table, data]


def _sorted(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Sorts overall metrics in COCO's order, before those of classes. In metrics.json they are sorted by name."""
    overall = [name for name in figures if not name.startswith(_CLASS_PREFIX)]
    names = [*_OVERALL, *overall, *figures]
    return {name: figures[name] for name in names if name in figures}


def _cell(value: float | None, digits: int = 1) -> str:
    if value is None:
        return ""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)
