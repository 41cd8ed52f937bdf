"""`lift-det configs`: what `lift_det.model_zoo` has, and where."""

from __future__ import annotations

import argparse
import sys

_EPILOG = """\
examples:
  lift-det configs
  python tools/lazyconfig_train_net.py --config-file "$(lift-det configs --path COCO/mask_rcnn_lift_vitdet_b_100ep.py)"
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `configs` to the command."""
    parser = subparsers.add_parser(
        "configs",
        help="list the configs that come with lift_det, or print the path of one",
        description="Lists the names that lift_det.model_zoo.get_config accepts, one on a line.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--path", metavar="NAME", help="print the path of this config instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the names, or one path; 1 if there is no config of that name."""
    from lift_det import model_zoo

    try:
        lines = model_zoo.list_configs() if arguments.path is None else [model_zoo.get_config_file(arguments.path)]
    except model_zoo.ConfigNotFoundError as error:
        print(f"lift-det: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0
