"""Images of a registered COCO dataset, cropped, with their label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.structures import polygons_to_bitmask
from torch import Tensor

from lift_det.data import DatasetError, get_dataset_dicts
from lift_det.data.images import read_rgb
from lift_det.modeling.upsamplers import resize

BACKGROUND = 0
IGNORED = 255  # in a label map: neither loss nor score


@dataclass(frozen=True)
class LabelledImages:
    """
    Attributes:
        images: uint8 (M, 3, L, L), RGB.
        labels: uint8 (M, L, L): 0 is background, 1 … K - 1 are the classes, 255 is ignored.
        class_names: K names, starting with the background's.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def draw_label_map(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """Draws crowds as ignored, and over them the objects, from the largest to the smallest.

    Annotations are in detectron2's format, with masks as polygons or RLE. Returns uint8 (height, width): 0 is
    background, ``category_id + 1`` an object, 255 ignored.
    """
    labels = np.full((height, width), BACKGROUND, np.uint8)
    objects = []
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            mask = polygons_to_bitmask(segmentation, height, width)
        else:
            mask = mask_util.decode(segmentation).astype(bool)
        if annotation.get("iscrowd", 0):
            labels[mask] = IGNORED
        else:
            objects.append((int(mask.sum()), annotation["category_id"] + 1, mask))
    for _, label, mask in sorted(objects, key=lambda item: -item[0]):
        labels[mask] = label
    return labels


def resize_and_crop(image: np.ndarray, labels: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Scales the short side to ``size`` pixels and crops the square in the centre.

    The image, (H, W, 3) → (3, size, size), is resized bilinearly with antialiasing, the labels to the nearest.
    """
    height, width = labels.shape
    scale = size / min(height, width)
    new_size = (max(size, round(height * scale)), max(size, round(width * scale)))
    pixels = resize(torch.tensor(image).permute(2, 0, 1)[None].float(), new_size)[0]
    # aligned with the bilinear interpolation of the image, unlike "nearest"
    nearest = F.interpolate(torch.from_numpy(labels)[None, None].float(), size=new_size, mode="nearest-exact")[0, 0]
    top, left = ((side - size) // 2 for side in new_size)
    window = np.s_[..., top : top + size, left : left + size]
    return pixels[window].round().clamp(0, 255).to(torch.uint8), nearest[window].to(torch.uint8)


def load_labelled_images(name: str, size: int, limit: int | None = None) -> LabelledImages:
    """Reads crops of ``size`` pixels from the first ``limit`` images of a registered dataset with masks.

    Raises:
        DatasetError: the dataset or one of its images is missing or invalid.
    """
    records = get_dataset_dicts(name, filter_empty=False)[:limit]
    classes = MetadataCatalog.get(name).thing_classes
    if len(classes) >= IGNORED:
        raise DatasetError(f"'{name}' has {len(classes)} classes; label maps can hold up to {IGNORED - 1}.")
    images, labels = [], []
    for record in records:
        file = record["file_name"]
        height, width = record["height"], record["width"]
        image, reason = read_rgb(file)
        if image is not None and image.shape[:2] != (height, width):
            reason = f"the image is {image.shape[0]}×{image.shape[1]}, the annotations are for {height}×{width}"
        if not all(annotation.get("segmentation") for annotation in record["annotations"]):
            reason = "annotations have no segmentation (use instances_*.json)"
        if reason:
            raise DatasetError(f"'{file}' of '{name}' cannot be used: {reason}.")
        pixels, label_map = resize_and_crop(image, draw_label_map(record["annotations"], height, width), size)
        images.append(pixels)
        labels.append(label_map)
    return LabelledImages(torch.stack(images), torch.stack(labels), ("background", *classes))
