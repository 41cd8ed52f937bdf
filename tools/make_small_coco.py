#!/usr/bin/env python
"""Makes a small dataset, with few images and classes, from a large one in COCO's format.

    python tools/make_small_coco.py datasets/coco/annotations/instances_val2017.json datasets/coco/val2017 my_data
    lift-det train COCO/mask_rcnn_lift_vitdet_b_fast_12ep_1gpu --dataset my_data/my_train.json:my_data/images \\
        --val my_data/my_val.json:my_data/images
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from lift_det.data import DatasetError, check_coco
from lift_det.files import write_text_atomically


def write_small_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_images: int,
    num_classes: int,
    num_val: int | None,
) -> Path:
    """Makes a small training and validation set from a large COCO-format dataset.

    Keeps the classes that occur in the most images, with ids from 1 on, and prefers images with classes that are rare
    in their split. The arguments determine the result.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder that file names are relative to.
        output: folder for ``my_train.json``, ``my_val.json`` and ``images/``; created if necessary.
        num_images: number of images in both splits together.
        num_classes: number of classes.
        num_val: number of images in the validation split; None takes a quarter.

    Returns:
        ``output``.

    Raises:
        ValueError: a number is out of range.
        DatasetError: the source cannot be used, or has too few images or classes.
    """
    num_val = num_images // 4 if num_val is None else num_val
    if not 1 <= num_val < num_images or num_classes < 1:
        numbers = f"num_classes={num_classes}, num_val={num_val}, num_images={num_images}"
        raise ValueError(f"Expected num_classes >= 1 and 1 <= num_val < num_images, got {numbers}.")
    check = check_coco(json_file, image_root, read_images=False)
    if check.errors:
        raise DatasetError(f"'{check.json_file}' cannot be used: {check.errors[0].text}.")
    classes_of: dict[int, set[int]] = defaultdict(set)  # by image id
    for annotation in check.cleaned["annotations"]:
        if not annotation["iscrowd"]:
            classes_of[annotation["image_id"]].add(annotation["category_id"])
    counts = Counter(class_ for classes in classes_of.values() for class_ in classes)
    kept = sorted(sorted(counts, key=lambda class_: (-counts[class_], class_))[:num_classes])
    free = {id_: classes & set(kept) for id_, classes in sorted(classes_of.items()) if classes & set(kept)}
    if len(kept) < num_classes or len(free) < num_images:
        raise DatasetError(
            f"'{check.json_file}' has {len(counts)} classes with objects, and {len(free)} images of the {len(kept)} "
            f"most frequent; expected at least {num_classes} classes and {num_images} images."
        )

    output = Path(output)
    (output / "images").mkdir(parents=True, exist_ok=True)
    numbers = {class_: number for number, class_ in enumerate(kept, start=1)}
    for split, size in (("val", num_val), ("train", num_images - num_val)):
        chosen: set[int] = set()
        counts = Counter()
        while len(chosen) < size:
            best = max(free, key=lambda id_: sum(1 / (1 + counts[class_]) ** 2 for class_ in free[id_]))
            chosen.add(best)
            counts.update(free.pop(best))
        images = []
        for image in check.cleaned["images"]:
            if image["id"] in chosen:
                # The id makes names unique, because images may come from several folders.
                file_name = f"{image['id']:012d}{Path(image['file_name']).suffix}"
                shutil.copyfile(os.path.join(image_root, image["file_name"]), output / "images" / file_name)
                images.append({**image, "file_name": file_name})
        annotations = [
            {**annotation, "category_id": numbers[annotation["category_id"]]}
            for annotation in check.cleaned["annotations"]
            if annotation["image_id"] in chosen and annotation["category_id"] in numbers
        ]
        content = {
            "info": {},
            "licenses": check.cleaned["licenses"],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": check.categories[class_]} for class_, number in numbers.items()],
        }
        write_text_atomically(output / f"my_{split}.json", json.dumps(content))
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="annotation file in COCO's format")
    parser.add_argument("images", help="folder that the file names are relative to")
    parser.add_argument("output", help="folder for my_train.json, my_val.json and images/")
    parser.add_argument("--num-images", type=int, default=20, help="images in both splits together (default: 20)")
    parser.add_argument(
        "--num-classes", type=int, default=5, help="number of classes, the most frequent ones (default: 5)"
    )
    parser.add_argument("--num-val", type=int, help="images in the validation split (default: a quarter)")
    args = parser.parse_args()
    numbers = {"num_images": args.num_images, "num_classes": args.num_classes, "num_val": args.num_val}
    folder = write_small_coco(args.annotations, args.images, args.output, **numbers)
    for split in ("train", "val"):
        print(check_coco(folder / f"my_{split}.json", folder / "images").page())


if __name__ == "__main__":
    main()
