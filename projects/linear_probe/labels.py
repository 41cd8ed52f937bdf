"""The data: images of a registered COCO data set, cropped, with their label maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from torch import Tensor

from lift_det.data import DatasetError, get_dataset_dicts
from lift_det.data.images import read_rgb
from lift_det.modeling.upsamplers import resize

BACKGROUND = 0
IGNORED = 255  # of a label map: no loss and no score there


@dataclass(frozen=True)
class LabelledImages:
    """The images of a split with their label maps.

    Attributes:
        images: uint8 (M, 3, L, L), RGB.
        labels: uint8 (M, L, L): 0 is background, 1 … K - 1 are the classes, 255 is ignored.
        class_names: K names, the first of them the background's.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def draw_label_map(annotations: Sequence[Mapping[str, Any]], height: int, width: int) -> np.ndarray:
    """Draws the annotations of an image over each other.

    Crowds come first, as ignored pixels: who stands in them is not told apart, but what is annotated by itself before
    a crowd is known. Then the objects from the largest to the smallest, because what is annotated twice is most often
    a small thing on or before a large one; COCO says nothing about depth.

    Args:
        annotations: of one image in detectron2's dataset format: contiguous ``category_id`` from 0, ``segmentation`` as
            polygons or RLE in pixels.
        height, width: of the image.

    Returns:
        uint8 (height, width): 0 is background, ``category_id + 1`` an object, 255 ignored.
    """
    labels = np.full((height, width), BACKGROUND, np.uint8)
    objects = []
    for annotation in annotations:
        mask = _decode(annotation["segmentation"], height, width)
        if annotation.get("iscrowd", 0):
            labels[mask] = IGNORED
        else:
            objects.append((int(mask.sum()), annotation["category_id"] + 1, mask))
    for _, label, mask in sorted(objects, key=lambda item: -item[0]):
        labels[mask] = label
    return labels


def _decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.decode(segmentation).astype(bool)


def resize_and_crop(image: np.ndarray, labels: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Scales the short side to ``size`` and cuts the square from the middle.

    Args:
        image: uint8 (H, W, 3); labels: uint8 (H, W); size: in pixels.

    Returns:
        The image, uint8 (3, size, size), bilinear and antialiased; the labels, uint8 (size, size), the nearest ones.
    """
    height, width = labels.shape
    scale = size / min(height, width)
    new_size = (max(size, round(height * scale)), max(size, round(width * scale)))
    pixels = resize(torch.tensor(image).permute(2, 0, 1)[None].float(), new_size)[0]
    # "nearest-exact" looks at the centres of pixels, as the images' interpolation does; "nearest" is shifted
    nearest = F.interpolate(torch.from_numpy(labels)[None, None].float(), size=new_size, mode="nearest-exact")[0, 0]
    top, left = ((side - size) // 2 for side in new_size)
    window = np.s_[..., top : top + size, left : left + size]
    return pixels[window].round().clamp(0, 255).to(torch.uint8), nearest[window].to(torch.uint8)


def label_table(name: str, classes: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """What becomes of the labels of a registered data set.

    Args:
        name: of the data set, which has been loaded.
        classes: ``"categories"`` as they are, ``"supercategories"`` as the annotation file names them, in alphabetical
            order, or ``"object"``: anything but background.

    Returns:
        uint8 (256,), the new label of each (background and ignored stay), and the names of the new labels.

    Raises:
        DatasetError: too many classes, or an annotation file without supercategories.
    """
    metadata = MetadataCatalog.get(name)
    categories = list(metadata.thing_classes)
    if len(categories) >= IGNORED:
        raise DatasetError(
            f"'{name}' has {len(categories)} classes; label maps of bytes hold up to {IGNORED - 1}. "
            "Register a data set with fewer classes."
        )
    if classes == "supercategories":
        groups = _supercategories(name)
    else:
        groups = categories if classes == "categories" else ["object"] * len(categories)
    names = sorted(set(groups)) if classes == "supercategories" else list(dict.fromkeys(groups))
    table = np.full(256, IGNORED, np.uint8)
    table[BACKGROUND] = BACKGROUND
    table[1 : 1 + len(groups)] = [1 + names.index(group) for group in groups]
    return table, ("background", *names)


def _supercategories(name: str) -> list[str]:
    """The supercategory of each contiguous class."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file") is None:
        raise DatasetError(
            f"'{name}' keeps no annotation file, in which supercategories could be looked up: take the data set that "
            "it is a part of, or --classes categories."
        )
    with open(metadata.json_file, encoding="utf-8") as file:
        by_id = {category["id"]: category.get("supercategory") for category in json.load(file)["categories"]}
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    groups = [by_id.get(dataset_id) for dataset_id in sorted(contiguous, key=contiguous.__getitem__)]
    if None in groups:
        raise DatasetError(
            f"'{metadata.json_file}' does not give each of the {len(groups)} categories of '{name}' a supercategory: "
            "write them in, or take --classes categories."
        )
    return groups


def load_labelled_images(name: str, size: int, limit: int | None = None, classes: str = "categories") -> LabelledImages:
    """Reads a registered COCO data set.

    Args:
        name: such as ``coco_2017_val``.
        size: side of the square crops in pixels.
        limit: only the first so many images.
        classes: see :func:`label_table`.

    Raises:
        DatasetError: the data set or one of its images is missing or cannot be used.
    """
    records = get_dataset_dicts(name, filter_empty=False)[:limit]
    table, class_names = label_table(name, classes)
    images, labels = [], []
    for record in records:
        image, reason = read_rgb(record["file_name"])
        if image is None:
            raise DatasetError(
                f"An image of '{name}', '{record['file_name']}', cannot be read: {reason}. Fetch it again, or take its "
                "entry out of the annotation file."
            )
        expected = (record["height"], record["width"])
        if image.shape[:2] != expected:
            raise DatasetError(
                f"'{record['file_name']}' has {image.shape[0]}×{image.shape[1]} pixels and the annotations of '{name}' "
                f"are for {expected[0]}×{expected[1]}: the file is not the one that was annotated. Fetch it again."
            )
        unusable = [a for a in record["annotations"] if not a.get("segmentation")]
        if unusable:
            raise DatasetError(
                f"{len(unusable)} annotations of image {record['image_id']} of '{name}' have no segmentation, and a "
                "label map needs one of each: name a data set with masks (instances_*.json)."
            )
        label_map = table[draw_label_map(record["annotations"], *expected)]
        pixels, label_map = resize_and_crop(image, label_map, size)
        images.append(pixels)
        labels.append(label_map)
    return LabelledImages(torch.stack(images), torch.stack(labels), class_names)
