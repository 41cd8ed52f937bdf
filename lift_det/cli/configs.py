"""`lift-det configs`: what `lift_det.model_zoo` has, what each costs, and where it is."""

from __future__ import annotations

import argparse

from .arguments import UsageError

_EPILOG = """\
examples:
  lift-det configs
  lift-det configs --names | grep fast
  lift-det configs --measure COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py --device cuda
  python tools/lazyconfig_train_net.py --config-file "$(lift-det configs --path COCO/mask_rcnn_lift_vitdet_b_100ep.py)"
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `configs` to the command."""
    parser = subparsers.add_parser(
        "configs",
        help="the configs that come with lift_det, what each costs, and where it is",
        description="Lists the configs that lift_det.model_zoo.get_config knows by name, with parameters, "
        "multiplications, strides, and the seconds and memory of one image on the machine that it names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--names", action="store_true", help="print the names alone, one on a line")
    what.add_argument("--path", metavar="NAME", help="print the path of this config")
    what.add_argument("--measure", metavar="NAME|FILE", help="measure this config here")
    parser.add_argument("--device", help="with --measure: cuda or cpu (cuda where there is one)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="with --measure: a side (the config's)")
    parser.add_argument("--format", default="simple", choices=("simple", "github"), help="of the table (simple)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table, the names, one path, or one measurement."""
    from lift_det import model_zoo

    if not arguments.measure and (arguments.device or arguments.image_size):
        raise UsageError("--device and --image-size belong to --measure")
    if arguments.names:
        print("\n".join(model_zoo.list_configs()))
    elif arguments.path:
        print(model_zoo.get_config_file(arguments.path))
    else:
        measurements = _measure(arguments) if arguments.measure else _shipped()
        print(model_zoo.measurement_table(measurements, arguments.format))
    return 0


def _shipped() -> dict[str, dict | None]:
    from lift_det import model_zoo

    measured = model_zoo.read_measurements()
    return {name: measured.get(name) for name in model_zoo.list_configs()}


def _measure(arguments: argparse.Namespace) -> dict[str, dict]:
    import dataclasses

    import torch

    from lift_det.engine import measure_config

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return {arguments.measure: dataclasses.asdict(measure_config(arguments.measure, device, arguments.image_size))}
