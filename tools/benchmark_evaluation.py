#!/usr/bin/env python
"""Times COCO's evaluate and accumulate with pycocotools and with hotcoco, and compares their figures.

    python tools/benchmark_evaluation.py datasets/coco/annotations/instances_val2017.json [detections.json]

Without a results file (tools/make_detections.py writes one) detections are made of the ground truth. The libraries
alternate in each round; the first round warms up; times are medians. faster-coco-eval is measured, too, where it is
installed. Loading annotations and results is timed apart.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from typing import Any

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from tabulate import tabulate

from lift_det.evaluation import perturbed_detections

LIBRARIES: dict[str, tuple[Any, Any]] = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}
if importlib.util.find_spec("faster_coco_eval") is not None:
    import faster_coco_eval

    LIBRARIES["faster-coco-eval"] = (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="a COCO annotation file, with boxes and masks")
    parser.add_argument("detections", nargs="?", help="a COCO results file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-image", type=int, default=120, help="detections in each image, without a results file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with open(args.annotations) as file:
        annotations = json.load(file)
    if args.detections:
        with open(args.detections) as file:
            results = json.load(file)
    else:
        results = perturbed_detections(annotations, args.per_image, args.seed)

    rows = []
    for iou_type in ("bbox", "segm"):
        times: dict[str, list[tuple[float, float]]] = defaultdict(list)
        figures: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for round_ in range(args.rounds + 1):
            for name in LIBRARIES:
                loading, evaluating, figures[name] = _run(name, args.annotations, results, iou_type)
                if round_:  # the first warms up
                    times[name].append((loading, evaluating))
        medians = {
            name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in times.items()
        }
        for name, (loading, evaluating) in medians.items():
            rows.append(
                (
                    f"{iou_type}, {name}",
                    f"{loading:.3f} s",
                    f"{evaluating:.4f} s",
                    f"{evaluating / medians['pycocotools'][1]:.4f}",
                    *(f"{_difference(a, b):.1e}" for a, b in zip(figures[name], figures["pycocotools"], strict=True)),
                )
            )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}")
    print(f"{versions}, numpy {np.__version__}")
    print(f"{len(results)} detections in {len(annotations['images'])} images, medians of {args.rounds} rounds\n")
    header = ("", "load", "evaluate + accumulate", "of pycocotools'", "12 figures differ by", "class APs by")
    print(tabulate(rows, headers=header, tablefmt="github", disable_numparse=True))


def _run(
    name: str, path: str, results: list[dict[str, Any]], iou_type: str
) -> tuple[float, float, tuple[np.ndarray, np.ndarray]]:
    """Seconds of loading and of evaluating, and the figures: the twelve, and each class's AP."""
    coco_class, eval_class = LIBRARIES[name]
    # copies, because pycocotools writes into them; without boxes beside masks, as detectron2 has it
    results = [{k: v for k, v in result.items() if k != "bbox" or iou_type == "bbox"} for result in results]
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        ground_truth = coco_class(path)
        evaluation = eval_class(ground_truth, ground_truth.loadRes(results), iou_type)
        loaded = time.perf_counter()
        evaluation.evaluate()
        evaluation.accumulate()
        end = time.perf_counter()
        evaluation.summarize()
    precision = np.array(evaluation.eval["precision"])[:, :, :, 0, -1]  # (thresholds, recalls, classes)
    of_class = [values[values > -1].mean() if (values > -1).any() else -1.0 for values in np.moveaxis(precision, 2, 0)]
    return loaded - start, end - loaded, (np.array(evaluation.stats)[:12], np.array(of_class))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    main()
