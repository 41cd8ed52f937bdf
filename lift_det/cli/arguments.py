"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any


class UsageError(ValueError):
    """Arguments are wrong. The exit code is 2, as for errors of argparse."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--from``, ``--config-file``, ``--weights`` and ``--device``; see :func:`read_model_arguments`."""
    group = parser.add_argument_group("model", "either --from, or --config-file and --weights")
    group.add_argument("--from", dest="folder", metavar="DIR", help="output folder of a training")
    group.add_argument("--config-file", metavar="CONFIG", help="a path or a name from `lift-det configs`")
    group.add_argument("--weights", metavar="FILE", help="checkpoint (default with --from: best or last in the folder)")
    add_device_argument(group)


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", help="cuda or cpu (default: cuda if available)")


def read_model_arguments(arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> tuple[Any, str]:
    """Returns the config, with overrides, and the path of the weights.

    Raises:
        UsageError: the arguments do not name exactly one model.
        FileNotFoundError, ValueError, lift_det.config.ConfigNotFoundError: the model cannot be read.
    """
    from lift_det import config
    from lift_det.engine import read_output_folder

    if bool(arguments.folder) == bool(arguments.config_file):
        raise UsageError("name a model: either --from DIR, or --config-file CONFIG --weights FILE")
    if arguments.config_file and not arguments.weights:
        raise UsageError("--config-file needs --weights FILE, the trained weights")
    if not arguments.folder:
        return config.load(arguments.config_file, overrides), arguments.weights
    cfg, weights = read_output_folder(arguments.folder, arguments.weights)
    return config.apply_overrides(cfg, overrides), weights


def add_vit_arguments(parser: argparse.ArgumentParser, required: bool = True, lift: bool = True) -> None:
    """Adds ``--backbone``, ``--architecture``, ``--num-heads``, ``--layer`` and ``--facet``."""
    group = parser.add_argument_group("ViT")
    group.add_argument(
        "--backbone",
        required=required,
        metavar="NAME|CHECKPOINT",
        help="pretrained ViT: a name in timm, which downloads the weights, or a checkpoint in any supported format",
    )
    group.add_argument("--architecture", metavar="NAME", help="name in timm, for a CHECKPOINT that does not state it")
    group.add_argument("--num-heads", type=int, help="for a CHECKPOINT with another number than the timm architecture")
    default = "default: that of the LiFT, or" if lift else "default:"
    group.add_argument("--layer", type=int, help=f"block of the ViT, from 0 ({default} the last)")
    facets = ("token", "key", "query", "value")
    group.add_argument("--facet", choices=facets, help=f"feature of the block ({default} token)")


def add_lift_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds ``--lift`` and ``--paper-patch-size``; see :func:`read_lift`."""
    default = "" if required else " (default: that of the model)"
    parser.add_argument(
        "--lift", required=required, metavar="FILE", help=f"trained LiFT, such as lift.safetensors{default}"
    )
    parser.add_argument(
        "--paper-patch-size",
        type=int,
        metavar="PIXELS",
        help="patch size of the ViT (8 or 16); only for LiFT files from the authors of the paper",
    )


def read_lift(arguments: argparse.Namespace) -> Any:
    """Loads the LiFT of ``--lift``."""
    from lift_det import load_lift

    return load_lift(arguments.lift, arguments.paper_patch_size, False if arguments.paper_patch_size else None)


def build_extractor(arguments: argparse.Namespace, lift: Any, steps: int = 1) -> Any:
    """Returns the FeatureExtractor of ``--backbone``, by default with the layer and facet that the LiFT needs."""
    from lift_det import FeatureExtractor
    from lift_det.modeling import FeatureSpec, find_vit

    trained_on = FeatureSpec() if lift is None else lift.trained_on
    layer = trained_on.layer if arguments.layer is None else arguments.layer
    facet = arguments.facet or trained_on.facet or "token"
    final_norm = trained_on.final_norm if facet == "token" else None
    vit = find_vit(arguments.backbone, arguments.architecture, arguments.num_heads).build()
    return FeatureExtractor(vit, lift, layer=layer, facet=facet, final_norm=final_norm, steps=steps).eval()


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that trainings of detectors and of LiFT share."""
    parser.add_argument("--batch-size", type=int, help="images per iteration, over all GPUs (default: from the config)")
    parser.add_argument("--iterations", type=int, help="length of the training (default: from the config)")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes, one for each GPU (default: 1)")
    add_device_argument(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    add_overrides(parser)


def choose_device(arguments: argparse.Namespace) -> str:
    """Returns ``--device``, or cuda if available.

    Raises:
        UsageError: several processes on the CPU of a machine with GPUs. detectron2 would use NCCL for them.
    """
    import torch

    if arguments.device == "cpu" and arguments.num_gpus > 1 and torch.cuda.is_available():
        raise UsageError("several processes on the CPU: hide the GPUs with CUDA_VISIBLE_DEVICES=, or use --num-gpus 1")
    return arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")


def add_overrides(parser: argparse.ArgumentParser, positional: str = "overrides") -> None:
    """Accepts ``key=value`` anywhere on the command line; :func:`split_overrides` takes them from ``positional``."""
    if positional == "overrides":
        parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    parser.set_defaults(overrides_in=positional)


def split_overrides(parser: argparse.ArgumentParser, arguments: argparse.Namespace, rest: Sequence[str]) -> None:
    """Moves all ``key=value`` to ``arguments.overrides``, also from ``rest``, the arguments unknown to argparse."""
    positional = getattr(arguments, "overrides_in", None)
    if rest and (positional is None or not all(map(is_override, rest))):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if positional is not None:
        values = [*getattr(arguments, positional), *rest]
        arguments.overrides = values
        if positional != "overrides":
            arguments.overrides = [value for value in values if is_override(value)]
            setattr(arguments, positional, [value for value in values if not is_override(value)])


def is_override(value: str) -> bool:
    """Whether a value is ``key=value`` and not the name of an existing file."""
    return bool(re.match(r"[A-Za-z_][\w.\[\]]*=", value)) and not os.path.exists(value)
