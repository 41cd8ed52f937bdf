#!/usr/bin/env python
"""Measures the shipped configs for the table of `lift-det configs`.

    python tools/measure_configs.py --threads 2
    python tools/measure_configs.py --only COCO/mask_rcnn_lift_vitdet_h_75ep.py --again

Each config has a process of its own, one after the other, and is written as soon as it is done: a run that was broken
off goes on where it was. What was measured on this hardware, with as many threads and the same torch, is not measured
again. Configs that are no more lose their figures. Nothing else is to run on the machine: it would be in the seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarking import Worker
from tqdm import tqdm

from lift_det import model_zoo
from lift_det.engine import measure_config
from lift_det.engine.measure import describe_hardware
from lift_det.files import write_text_atomically
from lift_det.model_zoo.measurements import MEASUREMENTS_FILE


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these configs (all)")
    parser.add_argument("--again", action="store_true", help="also what was measured on this hardware")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that torch uses on the CPU")
    parser.add_argument("--runs", type=int, default=3, help="passes of each, of which the median counts (3)")
    parser.add_argument("--output", type=Path, default=MEASUREMENTS_FILE, help="the JSON (that of lift_det.model_zoo)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)  # for the name of the hardware: the workers have their own

    names = model_zoo.list_configs()
    measured = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    hardware = describe_hardware(options.device)
    chosen = names if options.only is None else [name for name in names if name in options.only]
    if not options.again:
        chosen = [name for name in chosen if measured.get(name, {}).get("hardware") != hardware]
    for name in tqdm(chosen, unit="config"):
        worker = Worker(partial(_job, name, options.device, options.runs), options.threads)
        try:
            measured[name] = worker.ask(_run)
        finally:
            worker.close()
        _write({name: measured[name] for name in names if name in measured}, options.output)
    print(model_zoo.measurement_table({name: measured.get(name) for name in names}))


def _job(name: str, device: str, runs: int) -> partial:
    """What a worker runs."""
    return partial(measure_config, name, device, runs=runs)


def _run(job: partial) -> dict[str, Any]:
    return dataclasses.asdict(job())


def _write(measurements: dict[str, dict[str, Any]], path: Path) -> None:
    """A line for each config: what changed is then seen in a diff."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(measured)}" for name, measured in measurements.items())
    write_text_atomically(path, f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
