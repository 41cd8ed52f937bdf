"""The check of a data set: every planted fault is named with its id, and what is left trains."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools.coco import COCO

from lift_det.data import CocoCheck, DatasetError, check_coco, write_own_coco
from lift_det.data.coco_masks import _decode_counts, polygon_facts, rle_fault

WIDTH, HEIGHT = 60, 40
CLASSES = {3: "cat", 5: "dog", 9: "cow"}


class Planted:
    """A data set on disk with 12 images of two good squares each; annotations can be added to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = [self.image(id_) for id_ in range(1, 13)]
        self.annotations: list[Any] = []
        for image in self.images:
            self.good(image["id"])
            self.good(image["id"])
        self.categories = [{"id": id_, "name": name} for id_, name in CLASSES.items()]

    def image(self, id_: int, size: tuple[int, int] = (WIDTH, HEIGHT), exif: int = 1) -> dict[str, Any]:
        (self.folder / "images").mkdir(exist_ok=True)
        pixels = np.random.default_rng(id_).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        tags = Image.Exif()
        tags[274] = exif
        Image.fromarray(pixels).save(self.folder / "images" / f"{id_}.jpg", exif=tags)
        return {"id": id_, "file_name": f"{id_}.jpg", "width": size[0], "height": size[1]}

    def good(self, image_id: int, **changes: Any) -> int:
        """Adds an annotation that differs from a good one by the changes; None takes a key off. Returns its id."""
        square = {"bbox": [10, 10, 20, 15], "segmentation": [[10, 10, 30, 10, 30, 25, 10, 25]], "area": 300.0}
        id_ = len(self.annotations) + 1001
        entry = {"id": id_, "image_id": image_id, "category_id": 5, "iscrowd": 0, **square, **changes}
        self.annotations.append({key: value for key, value in entry.items() if value is not None})
        return id_

    def check(self, **arguments: Any) -> CocoCheck:
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / "set.json").write_text(json.dumps(content))
        return check_coco(self.folder / "set.json", self.folder / "images", **arguments)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def found(check: CocoCheck) -> set[tuple[str, str, Any]]:
    """Severity, kind, and id of the annotation or image."""
    return {(f.severity, f.kind, f.image_id if f.annotation_id is None else f.annotation_id) for f in check.findings}


def train_on(check: CocoCheck, folder: Path) -> int:
    """What is left goes through pycocotools and detectron2's own mapper; returns the objects that training gets."""
    path = write_own_coco(check, folder / "cleaned")
    coco = COCO(path)
    assert len(coco.imgs) == check.num_images and len(coco.anns) == check.num_annotations
    for annotation in coco.anns.values():
        if annotation.get("segmentation"):
            assert coco.annToMask(annotation).any()
    mapper = DatasetMapper(
        True,
        augmentations=[T.ResizeScale(1.0, 2.0, 64, 64), T.FixedSizeCrop((64, 64), pad=False)],
        image_format="RGB",
        use_instance_mask=check.masks != "none",
        instance_mask_format=check.masks if check.masks != "none" else "polygon",
    )
    np.random.seed(0)  # the crops are drawn from it
    count = 0
    for record in load_coco_json(path, check.image_root, f"planted {folder}"):
        instances = mapper(record)["instances"]
        if len(instances):
            assert instances.has("gt_masks") == (check.masks != "none")
        count += len(instances)
    return count


def rle(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return {"size": encoded["size"], "counts": _decode_counts(encoded["counts"].decode()).tolist()}


def square_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:25, 10:30] = True
    return mask


def test_a_good_set_has_no_findings(planted: Planted, tmp_path: Path) -> None:
    check = planted.check(thing_classes=CLASSES)
    assert check.findings == [] and check.masks == "polygon"
    assert (check.num_images, check.num_annotations, check.num_annotated_images) == (12, 24, 12)
    assert check.categories == CLASSES and list(check.categories) == [3, 5, 9]
    assert "Nothing is wrong" in check.page()
    for key in ("images", "annotations", "categories"):
        assert check.cleaned[key] == json.loads((tmp_path / "set.json").read_text())[key]
    assert train_on(check, tmp_path) > 20


