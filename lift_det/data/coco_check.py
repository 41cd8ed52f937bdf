"""Checks a COCO-format data set before anything is trained on it: what is wrong, with ids, and what is left to use."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from .coco_annotations import AnnotationChecker
from .coco_findings import ERROR, NOTED, SKIPPED, CocoCheck, CocoFinding, entry_fault
from .coco_images import check_images
from .coco_json import read_coco
from .errors import DatasetError

_JSON_ADVICE = "Expected annotations of objects, such as COCO's instances_train2017.json."


def check_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    thing_classes: Mapping[int, str] | None = None,
    read_images: bool = True,
    decode_images: bool = False,
    progress: bool = False,
) -> CocoCheck:
    """Checks annotations and images, and takes out what cannot be used.

    What one bad annotation or image leaves unclear costs that one (``"skipped"``); what leaves more unclear than one
    has to be mended by a person (``"error"``); what is harmless, or can be mended without a doubt, is kept and said
    (``"noted"``). Boxes and polygons may leave the image by a pixel. What becomes of each kind:

    - Errors: an id that several different images, annotations or categories have, category names that come twice,
      categories without an id or a name, other categories than ``thing_classes``, category ids that are all one off,
      boxes that are all corners or all fractions, more objects without a mask than with one, no object left.
    - Skipped images: missing, unreadable or cut off, or of another size than stated (EXIF may turn them). Their
      annotations go with them.
    - Skipped annotations: keys that are missing or of the wrong type, an unknown image or category, no box, or one
      without a size or outside the image, no usable polygon or RLE where others have one, a mask that does not meet
      its box, ``ignore`` (which detectron2 refuses).
    - Noted and mended: a box that leaves the image is cut to it; a missing box is that of the mask; a size that an
      image lacks is read from its file; a missing ``area`` is computed, a missing ``iscrowd`` is 0; of several polygons
      the unusable ones are left out.
    - Noted and left: polygons that cross themselves (one in 400 of COCO's own does, mostly within a few pixels, and
      without the annotation the object would be background; what training's crops lose of one is said), polygons that
      leave the image, masks that fit their box badly, images without annotations, file names that come twice, EXIF
      orientations, images of more than 8 bits, masks as RLE, the annotation id 0.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder that the images' file names start from.
        thing_classes: names by category id that the file has to have, those of the training set for one to evaluate
            on; None takes what is there.
        read_images: open every image; otherwise only those whose size the annotations do not state. Files that are
            missing are found either way. Of JPEG and PNG the header is read, and whether the end of the file is there.
        decode_images: with ``read_images``, read all of every image, which finds damage in its middle, too.
        progress: show progress bars on stderr.

    Returns:
        What was found, and what is left to use.

    Raises:
        DatasetError: the file or the folder is missing, the file is no COCO JSON, or none of its images is there.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    content = read_coco(json_file, f"The annotation file '{json_file}'", _JSON_ADVICE)
    if not os.path.isdir(image_root):
        raise DatasetError(f"The image folder is missing: there is no folder '{os.path.abspath(image_root)}'.")

    findings: list[CocoFinding] = []
    # "unknown" and "left out" are different things to say of an annotation's image
    image_ids, images = check_images(content["images"], image_root, findings, read_images, decode_images, progress)
    used = {
        a["category_id"] for a in content["annotations"] if isinstance(a, dict) and type(a.get("category_id")) is int
    }
    categories = _check_categories(content["categories"], used, thing_classes, findings)
    checker = AnnotationChecker(image_ids, images, {c["id"] for c in categories}, findings)
    annotations = checker.check(content["annotations"], progress)
    _check_what_is_left(images, annotations, checker.listed_per_image, findings)

    names = {category["id"]: category["name"] for category in categories}
    # some readers of the file ask for info and licenses
    left = {"images": list(images.values()), "annotations": annotations, "categories": categories}
    return CocoCheck(
        json_file=json_file,
        image_root=image_root,
        findings=findings,
        categories=dict(sorted(names.items())),
        cleaned={"info": {}, "licenses": [], **content, **left},
        images_listed=len(content["images"]),
        annotations_listed=len(content["annotations"]),
    )


def _check_categories(
    listed: Sequence[Any], used: set[int], expected: Mapping[int, str] | None, findings: list[CocoFinding]
) -> list[dict[str, Any]]:
    """Returns those that can be used, each id once."""

    def add(kind: str, severity: str, text: str) -> None:
        findings.append(CocoFinding(kind, severity, text))

    by_id: dict[int, dict[str, Any]] = {}
    by_name: dict[str, list[int]] = defaultdict(list)
    for position, category in enumerate(listed, start=1):
        fault = entry_fault(category, {"id": int, "name": str})
        if fault:
            add("category without an id or a name", ERROR, f"category number {position} of the file: {fault}")
        elif category["id"] not in by_id:
            by_id[category["id"]] = category
            by_name[category["name"]].append(category["id"])
        elif category["name"] == by_id[category["id"]]["name"]:
            add("duplicate category", SKIPPED, f"category {category['id']} '{category['name']}' comes twice")
        else:
            names = f"'{by_id[category['id']]['name']}' and '{category['name']}'"
            add("duplicate category id", ERROR, f"category {category['id']} is {names}; give each an id of its own")

    for name, ids in by_name.items():
        # Some tools list the name of the data set as a category 0 that no annotation has.
        meant = [id_ for id_ in ids if id_ in used] or [id_ for id_ in ids if id_ in (expected or ())] or ids[:1]
        if len(meant) > 1:
            text = f"'{name}' is the name of the categories {', '.join(map(str, ids))}; give them one id or two names"
            add("duplicate category name", ERROR, text)
        elif len(ids) > 1:
            for id_ in set(ids) - set(meant):
                del by_id[id_]
                text = f"category {id_} '{name}' has the name of category {meant[0]}, and no annotation"
                add("duplicate category name", SKIPPED, text)

    unknown = used - set(by_id)
    for step, found in ((1, "one less"), (-1, "one more")):
        if unknown and {id_ + step for id_ in used} <= set(by_id):
            text = (
                f"the annotations' category ids go from {min(used)} to {max(used)}, those of the categories from "
                f"{min(by_id)} to {max(by_id)}: every one seems to be {found} than is meant; make them agree"
            )
            add("category ids one off", ERROR, text)

    if expected is not None:
        there = {id_: category["name"] for id_, category in by_id.items()}
        for id_ in sorted(set(there) | set(expected)):
            if there.get(id_) != expected.get(id_):
                here = f"is '{there[id_]}'" if id_ in there else "is missing"
                other = f"'{expected[id_]}'" if id_ in expected else "no category of that id"
                text = f"category {id_} {here} here, expected {other}"
                add("categories that do not match", ERROR, text)
    return list(by_id.values())


def _check_what_is_left(
    images: Mapping[int, Any],
    annotations: Sequence[Mapping[str, Any]],
    listed_per_image: Mapping[int, int],
    findings: list[CocoFinding],
) -> None:
    annotated = {annotation["image_id"] for annotation in annotations}
    for id_, image in images.items():
        if id_ in annotated:
            continue
        where = f"image {id_} ({image['file_name']})"
        count = listed_per_image.get(id_, 0)
        if count:
            kind, text = "image that lost all annotations", f"{where}: none of its {count} can be used"
        else:
            kind, text = "image without annotations", f"{where}: taken to show none of the classes"
        findings.append(CocoFinding(kind, NOTED, text, image_id=id_))
    if all(annotation["iscrowd"] for annotation in annotations):
        text = f"of {len(images)} usable images and {len(annotations)} annotations none is an object that is no crowd"
        findings.append(CocoFinding("nothing to train on", ERROR, text))
