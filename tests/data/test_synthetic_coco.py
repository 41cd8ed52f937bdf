"""The drawn data set: exact polygons, determinism, and files that are whole or drawn again."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from lift_det.data import synthetic_coco, write_synthetic_coco
from lift_det.data.polygons import mask_to_polygons
from lift_det.data.shapes import CLASS_NAMES, coverage, outline
from lift_det.data.synthetic_coco import draw_synthetic_image


def rasterise(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)


def read(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


@pytest.mark.parametrize("size", [64, 128, 200])
def test_polygons_give_the_drawn_masks_back_exactly(size: int) -> None:
    count = 0
    for index in range(60):
        _, objects = draw_synthetic_image("train", index, image_size=size)
        assert objects
        for item in objects:
            np.testing.assert_array_equal(rasterise(item.polygons, size, size), item.mask)
            count += 1
    assert count > 120


def test_polygons_of_random_blobs_are_exact_and_holes_are_refused() -> None:
    rng = np.random.default_rng(0)
    exact = refused = 0
    for _ in range(300):
        noise = cv2.GaussianBlur(rng.random((23, 31)).astype(np.float32), (0, 0), 1.5)
        mask = noise > np.quantile(noise, 0.75)
        polygons = mask_to_polygons(mask)
        background = (~np.pad(mask, 1)).astype(np.uint8)
        # The one part outside is the ground around; any other part of the background is a hole.
        has_hole = cv2.connectedComponents(background, connectivity=4)[0] - 1 > 1
        assert (polygons is None) == has_hole
        if polygons is None:
            refused += 1
        else:
            np.testing.assert_array_equal(rasterise(polygons, *mask.shape), mask)
            exact += 1
    assert exact > 50 and refused > 5


def test_one_pixel_and_an_empty_mask() -> None:
    mask = np.zeros((5, 6), bool)
    assert mask_to_polygons(mask) == []
    mask[2, 3] = True
    (polygon,) = mask_to_polygons(mask)
    assert sorted(zip(polygon[::2], polygon[1::2], strict=True)) == [(3, 2), (3, 3), (4, 2), (4, 3)]


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_coverage_measures_the_area_of_the_outline(class_name: str) -> None:
    points = outline(class_name, diameter=40, angle=0.4, stretch=0.9) + (50.3, 47.8)
    alpha, (left, top) = coverage(points)
    x, y = points.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    # cv2.fillPoly draws the border too, an eighth of a pixel on four subpixels, along a perimeter of 100 to 190.
    assert area - 5 < alpha.sum() < area + 30
    assert abs(left + (alpha.sum(axis=0) * (np.arange(alpha.shape[1]) + 0.5)).sum() / alpha.sum() - 50.3) < 0.15
    assert abs(top + (alpha.sum(axis=1) * (np.arange(alpha.shape[0]) + 0.5)).sum() / alpha.sum() - 47.8) < 0.15


def test_objects_are_visible_apart_and_of_all_sizes_and_classes() -> None:
    widths, classes, counts = [], [], []
    for index in range(150):
        _, objects = draw_synthetic_image("val", index)
        counts.append(len(objects))
        assert np.sum([item.mask for item in objects], axis=0).max() == 1, "visible parts must not overlap"
        for item in objects:
            classes.append(item.category_id)
            widths.append(item.mask.any(axis=0).sum() / 128)
    assert min(counts) == 2 and max(counts) == 5
    assert min(np.bincount(classes, minlength=5)[1:]) > 0.15 * len(classes)
    # diameters go from 0.14 to 0.65 of the side
    assert np.quantile(widths, 0.1) < 0.16 and np.quantile(widths, 0.9) > 0.4


def test_annotation_file_describes_the_images(tmp_path: Path) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=6, num_val=3, image_size=96)
    for split, count in (("train", 6), ("val", 3)):
        content = read(folder, split)
        assert [image["id"] for image in content["images"]] == list(range(1, count + 1))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(CLASS_NAMES, start=1))
        for image in content["images"]:
            drawn, objects = draw_synthetic_image(split, image["id"] - 1, image_size=96)
            stored = cv2.imread(str(folder / split / image["file_name"]))[..., ::-1]
            assert stored.shape == (image["height"], image["width"], 3) == (96, 96, 3)
            assert np.abs(stored.astype(int) - drawn).mean() < 4
            annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            for annotation, item in zip(annotations, objects, strict=True):
                mask = rasterise(annotation["segmentation"], 96, 96)
                np.testing.assert_array_equal(mask, item.mask)
                assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
                assert annotation["category_id"] == item.category_id
                tight = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask.astype(np.uint8))))
                assert annotation["bbox"] == tight.tolist()


def test_an_image_depends_on_seed_split_and_index_alone(tmp_path: Path) -> None:
    small = write_synthetic_coco(tmp_path / "small", num_train=3, num_val=1, image_size=64)
    large = write_synthetic_coco(tmp_path / "large", num_train=6, num_val=1, image_size=64)
    other = write_synthetic_coco(tmp_path / "other", num_train=3, num_val=1, image_size=64, seed=1)
    for i in range(1, 4):
        name = f"train/{i:012d}.jpg"
        assert (small / name).read_bytes() == (large / name).read_bytes()
        assert (small / name).read_bytes() != (other / name).read_bytes()
    first = len(read(small, "train")["annotations"])
    assert read(small, "train")["annotations"] == read(large, "train")["annotations"][:first]
    assert (small / "train/000000000001.jpg").read_bytes() != (small / "val/000000000001.jpg").read_bytes()


def test_a_finished_set_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=3, num_val=2, image_size=64)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    assert len(before) == 7
    monkeypatch.setattr(synthetic_coco, "draw_synthetic_image", lambda *args, **kwargs: pytest.fail("drawn again"))
    assert write_synthetic_coco(tmp_path, num_train=3, num_val=2, image_size=64) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")} == before


@pytest.mark.parametrize("damage", ["no json", "half a json", "an image missing"])
def test_an_unfinished_set_is_drawn_again(tmp_path: Path, damage: str) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=3, num_val=1, image_size=64)
    whole = {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.parent.name != "val"}
    json_file = folder / "annotations" / "instances_train.json"
    if damage == "no json":
        json_file.unlink()
    elif damage == "half a json":
        json_file.write_bytes(json_file.read_bytes()[:500])
    else:
        (folder / "train" / "000000000002.jpg").unlink()
    write_synthetic_coco(tmp_path, num_train=3, num_val=1, image_size=64)
    assert {path.name: path.read_bytes() for path in folder.rglob("*.*") if path.parent.name != "val"} == whole


def test_a_killed_redrawing_leaves_no_annotations_beside_foreign_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=4, num_val=1, image_size=64)
    first = {path.name: path.read_bytes() for path in (folder / "train").iterdir()}
    draw = draw_synthetic_image

    def killed_at_two(split: str, index: int, **kwargs: int):
        if index == 2:
            raise KeyboardInterrupt
        return draw(split, index, **kwargs)

    monkeypatch.setattr(synthetic_coco, "draw_synthetic_image", killed_at_two)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_coco(tmp_path, num_train=4, num_val=1, image_size=64, seed=5)
    assert not (folder / "annotations" / "instances_train.json").exists()
    monkeypatch.undo()
    write_synthetic_coco(tmp_path, num_train=4, num_val=1, image_size=64)
    assert {path.name: path.read_bytes() for path in (folder / "train").iterdir()} == first


def test_other_parameters_replace_the_set_and_its_extra_images(tmp_path: Path) -> None:
    write_synthetic_coco(tmp_path, num_train=5, num_val=1, image_size=64)
    folder = write_synthetic_coco(tmp_path, num_train=2, num_val=1, image_size=64)
    assert sorted(path.name for path in (folder / "train").iterdir()) == ["000000000001.jpg", "000000000002.jpg"]
    assert len(read(folder, "train")["images"]) == 2
    assert not list(folder.rglob(".*")), "a temporary file was left"


@pytest.mark.parametrize(
    "wrong", [{"num_val": 0}, {"image_size": 32}, {"min_objects": 0}, {"min_objects": 6}, {"seed": -1}]
)
def test_parameters_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        write_synthetic_coco(tmp_path, **{"num_train": 1, "num_val": 1, **wrong})