def test_every_planted_fault_is_named_and_the_rest_trains(planted: Planted, tmp_path: Path) -> None:
    """All at once; each on an annotation or image of its own."""
    bow_tie = [[10, 10, 30, 25, 30, 10, 10, 25]]
    square = [10, 10, 30, 10, 30, 25, 10, 25]
    wrong_size = rle(np.ones((WIDTH, HEIGHT)))
    too_long = {"size": [HEIGHT, WIDTH], "counts": [100, 100_000]}
    garbled = {"size": [HEIGHT, WIDTH], "counts": "~~~"}
    skipped = {
        "box without a size": [dict(bbox=[10, 10, 0, 15]), dict(bbox=[10, 10, 20, -4])],
        "box outside the image": [dict(bbox=[70, 10, 20, 15])],
        "box of other than four finite numbers": [
            dict(bbox=[10, 10, 20]),
            dict(bbox=[10, 10, float("nan"), 15]),
            dict(bbox=["10", 10, 20, 15]),
            dict(bbox="10 10 20 15"),
        ],
        "no box": [dict(bbox=[], segmentation=[[1, 1, 2]])],
        "no segmentation": [dict(segmentation=[]), dict(segmentation=None)],
        "polygon with fewer than 3 points": [dict(segmentation=[[10, 10, 30, 25]])],
        "polygon with an odd count of coordinates": [dict(segmentation=[[10, 10, 30, 10, 30, 25, 10]])],
        "polygon of zero area": [dict(segmentation=[[10, 10, 20, 10, 30, 10, 15, 10]])],
        "polygon outside the image": [dict(segmentation=[[70, 10, 80, 10, 80, 25]])],
        "not a polygon": [dict(segmentation=square), dict(segmentation=[[10, 10, None, 10, 30, 25]])],
        "mask apart from its box": [
            dict(bbox=[40, 30, 10, 8]),
            dict(bbox=[40, 30, 10, 8], segmentation=rle(square_mask())),
        ],
        "RLE that cannot be used": [
            dict(segmentation=wrong_size),
            dict(segmentation=too_long),
            dict(segmentation=garbled),
            dict(segmentation=rle(square_mask() & False)),
            dict(segmentation={"counts": [1, 2]}),
        ],
        "segmentation of the wrong type": [dict(segmentation="here")],
        "unknown image": [dict(image_id=4711)],
        "unknown category": [dict(category_id=77)],
        "annotation entry that cannot be read": [dict(image_id=None), dict(category_id="5"), dict(image_id=[1])],
        "iscrowd of the wrong type": [dict(iscrowd="0")],
        "ignore": [dict(ignore=1)],
    }
    noted = {
        "box that leaves the image": [dict(bbox=[10, 10, 55, 15], segmentation=[[10, 10, 60, 10, 60, 25, 10, 25]])],
        "no box": [dict(bbox=None), dict(bbox=[])],
        "polygon with fewer than 3 points": [dict(segmentation=[[1, 1, 2, 2], square])],
        "polygon that crosses itself": [dict(segmentation=bow_tie)],
        "polygon that leaves the image": [dict(bbox=[10, 10, 50, 15], segmentation=[[10, 10, 70, 10, 70, 25, 10, 25]])],
        "mask that fits its box badly": [dict(bbox=[5, 5, 50, 30])],
        "no area": [dict(area=None), dict(area=0), dict(area=float("nan"))],
        "no iscrowd": [dict(iscrowd=None)],
        "annotation id 0": [dict(id=0)],
    }
    expected = set()
    image_ids = iter(range(1, 1000))
    for severity, kinds in (("skipped", skipped), ("noted", noted)):
        for kind, entries in kinds.items():
            for changes in entries:
                id_ = planted.good(**{"image_id": next(image_ids) % 12 + 1, **changes})
                expected.add((severity, kind, changes.get("id", id_)))
    planted.annotations += [
        dict(planted.annotations[0]),
        {**planted.annotations[1], "bbox": [10, 10, 20, 14]},
        "no dict",
    ]
    expected |= {("skipped", "duplicate annotation", 1001), ("error", "duplicate annotation id", 1002)}
    expected.add(("skipped", "annotation entry that cannot be read", None))

    def add_image(*kinds: tuple[str, str], id_: int, annotated: bool = True, **changes: Any) -> None:
        """An image with a fault; its annotation goes with it if it is left out."""
        image = {**planted.image(id_), **changes}
        planted.images.append({key: value for key, value in image.items() if value is not None})
        expected.update((severity, kind, id_) for severity, kind in kinds)
        if annotated:
            annotation = planted.good(id_)
            if any(severity == "skipped" for severity, _ in kinds):
                expected.add(("skipped", "annotation of a skipped image", annotation))

    add_image(("skipped", "image file missing"), id_=20, file_name="gone.jpg")
    add_image(("skipped", "unreadable image"), id_=21)
    path = tmp_path / "images/21.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    add_image(("skipped", "unreadable image"), id_=22)
    (tmp_path / "images/22.jpg").write_text("text")
    add_image(("skipped", "image size"), id_=23, width=61)
    add_image(("noted", "image without a usable size"), id_=24, width=None)
    add_image(("noted", "image without a usable size"), id_=25, height=-1)
    add_image(("noted", "image without annotations"), id_=26, annotated=False)
    add_image(("noted", "duplicate file name"), id_=27, file_name="./1.jpg")
    add_image(("skipped", "image size (turned by EXIF)"), id_=28)
    planted.image(28, exif=6)
    add_image(("noted", "EXIF orientation"), id_=29)
    planted.image(29, exif=3)
    add_image(id_=30, width=HEIGHT, height=WIDTH)  # annotated as it is turned
    planted.image(30, exif=8)
    add_image(("skipped", "image entry that cannot be read"), id_=31, file_name=None)
    add_image(("noted", "image that lost all annotations"), id_=32, annotated=False)
    expected.add(("skipped", "box without a size", planted.good(32, bbox=[10, 10, 0, 0])))
    planted.images += [dict(planted.images[0]), {**planted.images[1], "file_name": "3.jpg"}]
    expected |= {("skipped", "duplicate image", 1), ("error", "duplicate image id", 2)}

    planted.categories += [
        dict(planted.categories[0]),
        {"id": 5, "name": "horse"},
        {"id": 0, "name": "cat"},
        {"id": "x"},
    ]
    check = planted.check()
    general = {finding for finding in found(check) if finding[2] is None}
    assert general == {
        ("skipped", "annotation entry that cannot be read", None),
        ("skipped", "duplicate category", None),
        ("error", "duplicate category id", None),
        ("skipped", "duplicate category name", None),
        ("error", "category without an id or a name", None),
    }
    faults = {item for item in found(check) if item[2] is not None}
    # an annotation without a usable mask or image may be said to have more than one fault
    assert expected - {("skipped", "annotation entry that cannot be read", None)} <= faults
    assert {item[2] for item in faults} == {item[2] for item in expected if item[2] is not None}
    assert len(faults - expected) < 5, faults - expected
    for finding in check.findings:
        if finding.annotation_id is not None:
            assert f"annotation {finding.annotation_id}" in finding.text
        elif finding.image_id is not None:
            assert f"image {finding.image_id}" in finding.text

    page = check.page()
    assert len(page.splitlines()) <= 60 and max(map(len, page.splitlines())) <= 200
    for _, kind, _ in expected:
        assert kind in page
    left = {annotation["id"] for annotation in check.cleaned["annotations"]}
    assert left.isdisjoint(f.annotation_id for f in check.skipped if f.kind != "duplicate annotation")
    assert len(left) >= 24 + len([entry for entries in noted.values() for entry in entries])
    assert check.masks == "polygon" and train_on(check, tmp_path) > 30


