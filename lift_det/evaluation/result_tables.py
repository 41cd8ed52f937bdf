"""Tables of one evaluation, and of several side by side, in Markdown."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from lift_det.files import write_text_atomically
from lift_det.results import (
    CLASS_PREFIX,
    TASKS,
    EvaluationResult,
    check_comparable,
    class_figures,
    is_detection,
    overall_figures,
    result_as_json,
    write_json,
)

_MOST_LISTED = 12  # classes in a sentence


def result_table(result: EvaluationResult) -> str:
    """One evaluation as Markdown tables: overall and by size, then a row for each class that has objects."""
    if not is_detection(result):
        return comparison_table([result])
    overall = {task: overall_figures(figures) for task, figures in _tasks(result).items()}
    columns = list(dict.fromkeys(name for figures in overall.values() for name in figures))
    rows = [[TASKS[task], *(_cell(figures.get(name)) for name in columns)] for task, figures in overall.items()]
    parts = [_table(rows, ["", *columns])]

    by_class = {task: class_figures(figures) for task, figures in _tasks(result).items()}
    classes = _classes([result])
    present, absent = _present(classes, [result])
    if present:
        rows = [
            [name, *([result.objects.get(name, "")] if result.objects else [])]
            + [_cell(figures.get(name)) for figures in by_class.values()]
            for name in present
        ]
        header = ["class", *(["objects"] if result.objects else []), *(f"AP, {TASKS[task]}" for task in by_class)]
        parts.append(_table(rows, header))
    if absent:
        parts.append(f"Not one object of: {_listed(absent)}.")
    return "\n\n".join(parts)


def comparison_table(results: Sequence[EvaluationResult]) -> str:
    """Several evaluations side by side as Markdown: differences against the first in brackets, notes above.

    A figure that a result does not have leaves its cell empty; one that cannot be computed is a dash.

    Raises:
        ValueError: there is none, or detectors and LiFTs are among them.
    """
    check_comparable(results)
    parts = comparison_notes(results)
    header = [result.name for result in results]
    if not is_detection(results[0]):
        keys = list(dict.fromkeys((task, name) for r in results for task, names in r.figures.items() for name in names))
        rows = []
        for task, name in sorted(keys, key=lambda key: key[0]):  # the order of methods stays
            values = [result.figures.get(task, {}).get(name) for result in results]
            rows.append([f"{task}/{name}", *_cells(values, digits=1 if task.startswith("error") else 4)])
        return "\n\n".join([*parts, _table(rows, ["", *header])])

    classes, absent = _present(_classes(results), results)
    # of the same data there is one number of objects
    objects = results[0].objects if all(result.objects == results[0].objects for result in results) else {}
    for task in dict.fromkeys(task for result in results for task in _tasks(result)):
        figures = [result.figures.get(task, {}) for result in results]
        overall = list(dict.fromkeys(name for one in figures for name in overall_figures(one)))
        rows = [[name, *_cells([one.get(name) for one in figures])] for name in overall]
        for name in classes:
            label = f"{name} ({objects[name]})" if name in objects else name
            rows.append([label, *_cells([one.get(CLASS_PREFIX + name) for one in figures])])
        parts += [f"### {TASKS[task].capitalize()}", _table(rows, ["", *header])]
    if classes:
        parts.append(f"Below the overall figures: AP of each class{' (objects)' if objects else ''}.")
    if absent:
        parts.append(f"Not one object of: {_listed(absent)}.")
    return "\n\n".join(parts)


def write_comparison(results: Sequence[EvaluationResult], folder: str | os.PathLike) -> list[str]:
    """Writes ``comparison.md`` (:func:`comparison_table`) and ``comparison.json``, each whole or not at all.

    Returns:
        Their paths.
    """
    table, figures = (os.path.join(folder, f"comparison.{ending}") for ending in ("md", "json"))
    text = comparison_table(results)
    os.makedirs(folder, exist_ok=True)
    write_text_atomically(table, f"{text}\n")
    write_json(figures, {"results": [result_as_json(result) for result in results]})
    return [table, figures]


def comparison_notes(results: Sequence[EvaluationResult]) -> list[str]:
    """What keeps evaluations from being compared: other data, other classes; empty where nothing is known to."""
    notes = []
    if len(results) > 1:
        data = {result.name: _data(result) for result in results}
        if len(set(data.values())) > 1:
            listed = "; ".join(f"{name}: {text}" for name, text in data.items())
            notes.append(f"**Not the same data**, so differences are not of the models alone. {listed}.")
        elif results[0].dataset is None:
            notes.append("Not known whether these were evaluated on the same data.")
    # a model that predicts nothing has no figures of classes, and objects none the less
    sets = [{*_classes([result]), *result.objects} for result in results]
    uncommon = [name for name in _classes(results) if any(name not in names for names in sets)]
    if uncommon:
        notes.append(f"**Not the same classes**: not every data set has {_listed(uncommon)}.")
    return notes


def _data(result: EvaluationResult) -> str:
    images = "" if result.num_images is None else f" ({result.num_images} images)"
    return (result.dataset or "data not known") + images


def _tasks(result: EvaluationResult) -> dict[str, Mapping[str, float]]:
    return {task: result.figures[task] for task in TASKS if task in result.figures}


def _classes(results: Sequence[EvaluationResult]) -> list[str]:
    """All that have a figure of their own; in class order where it is known, else as the files have them."""
    with_figures = dict.fromkeys(
        name for result in results for figures in _tasks(result).values() for name in class_figures(figures)
    )
    ordered = dict.fromkeys(name for result in results for name in result.objects if name in with_figures)
    return list(ordered | with_figures)


def _present(classes: Sequence[str], results: Sequence[EvaluationResult]) -> tuple[list[str], list[str]]:
    """Classes with an AP anywhere, and those without: there is no object of them."""
    values = {
        name: [figures.get(CLASS_PREFIX + name, math.nan) for r in results for figures in _tasks(r).values()]
        for name in classes
    }
    absent = [name for name in classes if all(map(math.isnan, values[name]))]
    return [name for name in classes if name not in absent], absent


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_LISTED])} and {more} more"


def _cells(values: Sequence[float | None], digits: int = 1) -> list[str]:
    """The first value, and the others with their differences from it."""
    first = values[0]
    cells = [_cell(first, digits)]
    for value in values[1:]:
        cell = _cell(value, digits)
        if None not in (first, value) and not math.isnan(value - first):
            cell += f" ({round(value - first, digits) + 0.0:+.{digits}f})"  # the zero makes 0.0 of -0.0
        cells.append(cell)
    return cells


def _cell(value: float | None, digits: int = 1) -> str:
    if value is None:
        return ""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    align = ["left", *["right"] * (len(header) - 1)]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)
