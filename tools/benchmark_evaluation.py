#!/usr/bin/env python
"""Compares the time and the results of COCO evaluation with pycocotools and with hotcoco.

    python tools/benchmark_evaluation.py datasets/coco/annotations/instances_val2017.json detections.json

tools/make_detections.py writes such a results file. The libraries alternate after a warm-up; times are medians, with
loading apart from evaluate and accumulate. faster-coco-eval is included if it is installed.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import time
from typing import Any

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from tabulate import tabulate

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
    parser.add_argument("detections", help="a COCO results file")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with open(args.detections) as file:
        results = json.load(file)

    rows = []
    for iou_type in ("bbox", "segm"):
        rounds = [
            {name: _run(name, args.annotations, results, iou_type) for name in LIBRARIES}
            for _ in range(args.rounds + 1)
        ][1:]  # without the warm-up
        medians = {name: np.median([round_[name][0] for round_ in rounds], axis=0) for name in LIBRARIES}
        for name, (loading, evaluating) in medians.items():
            figures, expected = rounds[-1][name][1:], rounds[-1]["pycocotools"][1:]
            row = [f"{iou_type}, {name}", f"{loading:.3f} s", f"{evaluating:.4f} s"]
            row.append(f"{evaluating / medians['pycocotools'][1]:.4f}")
            rows.append(row + [f"{np.abs(a - b).max():.1e}" for a, b in zip(figures, expected, strict=True)])
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    print(f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}")
    print(f"{versions}, numpy {np.__version__}")
    print(f"{len(results)} detections, medians of {args.rounds} rounds\n")
    header = ("", "load", "evaluate + accumulate", "of pycocotools'", "12 metrics differ by", "class APs by")
    print(tabulate(rows, headers=header, tablefmt="github", disable_numparse=True))


def _run(
    name: str, path: str, results: list[dict[str, Any]], iou_type: str
) -> tuple[tuple[float, float], np.ndarray, np.ndarray]:
    """Returns the seconds of loading and of evaluation, COCO's twelve metrics, and the AP of each class."""
    coco_class, eval_class = LIBRARIES[name]
    # Copies, because pycocotools modifies them. As in detectron2, boxes are removed for masks.
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
    class_aps = [values[values > -1].mean() if (values > -1).any() else -1.0 for values in np.moveaxis(precision, 2, 0)]
    return (loaded - start, end - loaded), np.array(evaluation.stats)[:12], np.array(class_aps)


if __name__ == "__main__":
    main()