def test_what_is_mended(planted: Planted, tmp_path: Path) -> None:
    square = [10, 10, 30, 10, 30, 25, 10, 25]
    planted.annotations.clear()
    ids = [
        planted.good(1, bbox=[-5, 10, 20, 45], segmentation=[[0, 10, 15, 10, 15, 40, 0, 40]]),
        planted.good(2, bbox=None, area=None, iscrowd=None),
        planted.good(3, segmentation=[[1, 1, 2, 2], square, [70, 10, 80, 10, 80, 25]]),
        planted.good(4, bbox=None, segmentation=rle(square_mask())),
        planted.good(5, iscrowd=True, segmentation=rle(square_mask(), compressed=False), area=-1),
        planted.good(6, bbox=[40, 10, 20.9, 15], segmentation=[[40, 10, 60.9, 10, 60.9, 25, 40, 25]]),
    ]
    check = planted.check()
    assert check.skipped == [] and check.errors == []
    mended = {annotation["id"]: annotation for annotation in check.cleaned["annotations"]}
    assert mended[ids[0]]["bbox"] == [0, 10, 15, 30]
    assert mended[ids[1]] == {**planted.annotations[1], "bbox": [10, 10, 20, 15], "area": 300.0, "iscrowd": 0}
    assert mended[ids[2]]["segmentation"] == [square]
    assert mended[ids[3]]["bbox"] == [10, 10, 20, 15]
    assert mended[ids[4]]["iscrowd"] == 1 and mended[ids[4]]["area"] == 300
    # within a pixel of the image nothing is changed or said
    assert mended[ids[5]] == planted.annotations[5] and ids[5] not in {f.annotation_id for f in check.findings}
    assert check.masks == "bitmask" and check.num_annotated_images == 5
    assert any(f.kind == "masks as RLE" and f.text.startswith("1 of the masks") for f in check.notes)
    assert train_on(check, tmp_path) >= 4


