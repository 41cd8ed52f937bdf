"""Drawings of detections and ground truth."""

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
from detectron2.utils.visualizer import GenericMask, Visualizer, _create_text_labels
from PIL import Image
from torch import nn
from torchvision.utils import make_grid

from lift_det.files import write_atomically

#: longer side of a picture in pixels: labels are not readable below SMALLEST, matplotlib fails far above LARGEST
SMALLEST, LARGEST = 480, 8192
_BESIDE = 640  # longer side of the two pictures of a pair
_MARGIN = 6


def draw_detections(
    image: np.ndarray, instances: Instances, metadata: Metadata, *, enlarge: bool = True, longest: int = LARGEST
) -> np.ndarray:
    """Draws boxes, masks, keypoints, class names and scores on an image. Each class has its own colour.

    Args:
        image: (H, W, 3) uint8 in RGB; not modified.
        instances: on the CPU, with ``pred_boxes`` in pixels of the image and ``pred_classes``. Optional fields are
            ``scores``, ``pred_keypoints`` (N, K, 3), ``pred_masks`` (N, H, W) bool, and ``pred_masks_rle``, a list of
            COCO segmentations (RLE, polygons, or None for no mask).
        metadata: has ``thing_classes``, and optionally ``thing_colors``.
        enlarge: enlarge images whose longer side is below :data:`SMALLEST` by an integer factor.
        longest: reduce images whose longer side exceeds this many pixels; at most :data:`LARGEST`.

    Returns:
        (h, w, 3) uint8 in RGB.
    """
    longer = max(image.shape[:2])
    scale = min(1.0, longest / longer)
    if enlarge and longer < SMALLEST:
        scale = math.ceil(SMALLEST / longer)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]  # width, height
    image_size = image.shape[:2]
    factors = np.divide(size, image_size[::-1])  # across, down
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)

    visualizer = Visualizer(image, metadata)
    boxes = instances.pred_boxes.tensor.numpy() * np.tile(factors, 2)
    fields = instances.get_fields()
    masks = fields.get("pred_masks_rle", fields.get("pred_masks", [None] * len(instances)))
    keypoints = fields.get("pred_keypoints")
    if keypoints is not None:
        keypoints = np.asarray(keypoints) * [*factors, 1]  # x, y, score
    classes = instances.pred_classes.tolist()
    labels = _create_text_labels(classes, fields.get("scores"), metadata.get("thing_classes"), fields.get("is_crowd"))
    colours = np.array(metadata.get("thing_colors") or colormap(rgb=True)) / 255
    # One at a time, because all masks together need too much memory. The largest first, as the Visualizer does.
    for i in np.argsort(-instances.pred_boxes.area().numpy(), kind="stable"):
        mask = cv2.resize(_bitmask(masks[i], image_size), size, interpolation=cv2.INTER_NEAREST)
        visualizer.overlay_instances(
            boxes=boxes[i : i + 1],
            masks=[mask],
            keypoints=None if keypoints is None else keypoints[i : i + 1],
            labels=labels[i : i + 1],
            assigned_colors=[tuple(colours[classes[i] % len(colours)])],
        )
    return visualizer.output.get_image()


def draw_predictions(
    model: nn.Module,
    dataset_dicts: Sequence[dict[str, Any]],
    metadata: Metadata,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    path: str | os.PathLike,
    score_threshold: float = 0.5,
) -> None:
    """Writes a PNG with :func:`picture_predictions` of each image, two in a row."""
    pairs = [picture_predictions(model, image, metadata, mapper, score_threshold) for image in dataset_dicts]
    picture = Image.fromarray(_grid(pairs))
    write_atomically(path, lambda file: picture.save(file, "PNG"))


def picture_predictions(
    model: nn.Module,
    dataset_dict: dict[str, Any],
    metadata: Metadata,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Draws the ground truth of an image beside the predictions of a detector.

    Args:
        model: a detector. Its training mode is restored afterwards.
        dataset_dict: the image and its annotations in detectron2's format.
        metadata: see :func:`draw_detections`.
        mapper: converts a dataset dict to the model's input, like the mapper of the test loader.
        score_threshold: smallest score of predictions to draw.

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
    pictures = []
    for title, instances in drawn.items():
        picture = draw_detections(image, instances, metadata, longest=_BESIDE)
        picture = cv2.copyMakeBorder(picture, 28, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        cv2.putText(picture, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        pictures.append(picture)
    return _grid(pictures)


def _ground_truth(dataset_dict: dict[str, Any], image_size: tuple[int, int]) -> Instances:
    """Converts the annotations of a dataset dict for :func:`draw_detections`."""
    annotations = dataset_dict.get("annotations", ())
    boxes = [BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS) for one in annotations]
    instances = Instances(
        image_size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        pred_classes=torch.tensor([one["category_id"] for one in annotations], dtype=torch.int64),
        pred_masks_rle=[one.get("segmentation") or None for one in annotations],
        is_crowd=[one.get("iscrowd", 0) for one in annotations],
    )
    if numbers := max((len(one.get("keypoints", ())) for one in annotations), default=0):
        keypoints = [one.get("keypoints") or [0] * numbers for one in annotations]
        instances.pred_keypoints = torch.tensor(keypoints, dtype=torch.float32).unflatten(1, (-1, 3))
    return instances


def _bitmask(mask: Any, image_size: tuple[int, int]) -> np.ndarray:
    """Converts a bitmask, RLE, polygons or None to (H, W) uint8."""
    if mask is None:
        return np.zeros(image_size, np.uint8)
    return GenericMask(mask, *image_size).mask if isinstance(mask, (dict, list)) else np.asarray(mask, dtype=np.uint8)


def _grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Arranges (h, w, 3) pictures two in a row, with white margins."""
    height, width = np.max([picture.shape[:2] for picture in pictures], axis=0)
    padded = np.full((len(pictures), height, width, 3), 255, np.uint8)
    for place, picture in zip(padded, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = picture
    grid = make_grid(torch.from_numpy(padded).permute(0, 3, 1, 2), nrow=2, padding=_MARGIN, pad_value=255)
    return grid.permute(1, 2, 0).numpy()
