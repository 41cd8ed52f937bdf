"""A small data set out of a large one, as a user's own would be: few images, few classes, ids from 1."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lift_det.files import write_text_atomically

from .coco_check import check_coco
from .errors import DatasetError

SPLITS = ("train", "val")


def write_small_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    output: str | os.PathLike,
    *,
    num_images: int = 20,
    num_classes: int = 5,
    num_val: int | None = None,
) -> Path:
    """Writes ``my_train.json``, ``my_val.json`` and ``images/`` below ``output``, with real images copied.

    The classes are those that the most images show; their ids are 1 to ``num_classes`` in the order of the old ones.
    Images are chosen so that each class is in as many of either split as can be. Objects of other classes are left out.
    The same arguments give the same data set.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder that their file names start from.
        output: a folder, made if it is not there.
        num_images: in both splits together.
        num_classes: to keep.
        num_val: images of the validation split; None is a quarter.

    Returns:
        ``output``.

    Raises:
        ValueError: a number is out of range.
        DatasetError: the source cannot be used, or has too few images or classes.
    """
    num_val = num_images // 4 if num_val is None else num_val
    if not 1 <= num_val < num_images or num_classes < 1:
        raise ValueError(
            f"Expected at least one class and 1 <= num_val < num_images, got num_classes={num_classes}, "
            f"num_val={num_val} and num_images={num_images}."
        )
    check = check_coco(json_file, image_root, read_images=False)
    if check.errors:
        raise DatasetError(f"'{check.json_file}' cannot be used: {check.errors[0].text}.")
    shown: dict[int, set[int]] = defaultdict(set)  # the classes that each image shows
    for annotation in check.cleaned["annotations"]:
        if not annotation["iscrowd"]:
            shown[annotation["image_id"]].add(annotation["category_id"])
    images_of = Counter(id_ for classes in shown.values() for id_ in classes)
    kept = sorted(sorted(images_of, key=lambda id_: (-images_of[id_], id_))[:num_classes])
    shown = {id_: classes & set(kept) for id_, classes in sorted(shown.items()) if classes & set(kept)}
    if len(kept) < num_classes or len(shown) < num_images:
        raise DatasetError(
            f"'{check.json_file}' has {len(images_of)} classes with objects, and {len(shown)} images with the "
            f"{len(kept)} most frequent of them; asked for {num_classes} classes and {num_images} images."
        )

    output = Path(output)
    (output / "images").mkdir(parents=True, exist_ok=True)
    images = {image["id"]: image for image in check.cleaned["images"]}
    numbers = {id_: number for number, id_ in enumerate(kept, start=1)}
    categories = [{"id": number, "name": check.categories[id_]} for id_, number in numbers.items()]
    for split, chosen in zip(SPLITS, _choose(shown, num_images - num_val, num_val), strict=True):
        annotations = [
            {**annotation, "category_id": numbers[annotation["category_id"]]}
            for annotation in check.cleaned["annotations"]
            if annotation["image_id"] in chosen and annotation["category_id"] in numbers
        ]
        entries = [_copy_image(images[id_], check.image_root, output / "images") for id_ in sorted(chosen)]
        content: dict[str, Any] = {"info": {}, "licenses": check.cleaned["licenses"], "images": entries}
        content |= {"annotations": annotations, "categories": categories}
        write_text_atomically(output / f"my_{split}.json", json.dumps(content))
    return output


def _choose(shown: Mapping[int, set[int]], *sizes: int) -> list[set[int]]:
    """Chooses images for each split, the ones first that show what the split has least of.

    Splits get their first images in turn until each has every class that it can have, then the rest.
    """
    free = dict(shown)
    splits: list[set[int]] = [set() for _ in sizes]
    counts: list[Counter[int]] = [Counter() for _ in sizes]

    def take(number: int, wanted: Mapping[int, float]) -> None:
        best = max(free, key=lambda id_: (sum(wanted.get(class_, 0) for class_ in free[id_]), -id_))
        splits[number].add(best)
        counts[number].update(free.pop(best))

    classes = set().union(*shown.values())
    for number, size in enumerate(sizes):
        # a split of few images gets what they can show
        while len(splits[number]) < size:
            missing = (classes - set(counts[number])) & set().union(*free.values())
            if not missing:
                break
            take(number, dict.fromkeys(missing, 1.0))
    for number, size in enumerate(sizes):
        while len(splits[number]) < size:
            take(number, {class_: 1 / (1 + counts[number][class_]) for class_ in classes})
    return splits


def _copy_image(image: dict[str, Any], image_root: str, folder: Path) -> dict[str, Any]:
    """The entry of the image's copy, which has the id in its name: file names of several folders may be the same."""
    file_name = f"{image['id']:012d}{Path(image['file_name']).suffix}"
    shutil.copyfile(os.path.join(image_root, image["file_name"]), folder / file_name)
    return {**image, "file_name": file_name}