def test_what_all_annotations_lack_is_said_once(planted: Planted, tmp_path: Path) -> None:
    for annotation in planted.annotations:
        for key in ("area", "iscrowd", "segmentation"):
            del annotation[key]
    check = planted.check()
    assert [(f.severity, f.kind) for f in check.findings] == [
        ("noted", "no area"),
        ("noted", "no iscrowd"),
        ("noted", "no masks"),
    ]
    assert check.masks == "none" and all(a["area"] == 300 for a in check.cleaned["annotations"])
    assert train_on(check, tmp_path) > 20


def test_systematic_faults_are_errors(planted: Planted) -> None:
    def errors(**changes: Any) -> list[str]:
        other = copy.deepcopy(planted)
        for key, function in changes.items():
            other.annotations = [{**a, key: function(a[key])} for a in other.annotations]
        return [finding.kind for finding in other.check().errors]

    assert errors() == []
    assert "boxes of another format" in errors(bbox=lambda box: [20, 20, 50, 35])
    assert "boxes of another format" in errors(bbox=lambda box: [0.1, 0.2, 0.3, 0.4])
    assert "nothing to train on" in errors(iscrowd=lambda _: 1)
    assert "nothing to train on" in errors(category_id=lambda _: 1)
    planted.categories = [{"id": id_, "name": f"class {id_}"} for id_ in (1, 2, 3)]
    numbers = [index % 3 for index in range(len(planted.annotations))]
    planted.annotations = [{**a, "category_id": number} for a, number in zip(planted.annotations, numbers, strict=True)]
    (shifted,) = planted.check().errors
    assert shifted.kind == "category ids one off" and "one less" in shifted.text
    planted.annotations = [{**a, "category_id": 2} for a in planted.annotations]
    for annotation in planted.annotations[:20]:
        annotation["segmentation"] = []
    assert [finding.kind for finding in planted.check().errors] == ["few masks"]


def test_categories_are_compared_with_those_of_training(planted: Planted) -> None:
    assert planted.check(thing_classes=dict(reversed(CLASSES.items()))).errors == []
    errors = planted.check(thing_classes={3: "cat", 5: "Dog", 8: "cow"}).errors
    assert [finding.text for finding in errors] == [
        "category 5 is 'dog' here, expected 'Dog'",
        "category 8 is missing here, expected 'cow'",
        "category 9 is 'cow' here, expected no category of that id",
    ]
    # twice a name: the one that annotations have, or else the one that training has
    planted.categories += [{"id": 0, "name": "dog"}, {"id": 10, "name": "cow"}]
    assert planted.check().categories == CLASSES
    assert planted.check(thing_classes={3: "cat", 5: "dog", 10: "cow"}).categories == {3: "cat", 5: "dog", 10: "cow"}
    planted.good(1, category_id=0)
    assert [finding.kind for finding in planted.check().errors] == ["duplicate category name"]


def test_page_stays_a_page_and_the_rest_can_be_written(planted: Planted, tmp_path: Path) -> None:
    ids = [planted.good(1, bbox=[10, 10, 0, 0]) for _ in range(500)]
    check = planted.check()
    page = check.page(all_in="all.txt")
    assert len(page.splitlines()) < 20
    assert "box without a size (500)" in page and "and 494 more" in page and "All 500 findings: in all.txt" in page
    assert f"annotation {ids[0]} of image 1 (1.jpg): the box" in page
    check.write_findings(tmp_path / "all.txt")
    lines = (tmp_path / "all.txt").read_text().splitlines()
    assert len(lines) == 500 and all(f"annotation {id_} of" in line for id_, line in zip(ids, lines, strict=True))
    check.write_findings(tmp_path / "all.json")
    assert [finding["annotation_id"] for finding in json.loads((tmp_path / "all.json").read_text())] == ids


def test_images_are_opened_only_where_asked_or_needed(planted: Planted, tmp_path: Path) -> None:
    planted.images[0]["width"] = 61  # wrong
    del planted.images[1]["height"]
    (tmp_path / "images/3.jpg").write_text("no image")
    (tmp_path / "images/4.jpg").unlink()
    images = {f.image_id: f.kind for f in planted.check(read_images=False).findings if f.annotation_id is None}
    assert images == {2: "image without a usable size", 4: "image file missing"}
    assert {f.image_id for f in planted.check().findings if f.annotation_id is None} == {1, 2, 3, 4}


