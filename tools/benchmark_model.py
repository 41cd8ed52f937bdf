#!/usr/bin/env python
"""Seconds an image and peak memory of a config's model, beside the stock ViTDet of detectron2's model zoo.

    python tools/benchmark_model.py COCO/mask_rcnn_vitdet_b_100ep --part backbone --mode both
    python tools/benchmark_model.py COCO/mask_rcnn_lift_vitdet_b_fast_100ep --part backbone --mode infer --floor
    python tools/benchmark_model.py path/to/config.py model.mask_format=rle --mode infer --profile

The side "detectron2" is common/models/mask_rcnn_vitdet.py with its own classes. Where the config has lift_det.ViT, the
stock ViT is as large as that one is after the overrides key=value; --stock says what else is to differ from the stock
config. square_pad is the image's size on both sides. Both get the whole image; a config with an input_scale reduces it.

What is measured (--part):

- model: the whole detector, from image to pasted masks, or to its losses. Every box head is biased to find the first
  class in each proposal: with the config's numbers of proposals and detections that goes through NMS, mask head and
  pasting as a real image would, though with boxes of arbitrary shapes. Training has 10 objects an image.
- backbone: the ViT, LiFT and the pyramid.
- features: the ViT and LiFT, without a pyramid; and, where the config has LiFT, the ViT alone as a third row.
- net: the ViT alone, on the image as it sees it (after input_scale).

Each side has a process of its own; they alternate, one pass each, after a warm-up. The weights are random, the same on
both sides where names agree; images are noise. "train" is forward and backward without the optimizer's step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from benchmarking import (
    Measured,
    Worker,
    WorkerError,
    alternate,
    describe_machine,
    gigabytes,
    memory_kind,
    print_header,
    print_row,
    workers,
)
from model_sides import DTYPES, PARTS, Pass, Settings, build_ours, build_stock, our_config, stock_net
from operation_floor import KINDS, count_operations, floor_seconds, measure_rates

STOCK, OURS, VIT_ALONE = "detectron2", "lift_det", "lift_det, ViT alone"
STOCK_CONFIG = "common/models/mask_rcnn_vitdet.py"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    print(f"{options.config} {' '.join(options.overrides)}: {options.part}, ", end="")
    print(f"batch {options.batch} of {options.image_size} pixels\n")
    print(describe_machine(options.device, options.threads))
    print(f"- {options.repeats} passes of each, alternating; {memory_kind(options.device)}\n")
    print_header("side", "mode", "dtype", "median an image", "min – max", "of detectron2's", "peak", "of detectron2's")
    remarks = []
    for mode in ("infer", "train") if options.mode == "both" else (options.mode,):
        sides = _sides(options, mode)
        builds = {name: partial(build, settings) for name, (build, settings) in sides.items()}
        with workers(builds, options.threads) as running:
            results = alternate(running, options.repeats, options.device)
            _print_rows(results, mode, options)
            failed = [f"{name}: {result}" for name, result in results.items() if isinstance(result, WorkerError)]
            remarks += failed
            if not failed:
                remarks += _remarks(sides, running, results, mode, options)
    if remarks:
        print("\n" + "\n\n".join(remarks))


def _sides(options: argparse.Namespace, mode: str) -> dict[str, tuple[Callable[[Settings], Pass], Settings]]:
    """What builds each side, and from what."""
    config = our_config(options.config, options.overrides, options.image_size)
    ours = Settings(
        config=options.config,
        overrides=tuple(options.overrides),
        part=options.part,
        train=mode == "train",
        image_size=options.image_size,
        batch=options.batch,
        dtype=options.dtype,
        device=options.device,
    )
    stock = ours._replace(config=STOCK_CONFIG, overrides=tuple(options.stock), dtype=options.stock_dtype)
    sides = {STOCK: (partial(build_stock, stock_net(config)), stock), OURS: (build_ours, ours)}
    if options.part == "features" and config.model.backbone.get("lift") is not None:
        sides[VIT_ALONE] = (build_ours, ours._replace(part="net"))
    return sides


def _print_rows(results: Mapping[str, Measured | WorkerError], mode: str, options: argparse.Namespace) -> None:
    stock = results[STOCK]
    for name, result in results.items():
        row = (name, mode, options.stock_dtype if name == STOCK else options.dtype)
        if isinstance(result, WorkerError):
            print_row(*row, "failed", *[""] * 4)
            continue
        result = result._replace(seconds=[seconds / options.batch for seconds in result.seconds])
        time_ratio = memory_ratio = ""
        if isinstance(stock, Measured):
            time_ratio = f"{result.median * options.batch / stock.median:.3f}"
            memory_ratio = f"{result.peak / stock.peak:.3f}"
        print_row(*row, *result.describe("s"), time_ratio, f"{gigabytes(result.peak)} GB", memory_ratio)


def _remarks(
    sides: Mapping[str, tuple[Callable[[Settings], Pass], Settings]],
    running: Mapping[str, Worker],
    results: Mapping[str, Measured],
    mode: str,
    options: argparse.Namespace,
) -> list[str]:
    """What is asked of the workers after they were measured."""
    remarks = []
    if VIT_ALONE in results:
        share = results[OURS].median / results[VIT_ALONE].median - 1
        remarks.append(f"{mode}: LiFT adds {100 * share:.1f} % to the ViT's time.")
    if options.outputs and mode == "infer" and options.part != "model":
        remarks.append(_compare_outputs(running[STOCK], running[OURS], options.dtype))
    if options.floor:
        remarks.append(f"{mode}, a batch:\n\n{_floor_table(sides, results, options)}")
    if options.profile:
        remarks.append(f"{OURS}, {mode}:\n\n```\n{running[OURS].ask(_profile, options.device)}\n```")
    return remarks


def _compare_outputs(stock: Worker, ours: Worker, dtype: str) -> str:
    """The largest difference from the stock side in fp32, and beside it what the stock side's own dtype makes."""
    if stock.ask(Pass.parameter_names) != ours.ask(Pass.parameter_names):
        return "The outputs are not compared: these are different models."
    expected = stock.ask(Pass.outputs, "fp32")
    text = f"Outputs, largest difference over largest value: {OURS} in {dtype} differs from {STOCK} in fp32 by "
    text += f"{_difference(ours.ask(Pass.outputs, dtype), expected):.1e}"
    if dtype != "fp32":
        text += f", {STOCK} in {dtype} by {_difference(stock.ask(Pass.outputs, dtype), expected):.1e}"
    return f"{text}."


