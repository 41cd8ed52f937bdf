#!/usr/bin/env python
"""Measures time per image and peak memory of a config's model, and of ViTDet from detectron2's model zoo.

    python tools/benchmark_model.py COCO/mask_rcnn_vitdet_b_100ep --part backbone --mode both
    python tools/benchmark_model.py path/to/config.py model.mask_format=rle --mode infer --profile

The side "detectron2" is common/models/mask_rcnn_vitdet.py with detectron2's own classes. If the config has
lift_det.ViT, detectron2's ViT gets the same arguments. --stock overrides other keys of detectron2's config.

Parts (--part):

- model: the whole detector, from the image to pasted masks or losses. Every box head is biased to detect the first
  class in each proposal, because NMS, mask head and pasting are only slow if there are objects. Training images have 10
  objects each.
- backbone: the ViT, LiFT and the pyramid.
- features: the ViT and LiFT, without the pyramid; for a config with LiFT, the ViT alone is a third row.
- net: the ViT alone, on the image after input_scale.

Each side has its own process; the sides alternate after a warm-up. Weights are random, and equal for parameters with
the same name. Images are square and random. "train" is forward and backward without the optimizer's step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from benchmarking import Measured, Worker, alternate, gigabytes, print_machine, print_row, workers
from model_sides import DTYPES, PARTS, STOCK_CONFIG, Pass, Settings, build_ours, build_stock, our_config, stock_net
from operation_floor import floor_table

STOCK, OURS, VIT_ALONE = "detectron2", "lift_det", "lift_det, ViT alone"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    print(f"{options.config} {' '.join(options.overrides)}: {options.part}, ", end="")
    print(f"batch {options.batch} of {options.image_size} pixels\n")
    print_machine(options.device, options.threads, options.repeats)
    header = ("side", "mode", "dtype", "median per image", "min – max", "of detectron2's", "peak", "of detectron2's")
    print_row(*header, header=True)
    notes = []
    for mode in ("infer", "train") if options.mode == "both" else (options.mode,):
        with workers(build_sides(options, mode), options.threads) as running:
            results = alternate(running, options.repeats, options.device)
            _print_rows(results, mode, options)
            failed = [f"{name}: {result}" for name, result in results.items() if isinstance(result, Exception)]
            notes += failed or _notes(running, results, mode, options)
    if notes:
        print("\n" + "\n\n".join(notes))


def build_sides(options: argparse.Namespace, mode: str) -> dict[str, Callable[[], Pass]]:
    """Returns functions that build the sides, by name."""
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
    sides = {STOCK: partial(build_stock, stock_net(config), stock), OURS: partial(build_ours, ours)}
    if options.part == "features" and config.model.backbone.get("lift") is not None:
        sides[VIT_ALONE] = partial(build_ours, ours._replace(part="net"))
    return sides


def _print_rows(results: Mapping[str, Measured | Exception], mode: str, options: argparse.Namespace) -> None:
    stock = results[STOCK]
    for name, result in results.items():
        row = (name, mode, options.stock_dtype if name == STOCK else options.dtype)
        if isinstance(result, Exception):
            print_row(*row, "failed", *[""] * 4)
            continue
        time_ratio = memory_ratio = ""
        if isinstance(stock, Measured):
            time_ratio = f"{result.median / stock.median:.3f}"
            memory_ratio = f"{result.peak / stock.peak:.3f}"
        result = result._replace(seconds=[seconds / options.batch for seconds in result.seconds])
        print_row(*row, *result.describe("s"), time_ratio, gigabytes(result.peak), memory_ratio)


def _notes(
    running: Mapping[str, Worker], results: Mapping[str, Measured], mode: str, options: argparse.Namespace
) -> list[str]:
    notes = []
    if VIT_ALONE in results:
        share = results[OURS].median / results[VIT_ALONE].median - 1
        notes.append(f"{mode}: LiFT adds {100 * share:.1f} % to the ViT's time.")
    if options.outputs and mode == "infer" and options.part != "model":
        notes.append(_compare_outputs(running[STOCK], running[OURS], options.dtype))
    if options.floor:
        dtypes = {name: options.stock_dtype if name == STOCK else options.dtype for name in running}
        notes.append(f"One pass, {mode}:\n\n{floor_table(running, results, dtypes, options.device)}")
    if options.profile:
        notes.append(f"{OURS}, {mode}:\n\n```\n{running[OURS].ask(_profile, options.device)}\n```")
    return notes


def _compare_outputs(stock: Worker, ours: Worker, dtype: str) -> str:
    if stock.ask(Pass.parameter_names) != ours.ask(Pass.parameter_names):
        return "The outputs are not compared, because the models differ."
    expected = stock.ask(Pass.outputs, "fp32")
    text = f"Outputs, largest difference over largest value: {OURS} in {dtype} differs from {STOCK} in fp32 by "
    text += f"{_difference(ours.ask(Pass.outputs, dtype), expected):.1e}"
    if dtype != "fp32":
        text += f", {STOCK} in {dtype} by {_difference(stock.ask(Pass.outputs, dtype), expected):.1e}"
    return f"{text}."


def _difference(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(outputs[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def _profile(job: Pass, device: str) -> str:
    """Returns a table of the operators of one pass."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        job()
    order = "self_cuda_time_total" if device.startswith("cuda") else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", help="a LazyConfig: a name in configs/, or a path")
    add("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    add("--stock", nargs="+", default=[], metavar="key=value", help="overrides of the stock config")
    add("--part", choices=PARTS, default="model")
    add("--mode", choices=("infer", "train", "both"), default="both")
    add("--image-size", type=int, default=1024, help="side in pixels")
    add("--batch", type=int, default=1)
    add("--dtype", choices=DTYPES, default="fp32", help="dtype of lift_det; bf16 and fp16 use autocast")
    add("--stock-dtype", choices=DTYPES, default="fp32", help="dtype of detectron2")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of PyTorch")
    add("--outputs", action="store_true", help="compare the feature maps of both sides (with --mode infer)")
    add("--floor", action="store_true", help="print a lower bound of each side's time, from counted operations")
    add("--profile", action="store_true", help="print one pass of lift_det by operator")
    return parser.parse_intermixed_args(arguments)  # allows options before overrides


if __name__ == "__main__":
    main()
