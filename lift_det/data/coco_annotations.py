"""Checks the annotations of a COCO-format file, one by one and all together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from .coco_findings import ERROR, NOTED, SKIPPED, CocoFinding, entry_fault
from .coco_masks import PolygonFacts, mask_area_and_box, polygon_facts, rle_fault

#: pixels by which boxes and polygons may leave the image: tools round
_TOLERANCE = 1.0
#: annotations whose polygons are measured together
_CHUNK = 5000
#: with fewer boxes nothing is said of how all of them are written
_FEW_BOXES = 10

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class AnnotationChecker:
    """Checks annotations against the images and categories that can be used.

    Attributes:
        listed_per_image: how many annotations the file has of each image.
    """

    def __init__(
        self,
        image_ids: set[int],
        images: Mapping[int, dict[str, Any]],
        category_ids: set[int],
        findings: list[CocoFinding],
    ) -> None:
        """
        Args:
            image_ids: of all images listed.
            images: by id, those that can be used.
            category_ids: of the categories.
            findings: what is found is added to these.
        """
        self.listed_per_image: Counter[int] = Counter()
        self._image_ids, self._images, self._category_ids = image_ids, images, category_ids
        self._findings = findings
        self._by_id: dict[int, dict[str, Any]] = {}
        self._has_masks = False
        self._without_area: list[_Item] = []
        self._without_iscrowd: list[_Item] = []
        self._box_counts: Counter[str] = Counter()

    def check(self, listed: Sequence[Any], progress: bool) -> list[dict[str, Any]]:
        """Returns the annotations that can be used, mended where that is without a doubt.

        Args:
            listed: as the file has them.
            progress: show a progress bar on stderr.
        """
        with_masks = sum(1 for a in listed if isinstance(a, dict) and a.get("segmentation"))
        self._has_masks = with_masks > 0
        kept: list[dict[str, Any]] = []
        with tqdm(total=len(listed), desc="checking annotations", disable=not progress) as bar:
            for start in range(0, len(listed), _CHUNK):
                chunk = listed[start : start + _CHUNK]
                polygons = [_polygons(annotation) for annotation in chunk]
                facts = polygon_facts([polygon for group in polygons for polygon in group])
                first = 0
                for position, (annotation, group) in enumerate(zip(chunk, polygons, strict=True), start=start + 1):
                    item = _Item(annotation, position, self._findings)
                    self._check_one(item, facts, range(first, first + len(group)))
                    first += len(group)
                    if item.kept:
                        kept.append({**annotation, **item.changes})
                bar.update(len(chunk))
        self._note_what_was_added(len(kept))
        self._check_all(kept, len(listed), with_masks)
        return kept

    def _check_one(self, item: _Item, facts: PolygonFacts, polygons: range) -> None:
        annotation = item.annotation
        if fault := entry_fault(annotation, {"id": int, "image_id": int, "category_id": int}):
            item.skip("annotation entry that cannot be read", fault)
            if not isinstance(annotation, dict):
                return
        image = self._find_image(item)
        self._check_id(item)
        if type(annotation.get("category_id")) is int and annotation["category_id"] not in self._category_ids:
            item.skip("unknown category", f"there is no category {annotation['category_id']}")
        if annotation.get("ignore"):
            item.skip("ignore", f"'ignore' is {annotation['ignore']!r:.20}, which detectron2 does not take")
        mask_box = self._check_mask(item, image, facts, polygons)
        self._check_box(item, image, mask_box)
        self._check_iscrowd(item)
        if item.kept:
            self._check_area(item, image)

    def _find_image(self, item: _Item) -> dict[str, Any] | None:
        id_ = item.annotation.get("image_id")
        if type(id_) is not int:
            return None
        self.listed_per_image[id_] += 1
        if id_ in self._images:
            item.image = self._images[id_]
        elif id_ in self._image_ids:
            item.skip("annotation of a skipped image", "its image is left out")
        else:
            item.skip("unknown image", f"there is no image {id_}")
        return item.image

    def _check_id(self, item: _Item) -> None:
        id_ = item.annotation.get("id")
        if type(id_) is not int:
            return
        first = self._by_id.setdefault(id_, item.annotation)
        if first is item.annotation:
            if id_ == 0:
                item.note("annotation id 0", "COCO's own evaluation never counts it as found; number from 1")
        elif first == item.annotation:
            item.skip("duplicate annotation", "the same entry comes twice")
        else:
            other = f"image {first.get('image_id')!r:.20}, box {first.get('bbox')!r:.60}"
            item.error("duplicate annotation id", f"another annotation has the id, too ({other}); number them anew")

    def _check_mask(
        self, item: _Item, image: dict[str, Any] | None, facts: PolygonFacts, polygons: range
    ) -> Box | None:
        """Returns the mask's box."""
        segmentation = item.annotation.get("segmentation")
        if not segmentation:
            if self._has_masks:
                item.skip("no segmentation", f"'segmentation' is {segmentation!r:.20}, other annotations have masks")
            return None
        if isinstance(segmentation, dict):
            if image is None:
                return None
            if fault := rle_fault(segmentation, image["width"], image["height"]):
                item.skip("RLE that cannot be used", fault)
                return None
            _, (x, y, width, height) = mask_area_and_box(segmentation, image["width"], image["height"])
            return x, y, x + width, y + height
        if not isinstance(segmentation, list):
            item.skip("segmentation of the wrong type", f"it is {segmentation!r:.30}, neither polygons nor RLE")
            return None
        if not isinstance(segmentation[0], list):
            text = f"its segmentation begins with {segmentation[0]!r:.20}; expected a list of polygons, [[x0, y0, ...]]"
            item.skip("not a polygon", text)
            return None
        return self._check_polygons(item, image, facts, polygons)

    def _check_polygons(
        self, item: _Item, image: dict[str, Any] | None, facts: PolygonFacts, polygons: range
    ) -> Box | None:
        usable: list[int] = []
        faults: list[tuple[str, str]] = []
        for number, index in enumerate(polygons, start=1):
            fault = facts.faults[index]
            if fault is None and image is not None:
                left, top, right, bottom = box = facts.bounds[index]
                if left >= image["width"] or top >= image["height"] or right <= 0 or bottom <= 0:
                    fault = ("polygon outside the image", f"it goes from {_corners(box)} in {_size(image)}")
                elif _leaves_image(box, image):
                    text = f"it goes from {_corners(box)} in {_size(image)}; what is outside is cut off"
                    item.note("polygon that leaves the image", _numbered(number, polygons, text))
            if fault is not None:
                faults.append((fault[0], _numbered(number, polygons, fault[1])))
                continue
            usable.append(index)
            if index in facts.crossings:
                item.note("polygon that crosses itself", _numbered(number, polygons, facts.crossings[index]))
        for kind, text in faults:
            if usable:
                item.note(kind, f"{text}; left out, the others of the annotation are kept")
            else:
                item.skip(kind, text)
        if not usable:
            return None
        if faults:
            segmentation = item.annotation["segmentation"]
            item.changes["segmentation"] = [segmentation[index - polygons.start] for index in usable]
        boxes = [facts.bounds[index] for index in usable]
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def _check_box(self, item: _Item, image: dict[str, Any] | None, mask_box: Box | None) -> None:
        box = item.annotation.get("bbox")
        if box is None or box == []:
            if mask_box is None or image is None:
                item.skip("no box", f"'bbox' is {box!r}" if "bbox" in item.annotation else "there is no 'bbox'")
                return
            item.changes["bbox"] = _bbox(_cut(mask_box, image))
            item.note("no box", f"taken from its mask: {item.changes['bbox']}")
            return
        if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(number) for number in box):
            item.skip("box of other than four finite numbers", f"the box is {box!r:.60}")
            return
        x, y, width, height = box
        if width <= 0 or height <= 0:
            item.skip("box without a size", f"the box [x, y, width, height] is {box}")
            return
        corners = (x, y, x + width, y + height)
        if image is not None:
            self._count_box(box, image)
            cut = _cut(corners, image)
            if cut[0] >= cut[2] or cut[1] >= cut[3]:
                item.skip("box outside the image", f"the box goes from {_corners(corners)} in {_size(image)}")
                return
            if _leaves_image(corners, image):
                item.changes["bbox"] = _bbox(cut)
                text = f"the box goes from {_corners(corners)} in {_size(image)}; cut to {_bbox(cut)}"
                item.note("box that leaves the image", text)
        if mask_box is not None:
            self._compare_boxes(item, corners, mask_box)

    def _compare_boxes(self, item: _Item, box: Box, mask_box: Box) -> None:
        overlap = _overlap(box, mask_box)
        apart = max(abs(a - b) for a, b in zip(box, mask_box, strict=True))
        # boxes and masks of a few pixels differ by rounding alone
        if overlap >= 0.5 or apart <= 2 * _TOLERANCE:
            return
        text = f"the mask goes from {_corners(mask_box)}, the box from {_corners(box)}"
        if overlap == 0:
            item.skip("mask apart from its box", text)
        else:
            item.note("mask that fits its box badly", f"{text}, IoU {overlap:.2f}")

    def _check_iscrowd(self, item: _Item) -> None:
        iscrowd = item.annotation.get("iscrowd")
        if iscrowd is None:
            item.changes["iscrowd"] = 0
            self._without_iscrowd.append(item)
        elif iscrowd in (0, 1) and isinstance(iscrowd, (int, float)):
            item.changes["iscrowd"] = int(iscrowd)  # true and false are written, too
        else:
            item.skip("iscrowd of the wrong type", f"'iscrowd' is {iscrowd!r:.30}, expected 0 or 1")

    def _check_area(self, item: _Item, image: dict[str, Any]) -> None:
        area = item.annotation.get("area")
        if _is_finite(area) and area > 0:
            return
        segmentation = item.changes.get("segmentation", item.annotation.get("segmentation"))
        if segmentation:
            item.changes["area"] = mask_area_and_box(segmentation, image["width"], image["height"])[0]
        else:
            width, height = item.changes.get("bbox", item.annotation.get("bbox"))[2:]
            item.changes["area"] = float(width * height)
        self._without_area.append(item)

    def _note_what_was_added(self, kept: int) -> None:
        """One finding for all where all lack a key, as files of many tools do."""
        for key, items in (("area", self._without_area), ("iscrowd", self._without_iscrowd)):
            items = [item for item in items if item.kept]
            if items and len(items) == kept > 1:
                said = "computed" if key == "area" else "all are taken to be objects and not crowds"
                text = f"none of the {kept} annotations has a usable '{key}'; {said}"
                self._findings.append(CocoFinding(f"no {key}", NOTED, text))
                continue
            for item in items:
                text = f"'{key}' is {item.annotation.get(key)!r:.20}; taken to be {item.changes[key]:g}"
                item.note(f"no {key}", text)

    def _count_box(self, box: Sequence[float], image: Mapping[str, Any]) -> None:
        x, y, width, height = box
        right, bottom = image["width"] + _TOLERANCE, image["height"] + _TOLERANCE
        self._box_counts["all"] += 1
        self._box_counts["leaving"] += x + width > right or y + height > bottom
        self._box_counts["as corners"] += x < width <= right and y < height <= bottom
        self._box_counts["as fractions"] += max(box) <= 1

    def _check_all(self, kept: Sequence[Mapping[str, Any]], listed: int, with_masks: int) -> None:
        """What no annotation says alone."""

        def add(kind: str, severity: str, text: str) -> None:
            self._findings.append(CocoFinding(kind, severity, text))

        counts = self._box_counts
        if counts["all"] >= _FEW_BOXES:
            if counts["as corners"] == counts["all"] and 3 * counts["leaving"] >= counts["all"]:
                text = (
                    f"all {counts['all']} boxes fit their images as two corners, {counts['leaving']} do not as "
                    "[x, y, width, height]: write them that way"
                )
                add("boxes of another format", ERROR, text)
            elif counts["as fractions"] == counts["all"]:
                text = f"no number of the {counts['all']} boxes is above 1: fractions of the image? Expected pixels"
                add("boxes of another format", ERROR, text)
        if 0 < with_masks < listed - with_masks:
            text = (
                f"{with_masks} of {listed} annotations have a mask, the others would be left out: add theirs, or take "
                "'segmentation' out of all to train boxes alone"
            )
            add("few masks", ERROR, text)
        if not with_masks and kept:
            add("no masks", NOTED, "no annotation has a segmentation: boxes alone can be trained and evaluated")
        encoded = sum(1 for a in kept if isinstance(a.get("segmentation"), dict) and not a["iscrowd"])
        if encoded:
            text = (
                f"{encoded} of the masks are run-length encoded, not counting crowds: the mapper has to make bitmasks"
            )
            add("masks as RLE", NOTED, text)


