"""Check of a COCO-format dataset before training."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import pycocotools.mask as mask_util
from detectron2.data import detection_utils
from PIL import Image
from tqdm import tqdm

from .coco_findings import ERROR, NOTED, SKIPPED, CocoCheck, CocoFinding
from .coco_masks import Unusable, are_coordinates, mask_area_and_box, read_mask
from .errors import DatasetError
from .images import read_rgb

#: pixels by which boxes may extend beyond the image, because annotation tools round
_TOLERANCE = 1
#: last bytes of complete files; other formats are decoded
_FILE_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82"}
_EXIF_ORIENTATION = 274

Entry = dict[str, Any]


def read_coco(json_file: str) -> Entry:
    """Reads an annotation file; only checks that it has the three lists."""
    if not os.path.isfile(json_file):
        raise DatasetError(f"The annotation file '{os.path.abspath(json_file)}' is missing.")
    if os.path.getsize(json_file) == 0:
        raise DatasetError(f"The annotation file '{json_file}' is empty (0 bytes). Fetch it again.")
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        size = os.path.getsize(json_file)
        raise DatasetError(f"'{json_file}' ({size} bytes) is not valid JSON: {error}. Fetch it again.") from error
    lists = content if isinstance(content, dict) else {}
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(lists.get(key), list) or (key != "annotations" and not lists[key])]
    if missing:
        raise DatasetError(
            f"'{json_file}' is not in COCO's format for objects: expected the lists {', '.join(keys)}, got a "
            f"{type(content).__name__} with the keys {sorted(lists)!s:.200}, without {', '.join(missing)}."
        )
    return content


def check_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    thing_classes: Mapping[int, str] | None = None,
    read_images: bool = True,
    decode_images: bool = False,
    progress: bool = False,
) -> CocoCheck:
    """Checks a COCO-format dataset and leaves out images and annotations that cannot be used.

    docs/own_data.md lists the problems that are found.

    Args:
        json_file: annotations in COCO's format.
        image_root: the folder that file names are relative to.
        thing_classes: expected class names by category id, such as those of the training set; None accepts any.
        read_images: check the size and the end of every image file; otherwise only read images without a stated size.
        decode_images: with ``read_images``, decode every image, which finds damage in the middle of a file.
        progress: show progress bars on stderr.

    Raises:
        DatasetError: the file or folder is missing, the file is not in COCO's format, or none of its images exists.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    content = read_coco(json_file)
    if not os.path.isdir(image_root):
        raise DatasetError(f"The image folder '{os.path.abspath(image_root)}' is missing.")
    checker = _Checker(content, progress)
    images = checker.check_images(image_root, read_images, decode_images)
    categories = checker.check_categories(thing_classes)
    annotations = checker.check_annotations(images, categories)
    cleaned = {"images": list(images.values()), "annotations": annotations, "categories": list(categories.values())}
    return CocoCheck(
        json_file=json_file,
        image_root=image_root,
        findings=checker.findings,
        categories={id_: categories[id_]["name"] for id_ in sorted(categories)},
        cleaned={"info": {}, "licenses": [], **content, **cleaned},  # some readers require info and licenses
        images_listed=len(content["images"]),
        annotations_listed=len(content["annotations"]),
    )


