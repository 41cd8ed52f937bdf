"""The check finds every planted fault, and the rest of the dataset can be used for training."""

from __future__ import annotations

import json
from collections.abc import Callable
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

WIDTH, HEIGHT = 60, 40
CLASSES = {3: "cat", 5: "dog", 9: "cow"}
SQUARE = [10, 10, 30, 10, 30, 25, 10, 25]


class Planted:
    """A dataset on disk, with 12 images and two valid squares in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[Any] = []
        self.annotations: list[Any] = []
        for id_ in range(1, 13):
            self.add_image(id_)
            self.add(id_)
            self.add(id_)
        self.categories: list[Any] = [{"id": id_, "name": name} for id_, name in CLASSES.items()]

    def add_image(self, id_: int, exif: int = 1, **changes: Any) -> None:
        (self.folder / "images").mkdir(exist_ok=True)
        pixels = np.random.default_rng(id_).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        tags = Image.Exif()
        tags[274] = exif
        Image.fromarray(pixels).save(self.folder / "images" / f"{id_}.jpg", exif=tags)
        self.images.append({"id": id_, "file_name": f"{id_}.jpg", "width": WIDTH, "height": HEIGHT, **changes})

    def add(self, image_id: int, **changes: Any) -> int:
        """Adds a valid annotation with changes and returns its id."""
        id_ = changes.get("id", len(self.annotations) + 1001)
        good = {"bbox": [10, 10, 20, 15], "segmentation": [SQUARE], "area": 300.0, "iscrowd": 0}
        self.annotations.append({"id": id_, "image_id": image_id, "category_id": 5, **good, **changes})
        return id_

    def check(self, **arguments: Any) -> CocoCheck:
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / "set.json").write_text(json.dumps(content))
        return check_coco(self.folder / "set.json", self.folder / "images", **arguments)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def train_on(check: CocoCheck, folder: Path) -> int:
    """Loads the cleaned annotations with pycocotools and detectron2's mapper; returns the number of objects."""
    path = write_own_coco(check, folder / "cleaned")
    coco = COCO(path)
    assert len(coco.imgs) == check.num_images and len(coco.anns) == check.num_annotations
    for annotation in coco.anns.values():
        assert not annotation.get("segmentation") or coco.annToMask(annotation).any()
    mapper = DatasetMapper(
        True,
        augmentations=[T.ResizeScale(1.0, 2.0, 64, 64), T.FixedSizeCrop((64, 64), pad=False)],
        image_format="RGB",
        use_instance_mask=check.masks != "none",
        instance_mask_format=check.masks if check.masks != "none" else "polygon",
    )
    np.random.seed(0)  # the crops are drawn from it
    instances = [mapper(record)["instances"] for record in load_coco_json(path, check.image_root, f"planted {folder}")]
    assert all(i.has("gt_masks") == (check.masks != "none") for i in instances if len(i))
    return sum(map(len, instances))


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