class _Item:
    """One annotation on its way through the checks."""

    __slots__ = ("_findings", "annotation", "changes", "image", "kept", "position")

    def __init__(self, annotation: Any, position: int, findings: list[CocoFinding]) -> None:
        self.annotation = annotation
        self.position = position
        self.image: dict[str, Any] | None = None
        self.kept = True
        self.changes: dict[str, Any] = {}
        self._findings = findings

    def note(self, kind: str, text: str) -> None:
        """It is kept."""
        self._add(kind, NOTED, text)

    def skip(self, kind: str, text: str) -> None:
        """It is left out."""
        self.kept = False
        self._add(kind, SKIPPED, text)

    def error(self, kind: str, text: str) -> None:
        """It is left out, and nothing can be trained."""
        self.kept = False
        self._add(kind, ERROR, text)

    def _add(self, kind: str, severity: str, text: str) -> None:
        entry = self.annotation if isinstance(self.annotation, dict) else {}
        id_, image_id = entry.get("id"), entry.get("image_id")
        name = f"annotation number {self.position} of the file" if id_ is None else f"annotation {id_!r:.20}"
        if image_id is not None:
            name += f" of image {image_id!r:.20}"
        if self.image is not None:
            name += f" ({self.image['file_name']})"
        self._findings.append(CocoFinding(kind, severity, f"{name}: {text}", id_, image_id))


def _polygons(annotation: Any) -> list[Any]:
    segmentation = annotation.get("segmentation") if isinstance(annotation, dict) else None
    return segmentation if isinstance(segmentation, list) else []


def _numbered(number: int, polygons: range, text: str) -> str:
    return f"polygon {number} of {len(polygons)}: {text}" if len(polygons) > 1 else text


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and math.isfinite(number)


def _leaves_image(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    left, top, right, bottom = box
    return min(left, top) < -_TOLERANCE or right > image["width"] + _TOLERANCE or bottom > image["height"] + _TOLERANCE


def _cut(box: Box, image: Mapping[str, Any]) -> Box:
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, image["width"]), min(bottom, image["height"])


def _bbox(box: Box) -> list[float]:
    """As COCO writes it: [x, y, width, height]."""
    left, top, right, bottom = box
    return [round(number, 3) for number in (left, top, right - left, bottom - top)]


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (sum(areas) - width * height)


def _corners(box: Box) -> str:
    left, top, right, bottom = box
    return f"({left:.5g}, {top:.5g}) to ({right:.5g}, {bottom:.5g})"


def _size(image: Mapping[str, Any]) -> str:
    return f"an image of {image['width']} x {image['height']}"
