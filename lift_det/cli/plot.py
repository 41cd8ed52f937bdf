"""Plots losses, learning rate and AP of trainings, from their metrics.json.

examples:
  lift-det plot output/mine
  lift-det plot output/lift output/bilinear --output curves.png

There is a panel for each loss, for AP (of a LiFT: the cosine similarity to the true features) and for the learning
rate. Losses are smoothed. A training may still be running.
"""

from __future__ import annotations

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `lift-det plot`."""
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output folders of trainings, with metrics.json")
    parser.add_argument(
        "--output", metavar="FILE", help=".png, .pdf or .svg (default: plot.png, in the folder if there is only one)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Plots."""
    from lift_det.visualization import plot_training

    folders = arguments.folders
    output = arguments.output or os.path.join(folders[0] if len(folders) == 1 else "", "plot.png")
    figure = plot_training(folders, output)
    print(f"Written: {output} ({', '.join(axes.get_title() for axes in figure.axes)})")
    return 0
