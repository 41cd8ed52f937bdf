"""Curves of a training's `metrics.json`, and evaluations side by side as bars."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lift_det.results import (
    TASKS,
    EvaluationResult,
    check_comparable,
    class_figures,
    folder_names,
    is_detection,
    overall_figures,
    read_metrics,
)

from .figure_file import save_figure

Metrics = Mapping[str, Sequence[Mapping[str, float]]]

# Okabe and Ito's, which all eyes tell apart; without their yellow, which white paper swallows
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_STYLES = ("-", "--", ":")
_MARKERS = "os^Dv<>"
_PANEL = (3.6, 2.6)  # inches
_SMOOTHED = 12  # a smoothed point is the mean of one part in so many of a curve
_FEW = 40  # so many points of a curve are marked as points, too
_ERROR = "1 − cosine to the true features (less is better)"


def plot_training(folders: Sequence[str | os.PathLike], path: str | os.PathLike) -> Figure:
    """Draws what trainings wrote to `metrics.json`, over their iterations: a panel for each loss, figure and the rate.

    Losses are drawn smoothed, over the faint curve as it was written. A figure that no training recorded has no panel.

    Args:
        folders: output folders of trainings, of detectors or of LiFTs; several are drawn over each other.
        path: of the picture; its ending says which kind (.png, .pdf, .svg).

    Returns:
        The figure that was written.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_metrics`; a folder is named twice; an unknown ending.
    """
    metrics = {name: read_metrics(folder) for name, folder in zip(folder_names(folders), folders, strict=True)}
    keys = {key for lines in metrics.values() for line in lines for key in line}
    losses = [*({"total_loss"} & keys), *sorted(key for key in keys if key.startswith("loss"))]
    panels: list[tuple[str, Callable[[Axes], None]]] = [
        (key, lambda axes, key=key: _draw_loss(axes, metrics, key)) for key in losses
    ]
    for task, name in TASKS.items():
        if f"{task}/AP" in keys:
            panels.append((f"AP, {name}", lambda axes, key=f"{task}/AP": _draw_ap(axes, metrics, key)))
    for task in sorted({key.split("/")[0] for key in keys if key.startswith("cosine_")}):
        panels.append((task, lambda axes, task=task: _draw_cosine(axes, metrics, task)))
    if "lr" in keys:
        panels.append(("learning rate", lambda axes: _draw_rate(axes, metrics)))
    if not panels:
        raise ValueError(f"{', '.join(metrics)}: metrics.json has no loss, figure or learning rate to draw.")

    # the fewest empty places
    columns = len(panels) if len(panels) <= 4 else min((4, 3), key=lambda columns: -len(panels) % columns)
    rows = -(-len(panels) // columns)
    figure = _figure(columns * _PANEL[0], rows * _PANEL[1] + 0.5)
    every_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    last = max(line["iteration"] for lines in metrics.values() for line in lines)
    for axes, (title, draw) in zip(every_axes, panels, strict=False):
        axes.set_title(title, fontsize=10)
        draw(axes)
        axes.set_xlim(0, last * 1.03 + 1)
        _dress(axes)
    for axes in every_axes[len(panels) :]:
        axes.remove()
    for axes in every_axes[max(len(panels) - columns, 0) : len(panels)]:  # the lowest of each column
        axes.set_xlabel("iteration", fontsize=9)
    _name_series(figure, list(metrics))
    save_figure(figure, path)
    return figure


def plot_comparison(results: Sequence[EvaluationResult], path: str | os.PathLike) -> Figure:
    """Draws evaluations side by side: bars for the overall figures, and a row of dots for each class.

    Args:
        results: of detectors, or of LiFTs.
        path: of the picture; its ending says which kind (.png, .pdf, .svg).

    Returns:
        The figure that was written.

    Raises:
        ValueError: detectors and LiFTs are among the results, or there is none; an unknown ending.
    """
    check_comparable(results)
    if is_detection(results[0]):
        figure = _compare_detections(results)
    else:
        figure = _compare_reconstructions(results)
    _name_series(figure, [result.name for result in results])
    save_figure(figure, path)
    return figure


def plot_reconstruction(errors: Mapping[str, Sequence[float]], tasks: Sequence[str], path: str | os.PathLike) -> Figure:
    """Draws reconstruction errors 1 − cosine as bars, a group for each task.

    Args:
        errors: of each method, one for each task; NaN leaves a bar out.
        tasks: their names.
        path: as :func:`plot_training` has it.

    Returns:
        The figure that was written.

    Raises:
        ValueError: an unknown ending.
    """
    figure = _figure(8, 4)
    axes = figure.subplots()
    _draw_bars(axes, list(errors.values()), tasks)
    axes.set_ylabel(_ERROR)
    _dress(axes)
    _name_series(figure, list(errors))
    save_figure(figure, path)
    return figure


def _compare_detections(results: Sequence[EvaluationResult]) -> Figure:
    tasks = [task for task in TASKS if any(task in result.figures for result in results)]
    classes = {task: _class_table(results, task) for task in tasks}
    most = max(len(table) for table in classes.values())
    heights = [2.6] + [0.6 + 0.2 * most] * bool(most)
    figure = _figure(1 + 4.5 * len(tasks), sum(heights) + 0.6)
    rows = figure.subplots(len(heights), len(tasks), squeeze=False, height_ratios=heights)
    for axes, task in zip(rows[0], tasks, strict=True):
        figures = [overall_figures(result.figures.get(task, {})) for result in results]
        names = list(dict.fromkeys(name for one in figures for name in one))
        _draw_bars(axes, [[one.get(name, np.nan) for name in names] for one in figures], names)
        axes.set_title(TASKS[task].capitalize(), fontsize=11)
        axes.set_ylabel("AP (percent)")
        axes.set_ylim(bottom=0)
        _dress(axes)
    if not most:
        return figure
    for axes, task in zip(rows[1], tasks, strict=True):
        table = classes[task]
        if not table:
            axes.remove()
            continue
        places = range(len(table))
        for i in range(len(results)):
            values = [row[i] for row in table.values()]
            axes.plot(values, places, _MARKERS[i % len(_MARKERS)], color=_colour(i), ms=5, alpha=0.85)
        axes.set_yticks(places, list(table), fontsize=8)
        axes.set_ylim(len(table) - 0.5, -0.5)  # the first class on top
        axes.set_xlim(-2, 102)
        axes.set_xlabel("AP of each class (percent)")
        _dress(axes)
    return figure


def _class_table(results: Sequence[EvaluationResult], task: str) -> dict[str, list[float]]:
    """AP of each class that has one in any result, by class, of each result."""
    figures = [class_figures(result.figures.get(task, {})) for result in results]
    ordered = dict.fromkeys(name for result in results for name in result.objects)
    names = ordered | dict.fromkeys(name for one in figures for name in one)
    table = {name: [one.get(name, np.nan) for one in figures] for name in names}
    return {name: values for name, values in table.items() if not np.isnan(values).all()}


def _compare_reconstructions(results: Sequence[EvaluationResult]) -> Figure:
    tasks = sorted({task for result in results for task in result.figures if task.startswith("cosine_")})
    figure = _figure(1 + 3.6 * len(tasks), 3.6)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        figures = [result.figures.get(task, {}) for result in results]
        names = list(dict.fromkeys(name for one in figures for name in one))
        _draw_bars(axes, [[1 - one.get(name, np.nan) for name in names] for one in figures], names)
        axes.tick_params(axis="x", labelrotation=20)
        axes.set_title(task, fontsize=10)
        _dress(axes)
    figure.supylabel(_ERROR, fontsize=9)
    return figure


def _draw_bars(axes: Axes, values: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """Draws a group of bars for each name; ``values`` has a list for each bar of the groups."""
    width = 0.8 / len(values)
    for i, heights in enumerate(values):
        places = np.arange(len(names)) + (i - (len(values) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.92, color=_colour(i))
        if len(values) <= 4 or len(names) <= 3:  # more would run into each other
            digits = 1 if np.nanmax(heights, initial=0) > 1 else 3
            labels = ["" if np.isnan(height) else f"{height:.{digits}f}" for height in heights]
            axes.bar_label(bars, labels, fontsize=7 if len(values) < 3 else 6, padding=1)
    axes.set_xticks(range(len(names)), names)


def _draw_loss(axes: Axes, metrics: Metrics, key: str) -> None:
    for i, (iterations, values) in _series(metrics, key):
        window = len(values) // _SMOOTHED
        if window < 2:
            axes.plot(iterations, values, color=_colour(i), ls=_style(i), marker=_marker(values), ms=3)
            continue
        axes.plot(iterations, values, color=_colour(i), alpha=0.35, lw=0.8)
        axes.plot(iterations, _smooth(values, window), color=_colour(i), ls=_style(i), lw=1.5)
    axes.set_ylim(bottom=min(0, axes.dataLim.y0))


def _draw_ap(axes: Axes, metrics: Metrics, key: str) -> None:
    for i, (iterations, values) in _series(metrics, key):
        axes.plot(iterations, values, color=_colour(i), ls=_style(i), marker=_marker(values), ms=4)
        _name_last(axes, iterations, values, f"{values[-1]:.1f}", _colour(i))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    axes.set_ylabel("percent", fontsize=8)


def _draw_cosine(axes: Axes, metrics: Metrics, task: str) -> None:
    """Every LiFT in its folder's colour, and bilinear in grey: what they are to be better than."""
    for method, style in (("bilinear", "--"), ("lift", "-")):
        for i, (iterations, values) in _series(metrics, f"{task}/{method}"):
            colour = "#777777" if method == "bilinear" else _colour(i)
            axes.plot(iterations, values, color=colour, ls=style, marker=_marker(values), ms=4)
            _name_last(axes, iterations, values, f"{'LiFT' if method == 'lift' else method} {values[-1]:.3f}", colour)
    axes.margins(y=0.2)
    axes.set_ylabel("cosine to the true features", fontsize=8)


def _name_last(axes: Axes, iterations: np.ndarray, values: np.ndarray, text: str, colour: str) -> None:
    if np.isfinite(values[-1]):
        where = {"xytext": (0, 4), "textcoords": "offset points", "ha": "right"}
        axes.annotate(text, (iterations[-1], values[-1]), color=colour, fontsize=7, **where)


def _draw_rate(axes: Axes, metrics: Metrics) -> None:
    for i, (iterations, values) in _series(metrics, "lr"):
        axes.plot(iterations, values, color=_colour(i), ls=_style(i), marker=_marker(values), ms=3)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def _series(metrics: Metrics, key: str) -> list[tuple[int, tuple[np.ndarray, np.ndarray]]]:
    """Iterations and values of every training that has any, with the training's number."""
    found = []
    for i, lines in enumerate(metrics.values()):
        points = [(line["iteration"], line[key]) for line in lines if key in line]
        if points:
            iterations, values = np.array(points, dtype=float).T
            found.append((i, (iterations, values)))
    return found


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the finite values around each; fewer of them at the ends."""
    finite = np.isfinite(values)
    kernel = np.ones(window + 1 - window % 2)  # odd, so that nothing shifts
    sums = np.convolve(np.where(finite, values, 0), kernel, "same")
    counts = np.convolve(finite.astype(float), kernel, "same")
    return np.where(finite, sums / np.maximum(counts, 1), np.nan)


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]


def _style(i: int) -> str:
    return _STYLES[i // len(_COLOURS) % len(_STYLES)]


def _marker(values: np.ndarray) -> str:
    return "o" if len(values) <= _FEW else ""


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _dress(axes: Axes) -> None:
    axes.grid(alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.yaxis.get_offset_text().set_fontsize(8)


def _name_series(figure: Figure, names: Sequence[str]) -> None:
    """Makes one name the title, and several a legend above all panels."""
    if len(names) == 1:
        figure.suptitle(names[0], fontsize=11)
        return
    handles = [Line2D([], [], color=_colour(i), ls=_style(i), lw=3, label=name) for i, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 5), frameon=False, fontsize=9)