def _difference(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Of the map where it is largest."""
    return max(float(np.abs(outputs[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def _floor_table(
    sides: Mapping[str, tuple[Callable[[Settings], Pass], Settings]],
    results: Mapping[str, Measured],
    options: argparse.Namespace,
) -> str:
    """Operations of each side, and how near to the machine's rates they were done."""
    rows = [("side", "dtype", "products", "at", "convolutions", "at", "floor", "median", "floor / median")]
    builds = {  # counted on the CPU and in fp32: operations are the same, and the counter knows the operators there
        name: partial(build, settings._replace(device="cpu", dtype="fp32")) for name, (build, settings) in sides.items()
    }
    with workers(builds, options.threads) as running:
        operations = {name: worker.ask(count_operations) for name, worker in running.items()}
        token_map = running[OURS].ask(Pass.token_map)
    rates = {
        dtype: measure_rates(
            token_map, options.image_size // 4, DTYPES[dtype], options.device, options.repeats, options.threads
        )
        for dtype in {settings.dtype for _, settings in sides.values()}
    }
    for name, (_, settings) in sides.items():
        rate, count = rates[settings.dtype], operations[name]
        floor = floor_seconds(count, rate)
        cells = [f"{x[kind] / 1e9:.4g} {unit}" for kind in KINDS for x, unit in ((count, "GFLOP"), (rate, "GFLOP/s"))]
        median = results[name].median
        rows.append((name, settings.dtype, *cells, f"{floor:.4g} s", f"{median:.4g} s", f"{floor / median:.2f}"))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def _profile(job: Pass, device: str) -> str:
    """One pass by operator, those that take most by themselves first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        job()
    order = "self_cuda_time_total" if device.startswith("cuda") else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a LazyConfig: a name for lift_det.model_zoo, or a file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of the config, as in LazyConfig")
    parser.add_argument("--stock", nargs="+", default=[], metavar="key=value", help="changes of the stock config")
    parser.add_argument("--part", choices=PARTS, default="model")
    parser.add_argument("--mode", choices=("infer", "train", "both"), default="both")
    parser.add_argument("--image-size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of lift_det: bf16 and fp16 are autocast's")
    parser.add_argument("--stock-dtype", choices=DTYPES, default="fp32", help="of detectron2, in the same way")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that torch uses on the CPU")
    parser.add_argument(
        "--outputs", action="store_true", help="how far the feature maps of the two are apart (needs --mode infer)"
    )
    parser.add_argument(
        "--floor",
        action="store_true",
        help="count each side's products and convolutions, and the seconds that they would take at the rates of the "
        "ViT's linear layers and of the pyramid's 3×3 convolution, which are measured afterwards",
    )
    parser.add_argument("--profile", action="store_true", help="one pass of lift_det by operator")
    return parser.parse_intermixed_args(arguments)  # options may stand before overrides


if __name__ == "__main__":
    main()
