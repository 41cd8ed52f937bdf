"""What a model finds in images, as a data set in COCO's format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances
from pycocotools import mask as mask_util

from lift_det.evaluation import instances_to_coco_json, with_category_ids
from lift_det.files import write_text_atomically


class PredictionFile:
    """Collects detections, and writes them as COCO has annotations (``pycocotools.coco.COCO`` reads it).

    Each annotation has ``score`` beside COCO's own keys; masks are run-length encoded.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        **info: Any,
    ) -> None:
        """
        Args:
            path: the JSON file; nothing is written yet.
            class_names: in the order of ``pred_classes``.
            category_ids: in the same order; None counts from 0.
            info: what else is to stand in the file's ``info``.
        """
        self.path = os.fspath(path)
        self._to_category = dict(enumerate(range(len(class_names)) if category_ids is None else category_ids))
        self._info = info
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories = [{"id": self._to_category[i], "name": name} for i, name in enumerate(class_names)]

    @property
    def num_images(self) -> int:
        """So far."""
        return len(self._images)

    @property
    def num_detections(self) -> int:
        """So far."""
        return len(self._annotations)

    def add(self, file_name: str, instances: Instances, **extra: Any) -> None:
        """Adds an image, also one in which nothing was found.

        Args:
            file_name: as it is to stand in the file.
            instances: of the whole image (``instances.image_size`` is its height and width), on the CPU.
            extra: more keys of the image's entry.
        """
        height, width = (int(side) for side in instances.image_size)
        image = {"id": len(self._images) + 1, "file_name": file_name, "width": width, "height": height, **extra}
        self._images.append(image)
        for result in with_category_ids(instances_to_coco_json(instances, image["id"]), self._to_category):
            _, _, box_width, box_height = result["bbox"]
            rle = result.get("segmentation")
            area = box_width * box_height if rle is None else float(mask_util.area(rle))
            self._annotations.append({"id": len(self._annotations) + 1, **result, "area": area, "iscrowd": 0})

    def write(self, **info: Any) -> None:
        """Writes all that was added, in one step: the file at ``path`` is whole, the old or the new.

        Args:
            info: as in the constructor.
        """
        content = {
            "info": {**self._info, **info},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        write_text_atomically(self.path, json.dumps(content))
