"""Lists the shipped configs.

examples:
  lift-det configs
  lift-det configs --names | grep fast
  python tools/lazyconfig_train_net.py --config-file "$(lift-det configs --path COCO/mask_rcnn_lift_vitdet_b_100ep.py)"

lift_det.model_zoo.get_config and --config-file take these names. tools/benchmark_model.py measures a config's speed and
memory.
"""

from __future__ import annotations

import argparse
import itertools
import textwrap

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--names", action="store_true", help="print the names only")
    group.add_argument("--path", metavar="NAME", help="print the path of a config")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list, the names, or one path."""
    from lift_det import model_zoo

    names = model_zoo.list_configs()
    if arguments.path:
        print(model_zoo.get_config_file(arguments.path))
    elif arguments.names:
        print("\n".join(names))
    else:
        for _, group in itertools.groupby(names, lambda name: name.partition("/")[0]):
            group = list(group)
            width = max(map(len, group)) + 2
            for name in group:
                summary = _summary(model_zoo.get_config_file(name))
                print(f"{name:<{width}}{textwrap.shorten(summary, _WIDTH - width, placeholder=' …')}")
            print()
    return 0


def _summary(path: str) -> str:
    """The first sentence of the comment at the top of a config file."""
    with open(path, encoding="utf-8") as file:
        lines = itertools.takewhile(lambda line: line.startswith("#"), file)
        return " ".join(line.strip("# \n") for line in lines).partition(". ")[0].rstrip(".")