SQUARE_RLE = rle(np.pad(np.ones((15, 20)), ((10, 15), (10, 30))))
SQUARE_RUNS = {"size": [HEIGHT, WIDTH], "counts": [410, *[15, 25] * 19, 15, 1215]}
SKIPPED = [
    dict(bbox=[10, 10, 0, 15]),
    dict(bbox=[70, 10, 20, 15]),
    dict(bbox=[10, 10, 20]),
    dict(bbox=[10, 10, float("nan"), 15]),
    dict(bbox=[10, 10, 10**400, 15]),
    dict(bbox=["10", 10, 20, 15]),
    dict(bbox=[40, 30, 10, 8]),
    dict(bbox=[40, 30, 10, 8], segmentation=SQUARE_RLE),
    dict(bbox=[], segmentation=[[1, 1, 2]]),
    dict(segmentation=[]),
    dict(segmentation="here"),
    dict(segmentation=SQUARE),
    dict(segmentation=[[10, 10, 30, 25]]),
    dict(segmentation=[[10, 10, None, 10, 30, 25]]),
    dict(segmentation=[[10, 10, 30, 10, 30, 25, 30, 10]]),
    dict(segmentation=[[70, 10, 80, 10, 80, 25]]),
    dict(segmentation=[[10, 10, 1e9, 10, 30, 25]]),  # pycocotools crashes on it
    dict(segmentation=[[10, 10, 10**30, 10, 30, 25]]),
    dict(segmentation=rle(np.ones((WIDTH, HEIGHT)))),
    dict(segmentation=rle(np.zeros((HEIGHT, WIDTH)))),
    dict(segmentation={"size": [HEIGHT, WIDTH], "counts": [100, 100_000]}),
    dict(segmentation={"size": [HEIGHT, WIDTH], "counts": [-100, 2500]}),
    dict(segmentation={"size": [HEIGHT, WIDTH], "counts": [2**64, WIDTH * HEIGHT]}),
    dict(segmentation={"size": [HEIGHT, WIDTH], "counts": "~~~"}),
    dict(segmentation={"size": [HEIGHT, WIDTH], "counts": "\ud800"}),
    dict(segmentation={"size": [HEIGHT, WIDTH], "counts": SQUARE_RLE["counts"][:-1]}),
    dict(segmentation={"counts": [1, 2]}),
    dict(image_id=4711),
    dict(image_id=[1]),
    dict(category_id=77),
    dict(category_id="5"),
    dict(iscrowd="0"),
    dict(ignore=1),
]
# What is noted, and the keys that are fixed.
NOTED = [
    (dict(bbox=[10, 10, 55, 15], segmentation=[[10, 10, 60, 10, 60, 25, 10, 25]]), dict(bbox=[10, 10, 50, 15])),
    (dict(bbox=[-5, 10, 20, 45], segmentation=[[0, 10, 15, 10, 15, 40, 0, 40]]), dict(bbox=[0, 10, 15, 30])),
    (dict(bbox=None), dict(bbox=[10, 10, 20, 15])),
    (dict(bbox=[], segmentation=SQUARE_RLE), dict(bbox=[10, 10, 20, 15])),
    (dict(segmentation=[[1, 1, 2, 2], SQUARE, [70, 10, 80, 10, 80, 25]]), dict(segmentation=[SQUARE])),
    (dict(segmentation=[[10, 10, 30, 25, 30, 10, 10, 25]]), {}),
    (dict(bbox=[5, 5, 50, 30]), {}),
    (dict(area=None), dict(area=300)),
    (dict(area=0), dict(area=300)),
    (dict(area=-1, segmentation=SQUARE_RUNS), dict(area=300)),
    (dict(area=float("nan")), dict(area=300)),
    (dict(iscrowd=None), dict(iscrowd=0)),
    (dict(id=0), {}),
]
# Within the tolerance, of another type, or a polygon that only touches itself: not reported.
GOOD = [
    dict(bbox=[40, 10, 20.9, 15], segmentation=[[40, 10, 60.9, 10, 60.9, 25, 40, 25]]),
    dict(iscrowd=True, segmentation=SQUARE_RLE),
    dict(segmentation=[[10, 10, 30, 10, 30, 25, 20, 10, 10, 25]]),
]


def test_a_valid_dataset_has_no_findings(planted: Planted, tmp_path: Path) -> None:
    check = planted.check(thing_classes=CLASSES)
    assert check.findings == [] and check.masks == "polygon"
    assert (check.num_images, check.num_annotations, check.num_annotated_images) == (12, 24, 12)
    assert check.categories == CLASSES and list(check.categories) == [3, 5, 9]
    for key in ("images", "annotations", "categories"):
        assert check.cleaned[key] == json.loads((tmp_path / "set.json").read_text())[key]
    assert train_on(check, tmp_path) > 20


def test_faults_of_annotations(planted: Planted, tmp_path: Path) -> None:
    image_ids = iter(range(1, 1000))
    skipped = [planted.add(**{"image_id": next(image_ids) % 12 + 1, **changes}) for changes in SKIPPED]
    noted = {planted.add(next(image_ids) % 12 + 1, **changes): fixed for changes, fixed in NOTED}
    good = [planted.add(next(image_ids) % 12 + 1, **changes) for changes in GOOD]
    planted.annotations += [planted.annotations[0], {**planted.annotations[1], "category_id": 3}, "no dict"]
    check = planted.check()

    by_severity = {severity: set() for severity in ("error", "skipped", "noted")}
    for finding in check.findings:
        by_severity[finding.severity].add(finding.annotation_id)
        assert finding.annotation_id is None or f"annotation {finding.annotation_id}" in finding.text
    assert by_severity["error"] == {1002}, "two annotations with one id"
    assert by_severity["skipped"] == {*skipped, 1001, None}, "1001 is listed twice, None has no id"
    counted = {
        id_ for finding in check.notes if finding.annotation_id is None for id_ in noted if str(id_) in finding.text
    }
    assert by_severity["noted"] | counted - {None} == {*noted, None}
    assert not by_severity["noted"].intersection(good)

    usable = {annotation["id"]: annotation for annotation in check.cleaned["annotations"]}
    assert set(usable) == {annotation["id"] for annotation in planted.annotations[:-3]} - set(skipped)
    for id_, fixed in noted.items():
        assert usable[id_].items() >= {"category_id": 5, **fixed}.items()
    assert usable[good[0]] == next(a for a in planted.annotations[:-3] if a["id"] == good[0])
    assert usable[good[1]]["iscrowd"] == 1
    assert check.masks == "bitmask" and train_on(check, tmp_path) > 25
    page = check.page(all_in="all.txt").splitlines()
    assert len(page) <= 60 and max(map(len, page)) <= 200 and "all.txt" in page[-1]
    assert all(any(finding.kind in line for line in page) for finding in check.findings)
    check.write_findings(tmp_path / "all.txt")
    assert len((tmp_path / "all.txt").read_text().splitlines()) == len(check.findings)


