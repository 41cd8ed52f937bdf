#!/usr/bin/env python
"""Makes a small data set of a COCO-format one, with few images and classes and ids from 1.

    python tools/make_small_coco.py datasets/coco/annotations/instances_val2017.json datasets/coco/val2017 my_data
    lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_data/my_train.json:my_data/images \\
        --val my_data/my_val.json:my_data/images
"""

import argparse

from lift_det.data import check_coco, write_small_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="file in COCO's format")
    parser.add_argument("images", help="folder that the file names are relative to")
    parser.add_argument("output", help="folder for my_train.json, my_val.json and images/")
    parser.add_argument("--num-images", type=int, default=20, help="in both splits together (20)")
    parser.add_argument("--num-classes", type=int, default=5, help="the most frequent ones (5)")
    parser.add_argument("--num-val", type=int, help="images of the validation split (a quarter)")
    args = parser.parse_args()
    numbers = {"num_images": args.num_images, "num_classes": args.num_classes, "num_val": args.num_val}
    folder = write_small_coco(args.annotations, args.images, args.output, **numbers)
    for split in ("train", "val"):
        print(check_coco(folder / f"my_{split}.json", folder / "images").page())


if __name__ == "__main__":
    main()
