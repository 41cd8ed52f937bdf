"""Drawings of detections: their size, their colours, images that are hard to draw on, and the ground truth beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_util
from torch import nn

from lift_det.modeling.meta_arch.postprocess import RLEList
from lift_det.visualization import draw_detections, draw_predictions, picture_predictions

METADATA = Metadata(thing_classes=["red", "blue"], thing_colors=[(255, 0, 0), (0, 0, 255)])


def detections(height: int, width: int, *boxes: tuple[float, ...], classes: list[int], rle: bool = False) -> Instances:
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    instances.scores = torch.full((len(boxes),), 0.9)
    if rle:
        instances.pred_masks_rle = [mask_util.encode(np.asfortranarray(mask.byte().numpy())) for mask in masks]
    else:
        instances.pred_masks = masks
    return instances


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 700), (500, 700)),
        ((1, 1), (480, 480)),
        ((100, 200), (300, 600)),
        ((1, 600), (1, 600)),
        ((600, 1), (600, 1)),
        ((3, 16384), (1, 8192)),
        ((1, 70_000), (1, 8192)),
    ],
)
def test_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """As the image; small ones enlarged by a whole number, and long ones reduced to what matplotlib can hold."""
    image = np.full((*size, 3), 100, np.uint8)
    instances = detections(*size, (0, 0, size[1], size[0]), classes=[0])
    picture = draw_detections(image, instances, METADATA)
    assert picture.shape == (*expected, 3) and picture.dtype == np.uint8
    assert (picture != 100).any()
    if max(size) < 480:
        assert draw_detections(image, instances, METADATA, enlarge=False).shape == image.shape


def test_pictures_are_reduced_to_a_size() -> None:
    """With boxes where they were: the left half is drawn on, the right half is not."""
    image = np.full((600, 800, 3), 100, np.uint8)
    picture = draw_detections(image, detections(600, 800, (0, 0, 400, 600), classes=[0]), METADATA, longest=200)
    assert picture.shape == (150, 200, 3)
    changed = (np.abs(picture.astype(int) - 100) > 8).any(-1)
    assert changed[:, :100].all() and not changed[:, 104:].any()


def test_nothing_found_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (500, 481, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw_detections(image, detections(500, 481, classes=[]), METADATA), image)


def test_each_class_has_its_colour_in_its_place() -> None:
    image = np.full((500, 500, 3), 128, np.uint8)
    instances = detections(500, 500, (50, 50, 200, 200), (300, 300, 450, 450), classes=[0, 1])
    picture = draw_detections(image, instances, METADATA).astype(int)
    assert picture[180, 180, 0] > picture[180, 180, 2] + 50
    assert picture[430, 430, 2] > picture[430, 430, 0] + 50
    assert (picture[250, 250] == 128).all() and (image == 128).all()
    swapped = detections(500, 500, (300, 300, 450, 450), (50, 50, 200, 200), classes=[1, 0])
    np.testing.assert_array_equal(draw_detections(image, swapped, METADATA), picture)


def test_without_colours_of_its_own_a_data_set_has_a_palette() -> None:
    image = np.full((500, 500, 3), 128, np.uint8)
    instances = detections(500, 500, (50, 50, 200, 200), (300, 300, 450, 450), classes=[0, 99])
    named = Metadata(thing_classes=[str(i) for i in range(100)])  # more than the palette has
    picture = draw_detections(image, instances, named)
    assert np.array_equal(draw_detections(image, instances, named), picture), "colours are drawn by lot"
    assert np.abs(picture[180, 180].astype(int) - picture[430, 430]).max() > 20


def test_masks_of_both_formats_and_none() -> None:
    image = np.full((120, 160, 3), 128, np.uint8)
    boxes = (10.0, 10.0, 60.0, 70.0)
    bits = draw_detections(image, detections(120, 160, boxes, classes=[1]), METADATA)
    rle = draw_detections(image, detections(120, 160, boxes, classes=[1], rle=True), METADATA)
    np.testing.assert_array_equal(bits, rle)
    without = detections(120, 160, boxes, classes=[1])
    without.remove("pred_masks")
    outline = draw_detections(image, without, METADATA)
    assert (outline[160, 160] == 128).all() and (bits[160, 160] != 128).any()  # four times as large


class Oracle(nn.Module):
    """Predicts one square, sure of it or not."""

    def __init__(self, score: float, rle: bool = False) -> None:
        super().__init__()
        self.score, self.rle = score, rle

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        assert not self.training
        instances = detections(64, 64, (8, 8, 40, 40), classes=[0], rle=self.rle)
        instances.scores[:] = self.score
        if self.rle:  # as GeneralizedRCNN's
            instances.pred_masks_rle = RLEList(instances.pred_masks_rle)
        return [{"instances": instances}]


def image_with(folder: Path, *annotations: dict[str, Any]) -> dict[str, Any]:
    """A grey image with a square in it, of class 0, but for what the annotations say."""
    cv2.imwrite(str(folder / "image.png"), np.full((64, 64, 3), 90, np.uint8))
    square = {"bbox": [8, 8, 32, 32], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    return {"file_name": str(folder / "image.png"), "annotations": [square | each for each in annotations]}


def halves(picture: np.ndarray) -> list[np.ndarray]:
    """The ground truth's picture and the predictions', without titles."""
    return [half[28 : 28 + 512, :512].astype(int) for half in np.split(picture, [512 + 6], axis=1)]


POLYGON = [[8, 8, 40, 8, 40, 40, 8, 40]]


def test_predictions_stand_beside_the_ground_truth(tmp_path: Path) -> None:
    record = image_with(tmp_path, {"segmentation": POLYGON})
    pictures = []
    for score in (0.9, 0.1):
        model = Oracle(score).train()
        pictures.append(picture_predictions(model, record, METADATA, lambda d: d))
        assert model.training  # as it was
    (truth, sure), (same, unsure) = map(halves, pictures)
    inside = slice(8 * 8 + 20, 40 * 8 - 20)
    for drawn in (truth, sure):
        # the class's red inside the square, below the name, nothing outside of it
        assert (drawn[inside, inside, 0] > drawn[inside, inside, 2] + 50).mean() > 0.9
        assert (drawn[340:] == 90).all() and (drawn[:, 340:] == 90).all()
    assert (unsure == 90).all() and np.array_equal(truth, same)
    # only predictions have a score behind their name
    assert (truth != sure).any(-1).mean() < 0.02 and not np.array_equal(truth, sure)


def test_a_grid_of_pairs_is_written(tmp_path: Path) -> None:
    record = image_with(tmp_path, {"segmentation": POLYGON})
    draw_predictions(Oracle(0.9), [record] * 3, METADATA, lambda d: d, tmp_path / "predictions.png")
    picture = cv2.imread(str(tmp_path / "predictions.png"))[:, :, ::-1]
    pair = picture_predictions(Oracle(0.9), record, METADATA, lambda d: d)
    height, width = pair.shape[:2]
    assert picture.shape == (2 * (height + 6), 2 * (width + 6), 3)
    for row, column in ((0, 0), (0, 1), (1, 0)):
        top, left = row * (height + 6), column * (width + 6)
        assert np.array_equal(picture[top : top + height, left : left + width], pair)
    assert (picture[height + 6 :, width + 6 :] == 255).all()


def test_predicted_masks_as_rle_look_the_same(tmp_path: Path) -> None:
    record = image_with(tmp_path, {"segmentation": POLYGON})
    bits, rle = (picture_predictions(Oracle(0.9, rle), record, METADATA, lambda d: d) for rle in (False, True))
    assert np.array_equal(bits, rle)


def test_the_ground_truth_has_polygons_rle_or_no_masks(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[8:40, 8:40] = 1
    compressed = mask_util.encode(mask)
    counts = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0)), prepend=0).tolist()
    uncompressed = {"size": [64, 64], "counts": [*counts, 64 * 64 - sum(counts)]}

    def truth(*annotations: dict[str, Any]) -> np.ndarray:
        return halves(picture_predictions(Oracle(0.1), image_with(tmp_path, *annotations), METADATA, lambda d: d))[0]

    polygons = truth({"segmentation": POLYGON})
    for segmentation in (compressed, uncompressed):
        np.testing.assert_array_equal(truth({"segmentation": segmentation}), polygons)
    outline = truth({})
    assert (outline[200, 200] == 90).all() and (polygons[200, 200] != 90).any()
    assert (truth() == 90).all()
    crowd = truth({"segmentation": compressed, "iscrowd": 1})
    assert 0 < (crowd != polygons).any(-1).mean() < 0.02, "a crowd has it in its name"


def test_keypoints_are_drawn_where_they_are_enlarged_too(tmp_path: Path) -> None:
    points = [50.0, 20.0, 2.0, 0.0, 0.0, 0.0]  # x, y, visibility; the second is not labelled
    metadata = Metadata(thing_classes=["red", "blue"], keypoint_names=["nose", "tail"], keypoint_connection_rules=[])
    instances = detections(100, 160, (2, 2, 150, 90), classes=[0])
    image = np.full((100, 160, 3), 200, np.uint8)
    without = draw_detections(image, instances, metadata)
    instances.pred_keypoints = torch.tensor([points]).unflatten(1, (-1, 3))
    changed = (draw_detections(image, instances, metadata) != without).any(axis=2)
    rows, columns = changed.nonzero()
    factor = without.shape[0] // 100
    assert changed.any() and abs(rows.mean() - 20 * factor) < 3 and abs(columns.mean() - 50 * factor) < 3
    # and in the ground truth, of which not all need have them
    box = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = image_with(
        tmp_path,
        {**box, "bbox": [2, 2, 150, 90], "keypoints": points},
        {**box, "bbox": [100, 10, 150, 60]},
    )
    empty = Instances((100, 160), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    empty.pred_classes = torch.zeros(0, dtype=torch.int64)
    model = nn.Module()
    model.forward = lambda images: [{"instances": empty}]
    assert picture_predictions(model, record, metadata, lambda one: one).any()
