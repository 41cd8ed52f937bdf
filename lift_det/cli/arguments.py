"""What several subcommands ask for: a trained model, images, overrides."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any


class UsageError(ValueError):
    """Arguments that do not go together: exit code 2, as argparse's own errors."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--from``, ``--config-file``, ``--weights`` and ``--device``; see :func:`read_model_arguments`."""
    group = parser.add_argument_group("the model", "either --from, or --config-file and --weights")
    group.add_argument(
        "--from",
        dest="folder",
        metavar="DIR",
        help="a training's output folder, the one of metrics.json: config, weights and class names are in it",
    )
    group.add_argument("--config-file", metavar="CONFIG", help="a path, or a name that `lift-det configs` lists")
    group.add_argument("--weights", metavar="FILE", help="(with --from: in place of the folder's best or last)")
    group.add_argument("--device", help="cuda or cpu (cuda where there is one)")


def read_model_arguments(arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> tuple[Any, str]:
    """The config, overrides applied, and the path of the weights.

    Raises:
        UsageError: neither a folder nor a config with weights was named, or both.
        FileNotFoundError, ValueError, lift_det.config.ConfigNotFoundError: what was named is not there or unusable.
    """
    from lift_det import config
    from lift_det.engine import read_output_folder

    if bool(arguments.folder) == bool(arguments.config_file):
        raise UsageError("name a model: --from DIR, a training's output folder, or --config-file CONFIG --weights FILE")
    if arguments.config_file and not arguments.weights:
        raise UsageError("--config-file needs --weights FILE: the trained weights of that config")
    if not arguments.folder:
        return config.load(arguments.config_file, overrides), arguments.weights
    cfg, weights = read_output_folder(arguments.folder, arguments.weights)
    return config.apply_overrides(cfg, overrides), weights


def read_lift(arguments: argparse.Namespace) -> Any:
    """The LiFT of ``--lift``; ``--paper-patch-size`` says what a file of the paper's authors does not."""
    from lift_det import load_lift

    return load_lift(arguments.lift, arguments.paper_patch_size, False if arguments.paper_patch_size else None)


def choose_device(arguments: argparse.Namespace) -> str:
    """``--device``, or a GPU where there is one.

    Raises:
        UsageError: several processes on a CPU, where detectron2 would have them meet on the GPUs.
    """
    import torch

    if arguments.device == "cpu" and arguments.num_gpus > 1 and torch.cuda.is_available():
        raise UsageError("on a CPU, hide the GPUs (CUDA_VISIBLE_DEVICES=) or take --num-gpus 1.")
    return arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")


def accept_overrides(parser: argparse.ArgumentParser, positional: str) -> None:
    """Lets ``key=value`` stand anywhere on a subcommand's line: what argparse leaves over joins that positional."""
    parser.set_defaults(overrides_join=positional)


def join_overrides(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """What argparse has left over: overrides where the subcommand takes them, else an error that ends the process."""
    positional = getattr(arguments, "overrides_join", None)
    if rest and (positional is None or not all(map(is_override, rest))):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        setattr(arguments, positional, [*getattr(arguments, positional), *rest])


def is_override(value: str) -> bool:
    """Whether it is ``key=value``, and no file of that name is there."""
    return bool(re.match(r"[A-Za-z_][\w.\[\]]*=", value)) and not os.path.exists(value)


def split_overrides(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits positional arguments into names (of files, of folders) and ``key=value`` overrides."""
    overrides = [value for value in values if is_override(value)]
    return [value for value in values if value not in overrides], overrides
