"""A small data set taken from a large one."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

from lift_det.files import write_text_atomically

from .coco_check import check_coco
from .errors import DatasetError


def write_small_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_images: int = 20,
    num_classes: int = 5,
    num_val: int | None = None,
) -> Path:
    """Writes ``my_train.json``, ``my_val.json`` and ``images/``, with copies of images, to ``output``.

    Keeps the classes that most images show, renumbered from 1, and chooses images with all of them for both splits.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder that file names are relative to.
        output: a folder, which is created.
        num_images: in both splits together.
        num_classes: number of classes.
        num_val: images of the validation split; None is a quarter.

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
        while len(chosen) < size:  # the image with the classes that the split has least of
            best = max(free, key=lambda id_: sum(1 / (1 + counts[class_]) ** 2 for class_ in free[id_]))
            chosen.add(best)
            counts.update(free.pop(best))
        images = []
        for image in check.cleaned["images"]:
            if image["id"] in chosen:
                # Images of several folders may have the same name.
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
