"""The `lift-det` command. Each subcommand is a thin file here with an `add_parser(subparsers)`.

Nothing here imports more than the standard library until a subcommand runs, so that help is immediate, and so that
`doctor` can run in an environment that is broken (see lift_det_cli.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lift_det.version import __version__

from . import configs, doctor, eval, export, features, plot, predict, pretrain, train
from .arguments import UsageError, join_overrides

SUBCOMMANDS = (doctor, configs, pretrain, train, eval, plot, features, predict, export)

_EPILOG = """\
examples:
  lift-det doctor                  is everything here that training needs, and what is missing?
  lift-det configs                 the configs that come with lift_det
  lift-det configs --path COCO/mask_rcnn_lift_vitdet_b_100ep.py
  lift-det pretrain --images photos --backbone vit_small_patch14_dinov2.lvd142m --output output/lift
  lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_train.json:images --val my_val.json:images
  lift-det predict photos clip.mp4 --from output/my_detector --output predictions
  lift-det features photo.jpg --from output/lift --output output/features
  lift-det eval output/mine        AP of a trained model, of each class; of several, side by side
  lift-det plot output/mine        losses, learning rate and AP of a training, as a picture
  lift-det export backbone --from output/mine --output backbone.onnx
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; each subcommand's function is its default `run`."""
    parser = argparse.ArgumentParser(
        prog="lift-det",
        description="LiFT and ViTDet in detectron2.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lift_det {__version__}")
    parser.add_argument("--traceback", action="store_true", help="raise an error, so that it says where it came from")
    subparsers = parser.add_subparsers(title="subcommands", dest="subcommand", metavar="SUBCOMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code: 0 is good, 1 is a failure that was explained, 2 a wrong command line."""
    try:
        parser = build_parser()
        arguments, rest = parser.parse_known_args(argv)
        join_overrides(parser, arguments, rest)
    except SystemExit as end:  # argparse has printed help or what is wrong
        return end.code if isinstance(end.code, int) else 2
    if arguments.traceback:
        return arguments.run(arguments)
    try:
        return arguments.run(arguments)
    except BrokenPipeError:
        # `lift-det configs | head`: nothing is wrong, and Python is not to complain when it flushes at exit.
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("lift-det: stopped.", file=sys.stderr)
        return 130  # as a shell has it
    except Exception as error:
        if isinstance(error, _usage_errors()):
            print(f"lift-det {arguments.subcommand}: {error}", file=sys.stderr)
            return 2
        if not isinstance(error, _expected_errors()):
            raise
        print(f"lift-det: {error}", file=sys.stderr)
        return 1


def _usage_errors() -> tuple[type[Exception], ...]:
    from lift_det.config import OverrideError

    return UsageError, OverrideError


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors reported without a traceback: their messages say what to do."""
    from torch.multiprocessing import ProcessRaisedException

    from lift_det.checkpoint import CheckpointError
    from lift_det.config import ConfigNotFoundError
    from lift_det.data import DatasetError

    named = (CheckpointError, DatasetError, ConfigNotFoundError, ProcessRaisedException)
    return *named, OSError, ValueError, FloatingPointError
