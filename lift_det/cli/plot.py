"""`lift-det plot`: the curves of trainings, from their `metrics.json`."""

from __future__ import annotations

import argparse
import os

_EPILOG = """\
examples:
  lift-det plot output/mine
  lift-det plot output/lift output/bilinear --output curves.png

The picture has a panel for each loss, for the AP of boxes and of masks (a LiFT's: the cosine to the true features) and
for the learning rate. Losses are smoothed, over the faint curve as it was written. A training may still be running.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `plot` to the command."""
    parser = subparsers.add_parser(
        "plot",
        help="draw losses, learning rate and AP of trainings",
        description="Draws what trainings have written to metrics.json; several are drawn over each other.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output folders of trainings, those of metrics.json")
    parser.add_argument(
        "--output", metavar="FILE", help=".png, .pdf or .svg (plot.png in the folder; of several, in the current one)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, and say what."""
    from lift_det.visualization import plot_training

    folders = arguments.folders
    output = arguments.output or os.path.join(folders[0] if len(folders) == 1 else "", "plot.png")
    figure = plot_training(folders, output)
    print(f"Written: {output} ({', '.join(axes.get_title() for axes in figure.axes)})")
    return 0
