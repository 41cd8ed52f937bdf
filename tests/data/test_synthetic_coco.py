"""The synthetic dataset: exact polygons, determinism, and recovery from interruptions."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest

from lift_det.data import synthetic_coco, write_synthetic_coco
from lift_det.data.shapes import CLASS_NAMES, mask_to_polygons
from lift_det.data.synthetic_coco import draw_synthetic_image


def rasterize(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)


def read(folder: Path, split: str) -> dict:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_polygons_of_random_blobs_are_exact_and_holes_are_rejected() -> None:
    rng = np.random.default_rng(0)
    num_exact = num_rejected = 0
    for _ in range(300):
        noise = cv2.GaussianBlur(rng.random((23, 31)).astype(np.float32), (0, 0), 1.5)
        mask = noise > np.quantile(noise, 0.75)
        polygons = mask_to_polygons(mask)
        outside = (~np.pad(mask, 1)).astype(np.uint8)
        num_holes = cv2.connectedComponents(outside, connectivity=4)[0] - 2
        assert (polygons is None) == (num_holes > 0)
        if polygons is None:
            num_rejected += 1
        else:
            np.testing.assert_array_equal(rasterize(polygons, *mask.shape), mask)
            num_exact += 1
    assert num_exact > 50 and num_rejected > 5
    assert mask_to_polygons(np.zeros((5, 6), bool)) == []


@pytest.mark.parametrize("size", [64, 200])
def test_annotations_describe_the_images(tmp_path: Path, size: int) -> None:
    folder = write_synthetic_coco(tmp_path, num_train=15, num_val=3, image_size=size)
    for split, count in (("train", 15), ("val", 3)):
        content = read(folder, split)
        assert [image["id"] for image in content["images"]] == list(range(1, count + 1))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(CLASS_NAMES, start=1))
        for image in content["images"]:
            drawn, objects = draw_synthetic_image(split, image["id"] - 1, image_size=size)
            stored = cv2.imread(str(folder / split / image["file_name"]))[..., ::-1]
            assert stored.shape == (image["height"], image["width"], 3) == (size, size, 3)
            assert np.abs(stored.astype(int) - drawn).mean() < 4
            annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            for annotation, item in zip(annotations, objects, strict=True):
                mask = rasterize(annotation["segmentation"], size, size)
                np.testing.assert_array_equal(mask, item.mask)
                assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
                assert annotation["category_id"] == item.category_id
                rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
                assert annotation["bbox"] == mask_util.toBbox(rle).tolist()


def test_an_image_depends_on_seed_split_and_index_alone(tmp_path: Path) -> None:
    small = contents(write_synthetic_coco(tmp_path / "small", num_train=3, num_val=1, image_size=64))
    large = contents(write_synthetic_coco(tmp_path / "large", num_train=6, num_val=1, image_size=64))
    other = contents(write_synthetic_coco(tmp_path / "other", num_train=3, num_val=1, image_size=64, seed=1))
    images = [name for name in small if name.endswith(".jpg")]
    assert all(small[name] == large[name] != other[name] for name in images)
    assert len({small[name] for name in images}) == 4


def test_only_incomplete_splits_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"root": tmp_path, "num_train": 3, "num_val": 2, "image_size": 64}
    folder = write_synthetic_coco(**arguments)
    whole = contents(folder)
    json_file = folder / "annotations" / "instances_train.json"
    for damage in (
        lambda: json_file.write_bytes(json_file.read_bytes()[:500]),
        (folder / "train" / "000000000002.jpg").unlink,
        lambda: write_synthetic_coco(**{**arguments, "num_train": 5, "seed": 1}),
    ):
        damage()
        write_synthetic_coco(**arguments)
        assert contents(folder) == whole
    monkeypatch.setattr(synthetic_coco, "draw_synthetic_image", lambda *_, **__: pytest.fail("drawn again"))
    assert write_synthetic_coco(**arguments) == folder


def test_an_interruption_leaves_no_annotations_of_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"root": tmp_path, "num_train": 4, "num_val": 1, "image_size": 64}
    folder = write_synthetic_coco(**arguments)
    whole = contents(folder)

    def interrupted(split: str, index: int, **parameters: int) -> tuple:
        if index == 2:
            raise KeyboardInterrupt
        return draw_synthetic_image(split, index, **parameters)

    monkeypatch.setattr(synthetic_coco, "draw_synthetic_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_coco(**arguments, seed=5)
    assert not (folder / "annotations" / "instances_train.json").exists()
    monkeypatch.undo()
    write_synthetic_coco(**arguments)
    assert contents(folder) == whole


@pytest.mark.parametrize(
    "wrong", [{"num_val": 0}, {"image_size": 32}, {"min_objects": 0}, {"min_objects": 6}, {"seed": -1}]
)
def test_parameters_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(*wrong.values())):
        write_synthetic_coco(tmp_path, **{"num_train": 1, "num_val": 1, **wrong})
