"""Plots of trainings from `metrics.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from lift_det.files import write_atomically
from lift_det.results import TASKS, folder_names, read_metrics

_SMOOTHING = 12  # a smoothed point is the mean over 1/12 of a curve
_FEW_POINTS = 40  # curves with at most this many points have markers


def plot_training(folders: Sequence[str | os.PathLike], path: str | os.PathLike) -> Figure:
    """Plots losses, AP and learning rate over the iterations, and returns the figure.

    Losses are smoothed, and the original values are shown as a faint curve. For a LiFT, the cosine similarity to the
    true features is plotted, with bilinear upsampling as a dashed curve.

    Args:
        folders: output folders of trainings. Each has its own colour.
        path: of the plot (.png, .pdf or .svg).

    Raises:
        FileNotFoundError, ValueError: see :func:`lift_det.results.read_metrics`; also if a folder is named twice or the
            suffix of ``path`` is unknown.
    """
    names = folder_names(folders)
    trainings = [read_metrics(folder) for folder in folders]
    keys = {key for lines in trainings for line in lines for key in line}
    panels = {key: [key] for key in ("total_loss", *sorted(key for key in keys if key.startswith("loss")))}
    panels |= {f"AP, {name}": [f"{task}/AP"] for task, name in TASKS.items()}
    for task in sorted({key.split("/")[0] for key in keys if key.startswith("cosine_")}):
        panels[f"{task} (dashed: bilinear)"] = [f"{task}/lift", f"{task}/bilinear"]
    panels["learning rate"] = ["lr"]
    panels = {title: drawn for title, drawn in panels.items() if keys.intersection(drawn)}
    if not panels:
        raise ValueError(f"metrics.json of {', '.join(names)} has no loss, AP or learning rate to plot.")

    columns = min(len(panels), 3 if len(panels) % 3 == 0 else 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows + 0.5), dpi=120, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes, (title, drawn) in zip(grid, panels.items(), strict=False):
        for i, lines in enumerate(trainings):
            for key, style in zip(drawn, ("-", "--"), strict=False):
                points = [(line["iteration"], line[key]) for line in lines if key in line]
                points = torch.tensor(points, dtype=torch.float64).reshape(-1, 2)
                _draw_curve(axes, points, f"C{i}", style, smooth="loss" in key)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration")
        axes.tick_params(labelbottom=True)  # sharex hides the labels above the last row
        axes.grid(alpha=0.25)
        if not title.startswith("cosine"):
            axes.set_ylim(bottom=min(0, axes.dataLim.y0))
    for axes in grid[len(panels) :]:
        axes.remove()
    if len(names) == 1:
        figure.suptitle(names[0])
    else:
        handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 5))
    save_figure(figure, path)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure atomically. Missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:] or "png", dpi="figure"))


def _draw_curve(axes: Axes, points: Tensor, colour: str, style: str, smooth: bool) -> None:
    """Draws (N, 2) points."""
    iterations, values = points.T
    radius = len(values) // _SMOOTHING // 2
    if smooth and radius:
        axes.plot(iterations, values, color=colour, alpha=0.35, linewidth=0.8)
        values = F.avg_pool1d(values[None], 2 * radius + 1, 1, radius, count_include_pad=False)[0]
    axes.plot(iterations, values, style, color=colour, marker="." if len(values) <= _FEW_POINTS else "")
