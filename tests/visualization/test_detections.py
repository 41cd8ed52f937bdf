"""Drawings of detections: size, colours, masks and keypoints, and the ground truth beside them."""

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
POLYGON = [[8, 8, 40, 8, 40, 40, 8, 40]]


def detections(height, width, *boxes, classes=(0,), rle=False):
    """Boxes whose masks fill them."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances((height, width), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
    instances.pred_classes = torch.tensor(classes[: len(boxes)], dtype=torch.int64)
    instances.scores = torch.full((len(boxes),), 0.9)
    if rle:
        instances.pred_masks_rle = RLEList(mask_util.encode(np.asfortranarray(mask.byte().numpy())) for mask in masks)
    else:
        instances.pred_masks = masks
    return instances


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 200), (300, 600)), ((600, 800), (600, 800)), ((1, 70_000), (1, 8192))]
)
def test_size(size, expected):
    """That of the image; small ones are enlarged by a whole number, large ones reduced to what matplotlib can draw."""
    image = np.full((*size, 3), 100, np.uint8)
    instances = detections(*size, (0, 0, size[1] // 2, size[0]))
    picture = draw_detections(image, instances, METADATA)
    assert picture.shape == (*expected, 3) and picture.dtype == np.uint8 and (image == 100).all()
    if size[0] > 1:  # the left half, and nothing beside it
        changed = (np.abs(picture.astype(int) - 100) > 8).any(-1)
        assert changed[:, : expected[1] // 2 - 4].all() and not changed[:, expected[1] // 2 + 4 :].any()
    if max(size) < 480:
        assert draw_detections(image, instances, METADATA, enlarge=False).shape == image.shape


def test_each_class_has_its_colour():
    image = np.full((500, 500, 3), 128, np.uint8)
    boxes = (50, 50, 200, 200), (300, 300, 450, 450)
    picture = draw_detections(image, detections(500, 500, *boxes, classes=(0, 1)), METADATA).astype(int)
    assert picture[180, 180, 0] > picture[180, 180, 2] + 50
    assert picture[430, 430, 2] > picture[430, 430, 0] + 50
    assert (picture[250, 250] == 128).all()
    swapped = detections(500, 500, *boxes[::-1], classes=(1, 0))
    np.testing.assert_array_equal(draw_detections(image, swapped, METADATA), picture)
    # detectron2's palette, which is smaller than the number of classes
    named = Metadata(thing_classes=[str(i) for i in range(100)])
    picture = draw_detections(image, detections(500, 500, *boxes, classes=(0, 99)), named)
    assert np.abs(picture[180, 180].astype(int) - picture[430, 430]).max() > 20
    assert np.array_equal(draw_detections(image, detections(500, 500), METADATA), image)


def test_mask_formats():
    image = np.full((500, 500, 3), 128, np.uint8)
    box = (50, 50, 200, 200)
    bits = draw_detections(image, detections(500, 500, box), METADATA)
    np.testing.assert_array_equal(draw_detections(image, detections(500, 500, box, rle=True), METADATA), bits)
    without = detections(500, 500, box)
    without.remove("pred_masks")
    outline = draw_detections(image, without, METADATA)
    assert (outline[180, 180] == 128).all() and (bits[180, 180] != 128).any()


class Oracle(nn.Module):
    """Predicts one square with this score."""

    def __init__(self, score, rle=False):
        super().__init__()
        self.score, self.rle = score, rle

    def forward(self, batch):
        assert not self.training
        instances = detections(64, 64, (8, 8, 40, 40), rle=self.rle)
        instances.scores[:] = self.score
        return [{"instances": instances}]


def image_with(folder, *annotations):
    """A dataset dict of a grey image, with a square of class 0 for each of these parts of annotations."""
    cv2.imwrite(str(folder / "image.png"), np.full((64, 64, 3), 90, np.uint8))
    square = {"bbox": [8, 8, 32, 32], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    return {"file_name": str(folder / "image.png"), "annotations": [square | each for each in annotations]}


def draw_pair(record, score=0.9, rle=False, metadata=METADATA):
    """Drawings of the ground truth and of a prediction, 512 pixels wide, without titles and margins."""
    picture = picture_predictions(Oracle(score, rle), record, metadata, lambda d: d)
    assert picture.shape == (512 + 28 + 12, 2 * 512 + 18, 3)
    return [picture[34:546, left : left + 512].astype(int) for left in (6, 524)]


def test_predictions_beside_the_ground_truth(tmp_path):
    record = image_with(tmp_path, {"segmentation": POLYGON})
    truth, sure = draw_pair(record)
    same, unsure = draw_pair(record, score=0.1)
    inside = slice(8 * 8 + 20, 40 * 8 - 20)
    for drawn in (truth, sure):
        # red inside the square, below the label, and nothing outside
        assert (drawn[inside, inside, 0] > drawn[inside, inside, 2] + 50).mean() > 0.9
        assert (drawn[340:] == 90).all() and (drawn[:, 340:] == 90).all()
    assert (unsure == 90).all() and np.array_equal(truth, same)
    assert 0 < (truth != sure).any(-1).mean() < 0.02  # only the label differs, by the score
    assert np.array_equal(draw_pair(record, rle=True)[1], sure)


def test_grid_of_pairs(tmp_path):
    record, model = image_with(tmp_path, {}), Oracle(0.9).train()
    draw_predictions(model, [record] * 3, METADATA, lambda d: d, tmp_path / "predictions.png")
    assert model.training
    picture = cv2.imread(str(tmp_path / "predictions.png"))[6:, 6:, ::-1]
    pair = np.pad(picture_predictions(model, record, METADATA, lambda d: d), ((0, 6), (0, 6), (0, 0)))
    pair[-6:] = pair[:, -6:] = 255
    np.testing.assert_array_equal(picture, np.block([[[pair], [pair]], [[pair], [np.full_like(pair, 255)]]]))


def test_ground_truth_with_polygons_rle_or_no_masks(tmp_path):
    mask = np.zeros((64, 64), np.uint8, order="F")
    mask[8:40, 8:40] = 1
    uncompressed = {"size": [64, 64], "counts": [8 * 64 + 8, *[32, 32] * 31, 32, 24 * 64 + 24]}

    def truth(*annotations):
        return draw_pair(image_with(tmp_path, *annotations))[0]

    polygons = truth({"segmentation": POLYGON})
    for segmentation in (mask_util.encode(mask), uncompressed):
        np.testing.assert_array_equal(truth({"segmentation": segmentation}), polygons)
    outline = truth({})
    assert (outline[200, 200] == 90).all() and (polygons[200, 200] != 90).any()
    assert (truth() == 90).all()
    crowd = truth({"segmentation": uncompressed, "iscrowd": 1})
    assert 0 < (crowd != polygons).any(-1).mean() < 0.02  # the label names it


def test_keypoints(tmp_path):
    points = [50.0, 20.0, 2.0, 0.0, 0.0, 0.0]  # x, y, visibility; the second is not labelled
    metadata = Metadata(thing_classes=["red", "blue"], keypoint_names=["nose", "tail"], keypoint_connection_rules=[])
    instances = detections(100, 160, (2, 2, 150, 90))
    image = np.full((100, 160, 3), 200, np.uint8)
    without = draw_detections(image, instances, metadata)
    instances.pred_keypoints = torch.tensor([points]).unflatten(1, (-1, 3))
    rows, columns = (draw_detections(image, instances, metadata) != without).any(axis=2).nonzero()
    assert abs(rows.mean() - 20 * 3) < 3 and abs(columns.mean() - 50 * 3) < 3  # enlarged three times
    # in the ground truth, where not every object has them
    with_some = draw_pair(image_with(tmp_path, {"keypoints": points}, {}), metadata=metadata)[0]
    assert not np.array_equal(with_some, draw_pair(image_with(tmp_path, {}, {}), metadata=metadata)[0])