class _Checker:
    """Checks the lists of an annotation file and collects findings."""

    def __init__(self, content: Mapping[str, Any], progress: bool) -> None:
        self.findings: list[CocoFinding] = []
        self.images: dict[int, Entry] = {}
        self.images = self._by_id("image", content["images"], id=int, file_name=str)
        self.categories = self._by_id("category", content["categories"], id=int, name=str)
        self.annotations = self._by_id("annotation", content["annotations"], id=int, image_id=int, category_id=int)
        self._num_masks = sum(1 for annotation in self.annotations.values() if annotation.get("segmentation"))
        self._computed: dict[str, list[int]] = {"area": [], "iscrowd": []}  # ids of annotations without a valid value
        self._box_counts: Counter[str] = Counter()
        self._progress = progress

    def _add(self, severity: str, kind: str, text: str, annotation: Any = None, image: Any = None) -> None:
        """Adds a finding, with the ids of its annotation and image in front of the text."""
        annotation_id = None
        if isinstance(annotation, dict):
            annotation_id, image = annotation.get("id"), {"id": annotation.get("image_id")}
        image_id = image.get("id") if isinstance(image, dict) else None
        names = [] if annotation_id is None else [f"annotation {annotation_id!r:.20}"]
        if image_id is not None:
            listed = self.images.get(image_id) if type(image_id) is int else None
            names.append(f"image {image_id!r:.20}" + (f" ({listed['file_name']:.100})" if listed else ""))
        text = f"{' of '.join(names)}: {text}" if names else text
        self.findings.append(CocoFinding(kind, severity, text, annotation_id, image_id))

    def _by_id(self, what: str, entries: list[Any], **types: type) -> dict[int, Entry]:
        """Returns the entries by id that have the keys, with values of these types."""
        by_id: dict[int, Entry] = {}
        for position, entry in enumerate(entries, start=1):
            valid = isinstance(entry, dict) and all(_is_valid(entry.get(key), types[key]) for key in types)
            if valid and by_id.setdefault(entry["id"], entry) is entry:
                continue
            found = {key: entry.get(key) for key in types} if isinstance(entry, dict) else entry
            name = f"{what} number {position} of the file, {found!r:.100},"
            if not valid:
                expected = ", ".join(f"{key} ({type_.__name__})" for key, type_ in types.items())
                severity = ERROR if what == "category" else SKIPPED
                finding = (severity, f"invalid {what}", f"{name} needs {expected}")
            elif by_id[entry["id"]] == entry:
                finding = (SKIPPED, f"duplicate {what}", f"{name} is listed twice")
            else:
                finding = (ERROR, f"duplicate {what} id", f"{name} has the same id as another {what}")
            self._add(*finding, **({} if what == "category" else {what: entry}))
        return by_id

    def check_images(self, image_root: str, read: bool, decode: bool) -> dict[int, Entry]:
        """Returns the usable images by id, with their sizes."""
        usable: dict[int, Entry] = {}
        missing: list[str] = []
        id_of_file: dict[str, int] = {}
        for id_, image in tqdm(self.images.items(), "checking images", disable=not self._progress):
            path = os.path.join(image_root, image["file_name"])
            if not os.path.isfile(path):
                missing.append(path)
                self._add(SKIPPED, "image file missing", f"there is no file '{path}'", image=image)
                continue
            other = id_of_file.setdefault(os.path.normpath(path), id_)
            if other != id_:
                text = f"image {other} has the same file; objects annotated in one are background in the other"
                self._add(NOTED, "duplicate file name", text, image=image)
            size = (image.get("width"), image.get("height"))
            if read or not _is_size(size):
                size = self._read_size(image, path, decode)
            if size is not None:
                usable[id_] = {**image, "width": size[0], "height": size[1]}
        if missing and len(missing) == len(self.images):
            raise DatasetError(
                f"None of the {len(missing)} images exists; the first is '{missing[0]}'. Pass the folder that the file "
                "names in the annotations are relative to."
            )
        return usable

    def _read_size(self, image: Entry, path: str, decode: bool) -> tuple[int, int] | None:
        """Returns an image file's width and height; None if it cannot be used."""
        try:
            size, orientation, mode = _read_header(path, decode)
        except Exception as error:  # Pillow raises many types for broken files
            self._add(SKIPPED, "unreadable image", read_rgb(path)[1] or repr(error), image=image)
            return None
        stated = (image.get("width"), image.get("height"))
        found = f"{size[0]} x {size[1]}"
        if not _is_size(stated):
            text = f"width and height are {stated!r:.40}; taken from the file, {found}"
            self._add(NOTED, "image without a size", text, image=image)
        elif stated != size:
            text = f"annotated as {stated[0]} x {stated[1]}, the file has {found}"
            if orientation > 4:
                text += f" after its EXIF orientation {orientation} is applied; remove that or rotate the annotations"
            self._add(SKIPPED, "image size", text, image=image)
            return None
        elif orientation > 1 and (orientation < 5 or size[0] == size[1]):  # others show in the size
            text = f"its EXIF orientation {orientation} rotates or flips it; check that the annotations fit"
            self._add(NOTED, "EXIF orientation", text, image=image)
        if mode[0] in "IF":
            text = f"it has more than 8 bits per channel (mode {mode}); detectron2 reads values above 255 as white"
            self._add(NOTED, "image of more than 8 bits", text, image=image)
        return size

    def check_categories(self, expected: Mapping[int, str] | None) -> dict[int, Entry]:
        """Returns the usable categories by id."""
        used = {annotation["category_id"] for annotation in self.annotations.values()}
        usable = dict(self.categories)
        ids_by_name = defaultdict(list)
        for id_, category in self.categories.items():
            ids_by_name[category["name"]].append(id_)
        for name, ids in ids_by_name.items():
            # Some tools list a class again as an unused category 0.
            kept = used.intersection(ids) or set(expected or ()).intersection(ids) or {ids[0]}
            if len(kept) > 1:
                text = f"the categories {ids} are all named '{name}': merge or rename them"
                self._add(ERROR, "duplicate category name", text)
                continue
            for id_ in set(ids) - kept:
                text = f"category {id_} has no annotations and the same name as category {min(kept)}, '{name}'"
                del usable[id_]
                self._add(SKIPPED, "duplicate category name", text)
        for step in (1, -1):
            if not used <= usable.keys() and {id_ + step for id_ in used} <= usable.keys():
                text = (
                    f"annotations have the category ids {sorted(used)!s:.60}, but the categories have "
                    f"{sorted(usable)!s:.60}: add {step} to the former"
                )
                self._add(ERROR, "category ids off by one", text)
        for id_ in sorted(usable.keys() | expected.keys()) if expected is not None else ():
            found = usable[id_]["name"] if id_ in usable else None
            if found != expected.get(id_):
                text = f"category {id_}: expected {expected.get(id_)!r}, found {found!r}"
                self._add(ERROR, "categories that do not match", text)
        return usable

    def check_annotations(self, images: Mapping[int, Entry], categories: Mapping[int, Entry]) -> list[Entry]:
        """Returns the usable annotations, fixed where possible."""
        usable = []
        annotations = self.annotations.values()
        for annotation in tqdm(annotations, "checking annotations", disable=not self._progress):
            fixed = self._check_annotation(annotation, images, categories)
            if fixed is not None:
                usable.append(fixed)
        for key, ids in self._computed.items():
            if ids:
                value = "computed from the mask or box" if key == "area" else "set to 0"
                text = f"{len(ids)} annotations have no valid '{key}', which is {value}: {str(ids[:20])[1:-1]}"
                self._add(NOTED, f"no {key}", text)
        listed = Counter(annotation["image_id"] for annotation in annotations)
        annotated = {annotation["image_id"] for annotation in usable}
        for id_, image in images.items():
            if id_ not in annotated:
                text = f"it has {listed[id_]} annotations, none of them usable: all of it is background"
                self._add(NOTED, "image without annotations", text, image=image)
        if 0 < self._num_masks < len(annotations) / 2:
            text = (
                f"{self._num_masks} of {len(annotations)} annotations have a mask: add the others or remove all masks"
            )
            self._add(ERROR, "few masks", text)
        counts = self._box_counts
        are_corners = counts["corners"] == counts["all"] <= 3 * counts["leaving"]
        if counts["all"] >= 10 and (are_corners or counts["fractions"] == counts["all"]):
            found = "[x0, y0, x1, y1]" if are_corners else "fractions of the image"
            text = f"all {counts['all']} boxes are {found}, expected [x, y, width, height] in pixels"
            self._add(ERROR, "boxes of another format", text)
        if all(annotation["iscrowd"] for annotation in usable):
            text = f"{len(images)} usable images have no objects, and {len(usable)} crowds"
            self._add(ERROR, "nothing to train on", text)
        return usable

    def _check_annotation(
        self, annotation: Entry, images: Mapping[int, Entry], categories: Mapping[int, Entry]
    ) -> Entry | None:
        """Returns an annotation, fixed where possible; None if it cannot be used."""
        faults: list[tuple[str, str]] = []
        if annotation["category_id"] not in categories:
            faults.append(("unknown category", f"there is no category {annotation['category_id']}"))
        if annotation.get("ignore"):
            faults.append(("ignore", f"'ignore' is {annotation['ignore']!r:.20}, which detectron2 rejects"))
        iscrowd, area = annotation.get("iscrowd"), annotation.get("area")
        if iscrowd not in (None, 0, 1):
            faults.append(("invalid iscrowd", f"'iscrowd' is {iscrowd!r:.30}, expected 0 or 1"))
        segmentation, mask_box = annotation.get("segmentation"), None
        if not segmentation and self._num_masks:
            faults.append(("no mask", f"'segmentation' is {segmentation!r:.20}, but other annotations have masks"))
        image = images.get(annotation["image_id"])
        if image is None:
            is_listed = annotation["image_id"] in self.images
            faults.append(("no image", "its image is skipped" if is_listed else "its image is not in the file"))
        else:
            try:
                if segmentation:
                    segmentation, mask_box, notes = read_mask(segmentation, image["width"], image["height"])
                    for kind, text in notes:
                        self._add(NOTED, kind, text, annotation)
            except Unusable as fault:
                faults.append(fault.args)
            try:
                box = self._check_box(annotation, image, mask_box)
            except Unusable as fault:
                faults.append(fault.args)
        for kind, text in faults:
            self._add(SKIPPED, kind, text, annotation)
        if faults:
            return None

        if annotation["id"] == 0:
            self._add(NOTED, "annotation id 0", "pycocotools never counts it as found; use ids from 1 on", annotation)
        fixed = {**annotation, "bbox": box, "iscrowd": int(iscrowd or 0)}
        if iscrowd is None:
            self._computed["iscrowd"].append(annotation["id"])
        if segmentation:
            fixed["segmentation"] = segmentation
        if type(area) not in (int, float) or not 0 < area < math.inf:
            self._computed["area"].append(annotation["id"])
            fixed["area"] = float(box[2] * box[3])
            if segmentation:
                fixed["area"] = mask_area_and_box(segmentation, image["width"], image["height"])[0]
        return fixed

    def _check_box(self, annotation: Entry, image: Entry, mask_box: list[float] | None) -> list[float]:
        """Returns the box, clipped to the image if it extends beyond it; raises Unusable."""
        box = annotation.get("bbox")
        if box is None or box == []:
            if mask_box is None:
                raise Unusable("no box", f"'bbox' is {box!r}, and there is no usable mask to compute it from")
            box = _clip(mask_box, image)
            self._add(NOTED, "no box", f"computed from the mask, {box}", annotation)
            return box
        if not are_coordinates(box) or len(box) != 4:
            raise Unusable("invalid box", f"expected four finite numbers [x, y, width, height], got {box!r:.60}")
        x, y, width, height = box
        if width <= 0 or height <= 0:
            raise Unusable("box without a size", f"the box [x, y, width, height] is {box}")
        right, bottom = image["width"] + _TOLERANCE, image["height"] + _TOLERANCE
        leaves_right = x + width > right or y + height > bottom
        self._box_counts["all"] += 1
        self._box_counts["leaving"] += leaves_right
        self._box_counts["corners"] += x < width <= right and y < height <= bottom
        self._box_counts["fractions"] += max(box) <= 1
        clipped = box
        if x < 0 or y < 0 or x + width > image["width"] or y + height > image["height"]:
            clipped = _clip(box, image)
        if clipped[2] <= 0 or clipped[3] <= 0:
            raise Unusable(
                "box outside the image", f"the box is {box} in an image of {image['width']} x {image['height']}"
            )
        # Boxes and masks of a few pixels differ by rounding.
        if mask_box is not None and max(abs(a - b) for a, b in zip(box, mask_box, strict=True)) > 2 * _TOLERANCE:
            iou = mask_util.iou([box], [mask_box], [0])[0][0]
            if iou < 0.5:
                text = f"the box is {box}, the mask's is {mask_box}; their IoU is {iou:.2f}"
                if iou == 0:
                    raise Unusable("mask apart from its box", text)
                self._add(NOTED, "mask that fits its box badly", text, annotation)
        if leaves_right or min(x, y) < -_TOLERANCE:
            text = f"the box is {box} in an image of {image['width']} x {image['height']}; clipped to {clipped}"
            self._add(NOTED, "box that leaves the image", text, annotation)
            return clipped
        return box


