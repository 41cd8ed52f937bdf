"""Pictures of detections: their size, their colours, and images that are hard to draw on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from lift_det.evaluation import draw_detections

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
