#!/usr/bin/env python
"""Writes COCO results made of the ground truth, shifted, scaled and partly of a wrong class: to try an evaluation on.

python tools/make_detections.py datasets/coco/annotations/instances_val2017.json detections.json
"""

import argparse
import json

from lift_det.evaluation import perturbed_detections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="a COCO annotation file, with boxes and masks")
    parser.add_argument("output", help="the results file to write")
    parser.add_argument("--per-image", type=int, default=120, help="detections in each image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with open(args.annotations) as file:
        results = perturbed_detections(json.load(file), args.per_image, args.seed)
    with open(args.output, "w") as file:
        json.dump(results, file)
    print(f"{len(results)} detections in {args.output}")


if __name__ == "__main__":
    main()