def _is_valid(value: Any, type_: type) -> bool:
    """Whether a value has the type. Strings must not be empty nor have lone surrogates, which cannot be printed."""
    return type(value) is type_ and (type_ is not str or re.search("^$|[\ud800-\udfff]", value) is None)


def _is_size(size: tuple[Any, Any]) -> bool:
    # pycocotools counts pixels in 32 bits.
    return all(type(side) is int and side > 0 for side in size) and size[0] * size[1] < 2**32


def _read_header(path: str, decode: bool) -> tuple[tuple[int, int], int, str]:
    """Returns width and height as detectron2 reads them, the EXIF orientation (1 to 8) and Pillow's mode."""
    with open(path, "rb") as file, Image.open(file) as image:
        size, mode, orientation = image.size, image.mode, 1
        # For a PNG, getexif() would decode the pixels to look for EXIF data behind them.
        if image.format != "PNG" or "exif" in image.info:
            with contextlib.suppress(Exception):  # detectron2 ignores broken EXIF data, too
                orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        position, end = file.tell(), _FILE_ENDS.get(image.format, b"")
        file.seek(-len(end), os.SEEK_END)
        if decode or not end or file.read() != end:
            file.seek(position)
            image.load()
        if image.format == "TIFF" and orientation > 1:  # rotated by Pillow, then again by detectron2
            return detection_utils.read_image(path, format="RGB").shape[1::-1], orientation, mode
        return size if orientation < 5 else size[::-1], orientation, mode


def _clip(box: list[float], image: Entry) -> list[float]:
    x, y, width, height = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, image["width"]), min(y + height, image["height"])
    return [round(number, 3) for number in (left, top, right - left, bottom - top)]
