#!/usr/bin/env python
"""Makes a small data set out of a COCO-format one, as one's own would be: few images, few classes, ids from 1.

    python tools/make_small_coco.py datasets/coco/annotations/instances_val2017.json datasets/coco/val2017 my_data
    lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_data/my_train.json:my_data/images \\
        --val my_data/my_val.json:my_data/images
"""

import argparse
import json

from lift_det.data import write_small_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="in COCO's format")
    parser.add_argument("images", help="the folder that their file names start from")
    parser.add_argument("output", help="the folder to write my_train.json, my_val.json and images/ to")
    parser.add_argument("--num-images", type=int, default=20, help="in both splits together (20)")
    parser.add_argument("--num-classes", type=int, default=5, help="the most frequent ones (5)")
    parser.add_argument("--num-val", type=int, help="images to evaluate on (a quarter)")
    args = parser.parse_args()
    folder = write_small_coco(
        args.annotations,
        args.images,
        args.output,
        num_images=args.num_images,
        num_classes=args.num_classes,
        num_val=args.num_val,
    )
    for split in ("train", "val"):
        path = folder / f"my_{split}.json"
        content = json.loads(path.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        counts = dict.fromkeys(names.values(), 0)
        for annotation in content["annotations"]:
            counts[names[annotation["category_id"]]] += 1
        objects = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"{path}: {len(content['images'])} images, {objects}")


if __name__ == "__main__":
    main()
