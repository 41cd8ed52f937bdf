"""Plots losses, learning rate and AP of trainings from metrics.json.

examples:
  lift-det plot output/mine
  lift-det plot output/lift output/bilinear --output curves.png

Losses are smoothed. For LiFT, the cosine similarity to the true features is plotted instead of AP. A training may still
be running.
"""

from __future__ import annotations

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output folders of trainings")
    parser.add_argument(
        "--output", metavar="FILE", help=".png, .pdf or .svg (default: plot.png, in DIR if there is only one)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the plot."""
    from lift_det.visualization import plot_training

    folders = arguments.folders
    output = arguments.output or os.path.join(folders[0] if len(folders) == 1 else "", "plot.png")
    figure = plot_training(folders, output)
    print(f"Written: {output} ({', '.join(axes.get_title() for axes in figure.axes)})")
    return 0
