"""Objects drawn into images: what a detector finds, and the ground truth beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import inference_context
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from pycocotools import mask as mask_util
from torch import nn

from lift_det.files import write_atomically

#: longer sides of pictures, in pixels: smaller ones would not hold a word, larger ones are beyond matplotlib
SMALLEST, LARGEST = 480, 8192
_BESIDE = 640  # longer side of each of two pictures beside each other
_MARGIN = 6  # between them


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Metadata, *, enlarge: bool = True, longest: int = LARGEST
) -> np.ndarray:
    """Draws boxes, masks, class names and scores into an image, each class always in its own colour.

    Args:
        image: (H, W, 3) uint8 in RGB; not changed.
        instances: on the CPU, with ``pred_boxes`` in pixels of the image and ``pred_classes``. Drawn where they are
            there: ``scores``, ``pred_keypoints`` (N, K, 3), and masks as ``pred_masks`` ((N, H, W) bool) or
            ``pred_masks_rle`` (COCO's compressed RLE, None for an instance without a mask).
        metadata: with ``thing_classes``; colours are ``thing_colors``, or detectron2's palette where there are none.
        enlarge: repeat the pixels of an image whose longer side is below :data:`SMALLEST`, so that names can be read.
        longest: reduce pictures whose longer side is above this many pixels, at most :data:`LARGEST`.

    Returns:
        A uint8 RGB picture, as large as the image, enlarged by a whole number, or reduced to ``longest``.
    """
    longer = max(image.shape[:2])
    scale = min(1.0, longest / longer)
    # Not by the visualizer's own scale, which letters follow to a size of nothing. Reduced, a side is to keep a pixel.
    smallest = SMALLEST / longer if enlarge else 1
    factors = tuple(math.ceil(max(smallest, 1 / (scale * side))) for side in image.shape[:2])  # down, across
    visualizer = Visualizer(_enlarge(image, factors), metadata, scale)
    boxes = instances.pred_boxes.tensor.numpy() * (factors[::-1] * 2)
    masks = _masks(instances)
    keypoints = None
    if instances.has("pred_keypoints"):
        keypoints = np.asarray(instances.pred_keypoints) * (*factors[::-1], 1)  # x, y, score
    # One at a time, the large ones first, as the visualizer would: of all masks at once it holds whole images.
    for i in np.argsort(-instances.pred_boxes.area().numpy(), kind="stable"):
        visualizer.overlay_instances(
            boxes=boxes[i : i + 1],
            masks=None if masks[i] is None else [_enlarge(_bitmask(masks[i]), factors)],
            keypoints=None if keypoints is None else keypoints[i : i + 1],
            labels=[_label(instances, i, metadata)],
            assigned_colors=[_colour(int(instances.pred_classes[i]), metadata)],
        )
    return visualizer.output.get_image()


def draw_predictions(
    model: nn.Module,
    dataset_dicts: Sequence[dict[str, Any]],
    metadata: Metadata,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    path: str | os.PathLike,
    score_threshold: float = 0.5,
    columns: int = 2,
) -> None:
    """Writes a PNG with a pair of pictures for each image: its ground truth, and what a detector predicts.

    Args:
        model, metadata, mapper, score_threshold: see :func:`picture_predictions`.
        dataset_dicts: the images.
        path: of the PNG, which is written atomically.
        columns: pairs in a row.
    """
    pairs = [picture_predictions(model, image, metadata, mapper, score_threshold) for image in dataset_dicts]
    picture = Image.fromarray(_grid(pairs, columns))
    write_atomically(path, lambda file: picture.save(file, "PNG"))


def picture_predictions(
    model: nn.Module,
    dataset_dict: dict[str, Any],
    metadata: Metadata,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Draws the ground truth of an image, and beside it what a detector predicts.

    Args:
        model: a detector; left in the mode it was in.
        dataset_dict: of the image, in detectron2's format, with annotations.
        metadata: of the data set, see :func:`draw_detections`.
        mapper: makes the model's input of a dataset dict, as the test loader's does.
        score_threshold: predictions below it are not drawn.

    Returns:
        (h, w, 3) uint8 in RGB.
    """
    with inference_context(model), torch.no_grad():
        found = model([mapper(dataset_dict)])[0]["instances"].to("cpu")
    image = read_image(dataset_dict["file_name"], "RGB")
    drawn = {
        "ground truth": _ground_truth(dataset_dict, image.shape[:2]),
        f"predicted, score >= {score_threshold:g}": found[found.scores >= score_threshold],
    }
    pictures = [
        _titled(draw_detections(image, instances, metadata, longest=_BESIDE), title)
        for title, instances in drawn.items()
    ]
    return _grid(pictures, columns=2)


def _ground_truth(dataset_dict: dict[str, Any], image_size: tuple[int, int]) -> Instances:
    """The annotations of a dataset dict as :func:`draw_detections` takes them."""
    annotations = dataset_dict.get("annotations", ())
    boxes = [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in annotations]
    keypoints = {}
    if numbers := max((len(one.get("keypoints", ())) for one in annotations), default=0):
        every = [one.get("keypoints") or [0] * numbers for one in annotations]
        keypoints["pred_keypoints"] = torch.tensor(every, dtype=torch.float32).unflatten(1, (-1, 3))
    return Instances(
        image_size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        pred_classes=torch.tensor([one["category_id"] for one in annotations], dtype=torch.int64),
        pred_masks_rle=[_rle(one.get("segmentation"), image_size) for one in annotations],
        is_crowd=[bool(one.get("iscrowd", 0)) for one in annotations],
        **keypoints,
    )


def _rle(segmentation: list | dict | None, image_size: tuple[int, int]) -> dict | None:
    """COCO's compressed RLE of its polygons, its uncompressed or its compressed RLE."""
    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return segmentation
    if not segmentation:
        return None
    rle = mask_util.frPyObjects(segmentation, *image_size)
    return mask_util.merge(rle) if isinstance(rle, list) else rle


def _masks(instances: Instances) -> Sequence:
    if instances.has("pred_masks_rle"):
        return instances.pred_masks_rle
    return np.asarray(instances.pred_masks) if instances.has("pred_masks") else [None] * len(instances)


def _bitmask(mask: dict | np.ndarray) -> np.ndarray:
    return mask_util.decode(mask) if isinstance(mask, dict) else mask.astype(np.uint8)


def _label(instances: Instances, i: int, metadata: Metadata) -> str:
    label = metadata.thing_classes[int(instances.pred_classes[i])]
    if instances.has("scores"):
        label += f" {float(instances.scores[i]):.0%}"
    return f"{label}, crowd" if instances.has("is_crowd") and instances.is_crowd[i] else label


def _colour(class_number: int, metadata: Metadata) -> tuple[float, ...]:
    """RGB, 0 to 1."""
    colours = metadata.get("thing_colors") or colormap(rgb=True)
    return tuple(value / 255 for value in colours[class_number % len(colours)])


def _enlarge(array: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    return array if factors == (1, 1) else array.repeat(factors[0], axis=0).repeat(factors[1], axis=1)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((28, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, picture])


def _grid(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """(h, w, 3) pictures in rows on white; a column is as wide as its widest."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [max(picture.shape[1] for picture in pictures[i::columns]) + _MARGIN for i in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) + _MARGIN for row in rows]
    canvas = np.full((sum(heights), sum(widths), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        top, left = sum(heights[:row]), sum(widths[:column])
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas
