"""The `lift-det` command.

Each subcommand is a module with `add_arguments` and `run`. The module's docstring is the help text. Before a subcommand
runs, only the standard library is imported, so that help is fast and `doctor` works without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lift_det.version import __version__

from . import configs, doctor, eval, export, features, plot, predict, pretrain, train
from .arguments import UsageError, split_overrides

SUBCOMMANDS = (doctor, configs, pretrain, train, eval, plot, features, predict, export)

_EPILOG = """\
examples:
  lift-det doctor
  lift-det configs
  lift-det pretrain --images photos --backbone vit_small_patch14_dinov2.lvd142m --output output/lift
  lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_train.json:images --val my_val.json:images
  lift-det eval output/mine
  lift-det plot output/mine
  lift-det features photo.jpg --from output/lift --output output/features
  lift-det predict photos clip.mp4 --from output/mine --output predictions
  lift-det export backbone --from output/mine --output backbone.onnx
"""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command. It sets `run` to the function of the subcommand."""
    parser = argparse.ArgumentParser(
        prog="lift-det",
        description="LiFT and ViTDet in detectron2.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lift_det {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="subcommands", dest="subcommand", metavar="SUBCOMMAND", required=True)
    for module in SUBCOMMANDS:
        summary, _, epilog = (module.__doc__ or "").partition("\n\n")
        subparser = subparsers.add_parser(
            module.__name__.rpartition(".")[2],
            help=summary,
            description=summary,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand, and returns the exit code: 0 for success, 1 for an error, 2 for a wrong command line."""
    try:
        parser = build_parser()
        arguments, rest = parser.parse_known_args(argv)
        split_overrides(parser, arguments, rest)
    except SystemExit as end:  # argparse has printed help or an error
        return end.code if isinstance(end.code, int) else 2
    try:
        return arguments.run(arguments)
    except BrokenPipeError:  # `lift-det configs | head`
        sys.stderr.close()  # otherwise Python prints an error when it flushes at exit
        return 0
    except KeyboardInterrupt:
        print("lift-det: stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        usage_errors, expected_errors = _error_classes()
        if arguments.traceback or not isinstance(error, (*usage_errors, *expected_errors)):
            raise
        print(f"lift-det {arguments.subcommand}: {error}", file=sys.stderr)
        return 2 if isinstance(error, usage_errors) else 1


def _error_classes() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """Returns errors of the command line, and other errors that are reported without a traceback."""
    from torch.multiprocessing import ProcessRaisedException

    from lift_det.checkpoint import CheckpointError
    from lift_det.config import ConfigNotFoundError, OverrideError
    from lift_det.data import DatasetError

    expected = (CheckpointError, DatasetError, ConfigNotFoundError, ProcessRaisedException)
    return (UsageError, OverrideError), (*expected, ImportError, OSError, ValueError, FloatingPointError)