def test_all_faults_of_an_annotation_are_reported(planted: Planted) -> None:
    faults = {"category_id": 77, "iscrowd": "0", "bbox": [10, 10, 0, 15], "segmentation": [[1, 1, 2]], "ignore": 1}
    ids = planted.add(1, **faults), planted.add(4711, category_id=77)
    skipped = planted.check().skipped
    assert [f.annotation_id for f in skipped] == [ids[0]] * 5 + [ids[1]] * 2
    assert len({f.kind for f in skipped}) == 6


def test_faults_of_images(planted: Planted, tmp_path: Path) -> None:
    skipped = {
        20: dict(file_name="gone.jpg"),
        21: {},  # incomplete
        22: {},  # not an image
        23: dict(width=WIDTH + 1),
        24: dict(exif=6),
        25: dict(file_name=None),
        26: dict(file_name="\ud800"),  # cannot be printed
    }
    noted = {
        30: dict(width=None),
        31: dict(height=-1),
        32: dict(file_name="./1.jpg"),
        33: dict(exif=3),
        34: {},  # no annotation
        35: {},  # no usable annotation
    }
    for id_, changes in {**skipped, **noted, 40: dict(exif=8, width=HEIGHT, height=WIDTH)}.items():
        planted.add_image(id_, **changes)
        if id_ != 34:
            planted.add(id_, segmentation=[[1, 1, 2]] if id_ == 35 else [SQUARE])
    path = tmp_path / "images/21.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "images/22.jpg").write_text("text")
    planted.images += [planted.images[0], {**planted.images[1], "file_name": "3.jpg"}]
    check = planted.check()
    found = {(f.severity, f.image_id) for f in check.findings if f.annotation_id is None}
    expected = {("skipped", id_) for id_ in [*skipped, 1]} | {("noted", id_) for id_ in noted} | {("error", 2)}
    assert found == expected
    assert all(f"image {finding.image_id}" in finding.text for finding in check.findings)
    check.write_findings(tmp_path / "all.txt")
    assert {f.image_id for f in check.skipped if f.annotation_id is not None} == {*skipped, 35}
    assert {image["id"]: (image["width"], image["height"]) for image in check.cleaned["images"]}[30] == (WIDTH, HEIGHT)
    assert {image["id"] for image in check.cleaned["images"]} == {*range(1, 13), *noted, 40}


def test_images_are_opened_only_if_requested_or_needed(planted: Planted, tmp_path: Path) -> None:
    planted.images[0]["width"] = WIDTH + 1
    planted.images[1]["height"] = 10**30
    (tmp_path / "images/3.jpg").write_text("no image")
    (tmp_path / "images/4.jpg").unlink()
    assert {f.image_id for f in planted.check(read_images=False).findings if f.annotation_id is None} == {2, 4}
    assert {f.image_id for f in planted.check().findings if f.annotation_id is None} == {1, 2, 3, 4}


def test_decoding_finds_damage_in_the_middle(planted: Planted, tmp_path: Path) -> None:
    path = tmp_path / "images/1.png"
    Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB").save(path)  # noise would not be compressed
    planted.images[0]["file_name"] = "1.png"
    assert planted.check(decode_images=True).findings == []
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 20]) + data[middle + 20 :])
    assert planted.check().findings == []
    assert {f.image_id for f in planted.check(decode_images=True).skipped} == {1}


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_sizes_of_every_format_are_those_that_training_reads(
    planted: Planted, tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / "images" / f"other.{suffix}"
    tags = Image.Exif()
    tags[274] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path, exif=tags)
    height, width = read_image(str(path), format="RGB").shape[:2]
    planted.images[0] |= {"file_name": path.name, "width": width, "height": height}
    assert planted.check().skipped == []
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert {f.image_id for f in planted.check().skipped} == {1}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda a: {**a, "bbox": [20, 20, 50, 35]}, "boxes of another format"),
        (lambda a: {**a, "bbox": [0.1, 0.2, 0.3, 0.4]}, "boxes of another format"),
        (lambda a: {**a, "iscrowd": 1}, "nothing to train on"),
        (lambda a: {**a, "category_id": 1}, "nothing to train on"),
        (lambda a: {**a, "segmentation": [] if a["id"] < 1020 else [SQUARE]}, "few masks"),
        (lambda a: {**a, "category_id": (2, 4, 8)[a["id"] % 3]}, "category ids off by one"),
        (lambda a: {**a, "category_id": (4, 6, 10)[a["id"] % 3]}, "category ids off by one"),
    ],
)
def test_systematic_faults_are_errors(planted: Planted, change: Callable, kind: str) -> None:
    planted.annotations = [change(annotation) for annotation in planted.annotations]
    assert kind in {finding.kind for finding in planted.check().errors}