def test_decoding_finds_damage_in_the_middle(planted: Planted, tmp_path: Path) -> None:
    path = tmp_path / "images/1.png"
    Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB").save(
        path
    )  # noise would be stored as it is, and pass
    planted.images[0]["file_name"] = "1.png"
    assert planted.check(decode_images=True).findings == []
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 20]) + data[middle + 20 :])
    assert planted.check().findings == []
    assert ("skipped", "unreadable image", 1) in found(planted.check(decode_images=True))


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_every_format_has_the_size_that_training_reads_and_may_not_be_cut_off(
    planted: Planted, tmp_path: Path, suffix: str, orientation: int
) -> None:
    name = f"other.{suffix}"
    path = tmp_path / "images" / name
    tags = Image.Exif()
    tags[274] = orientation
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=tags)
    height, width = read_image(str(path), format="RGB").shape[:2]
    planted.images[0] |= {"file_name": name, "width": width, "height": height}
    assert planted.check().skipped == []
    path.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    assert ("skipped", "unreadable image", 1) in found(planted.check())


def test_files_that_are_no_data_set(planted: Planted, tmp_path: Path) -> None:
    planted.check()
    json_file, images = tmp_path / "set.json", tmp_path / "images"
    whole = json_file.read_bytes()
    for content, message in (
        (whole[:-50], "not whole JSON"),
        (b"", r"is empty \(0 bytes\)"),
        (b"[]", "not in COCO's format.*found a list"),
        (b'{"images": [1], "categories": [1]}', "annotations is missing"),
        (b'{"images": [], "categories": [1], "annotations": []}', "lists no images"),
    ):
        json_file.write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            check_coco(json_file, images)
    json_file.write_bytes(whole)
    with pytest.raises(DatasetError, match="no folder"):
        check_coco(json_file, tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="None of the 12 images is there; the first would be .*1.jpg"):
        check_coco(json_file, tmp_path)
    json_file.unlink()
    with pytest.raises(DatasetError, match="is missing"):
        check_coco(json_file, images)


def test_rle_is_read_as_pycocotools_writes_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(1, 90, 2))
        mask = rng.random((height, width)) < rng.choice([0.01, 0.5, 0.99])
        mask[0, 0] |= not mask.any()
        encoded = rle(mask)
        runs = _decode_counts(encoded["counts"])
        values = np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape, order="F")
        np.testing.assert_array_equal(values, mask)
        assert rle_fault(encoded, width, height) == ""
        assert rle_fault(rle(mask, compressed=False), width, height) == ""
        assert "the image's" in rle_fault(encoded, width + 1, height)
        cut = {**encoded, "counts": encoded["counts"][:-1]}
        assert rle_fault(cut, width, height) != ""


def test_polygons_are_measured_together_as_alone() -> None:
    rng = np.random.default_rng(0)
    polygons = [rng.uniform(0, 50, 2 * int(n)).tolist() for n in rng.integers(1, 9, 300)]
    polygons += [[0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0], "x", [[1, 2], [3, 4]], [1, 2, 3, 4, 5, float("inf")], []]
    together = polygon_facts(polygons)
    assert 50 < len(together.crossings) < 250
    for index, polygon in enumerate(polygons):
        alone = polygon_facts([polygon])
        assert together.faults[index] == alone.faults[0]
        np.testing.assert_array_equal(together.bounds[index], alone.bounds[0])
        assert together.crossings.get(index) == alone.crossings.get(0)
    assert [fault is not None for fault in together.faults[-6:]] == [True] * 6
    # a bow tie of two equal halves, of which a crop keeps one; one that touches itself in a point crosses nothing
    assert "50% of it is lost" in polygon_facts([[0, 0, 10, 10, 10, 0, 0, 10]]).crossings[0]
    assert polygon_facts([[0, 0, 4, 0, 4, 4, 2, 0, 0, 4]]).crossings == {}


@pytest.mark.parametrize(("split", "crossing"), [("train", 2), ("val", 5)])
def test_real_coco_loses_nothing(shared: Path, tmp_path: Path, split: str, crossing: int) -> None:
    root = shared / "datasets" / "coco"
    check = check_coco(root / f"annotations/instances_{split}2017.json", root / f"{split}2017")
    assert check.errors == check.skipped == []
    kinds = [finding.kind for finding in check.notes]
    assert set(kinds) <= {"polygon that crosses itself", "image without annotations"}
    assert kinds.count("polygon that crosses itself") == crossing
    assert check.num_annotations == check.annotations_listed and len(check.categories) == 80