def test_keys_that_all_annotations_lack_are_reported_once(planted: Planted, tmp_path: Path) -> None:
    for annotation in planted.annotations:
        for key in ("area", "iscrowd", "segmentation"):
            del annotation[key]
    check = planted.check()
    assert [(f.severity, f.kind) for f in check.findings] == [("noted", "no area"), ("noted", "no iscrowd")]
    assert check.masks == "none" and all(a["area"] == 300 for a in check.cleaned["annotations"])
    assert train_on(check, tmp_path) > 20


def test_categories(planted: Planted) -> None:
    assert planted.check(thing_classes=dict(reversed(CLASSES.items()))).errors == []
    texts = [finding.text for finding in planted.check(thing_classes={3: "cat", 5: "Dog", 8: "cow"}).errors]
    for text, parts in zip(texts, [("5", "'dog'", "'Dog'"), ("8", "'cow'"), ("9", "'cow'")], strict=True):
        assert all(part in text for part in parts)
    # Of categories with one name, the one that annotations have counts, or else the expected one.
    planted.categories += [{"id": 0, "name": "dog"}, {"id": 10, "name": "cow"}, planted.categories[0]]
    assert planted.check().categories == CLASSES and len(planted.check().skipped) == 3
    assert planted.check(thing_classes={3: "cat", 5: "dog", 10: "cow"}).categories == {3: "cat", 5: "dog", 10: "cow"}
    planted.add(1, category_id=0)
    planted.categories += [{"id": 5, "name": "horse"}, {"id": "x"}]
    kinds = {finding.kind for finding in planted.check().errors}
    assert kinds == {"duplicate category name", "duplicate category id", "invalid category"}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"images": [', ["12 bytes"]),
        (b"[" * 100_000, ["100000 bytes"]),
        (b"", ["0 bytes"]),
        (b"[]", ["a list", "images", "annotations", "categories"]),
        (b'{"images": [1], "categories": [1]}', ["annotations"]),
        (b'{"images": [], "categories": [1], "annotations": []}', ["images"]),
        (None, ["missing"]),
    ],
)
def test_files_in_another_format(tmp_path: Path, content: bytes | None, parts: list[str]) -> None:
    path = tmp_path / "set.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        check_coco(path, tmp_path)
    assert all(part in str(caught.value) for part in ("set.json", *parts))


def test_folders_without_the_images(planted: Planted, tmp_path: Path) -> None:
    planted.check()
    with pytest.raises(DatasetError, match="nowhere"):
        check_coco(tmp_path / "set.json", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"12 images.*1\.jpg"):
        check_coco(tmp_path / "set.json", tmp_path)
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "images").rename(tmp_path / "deep/images")
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")
    assert check_coco(tmp_path / "set.json", f"{tmp_path}/link/../images").num_images == 12


def test_rle_of_pycocotools_is_valid(planted: Planted) -> None:
    rng = np.random.default_rng(0)
    planted.annotations.clear()
    areas = []
    for _ in range(200):
        mask = rng.random((HEIGHT, WIDTH)) < rng.choice([0.01, 0.5, 0.99])
        areas.append(mask.sum())
        planted.add(1, segmentation=rle(mask), bbox=None, area=None)
    assert [annotation["area"] for annotation in planted.check().cleaned["annotations"]] == areas


@pytest.mark.parametrize(("split", "num_crossing"), [("train", 2), ("val", 5)])
def test_real_coco_loses_nothing(shared: Path, split: str, num_crossing: int) -> None:
    root = shared / "datasets" / "coco"
    check = check_coco(root / f"annotations/instances_{split}2017.json", root / f"{split}2017")
    assert check.errors == check.skipped == []
    kinds = [finding.kind for finding in check.notes]
    assert set(kinds) <= {"polygon that crosses itself", "image without annotations"}
    assert kinds.count("polygon that crosses itself") == num_crossing
    assert check.num_annotations == check.annotations_listed and len(check.categories) == 80
