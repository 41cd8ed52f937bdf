"""COCO's figures by hotcoco (https://github.com/derekallman/hotcoco), which gives pycocotools' to the last digit."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import hotcoco

logger = logging.getLogger(f"detectron2.{__name__}")

#: what hotcoco is used for here: the field of a result that each needs
RESULT_FIELDS = {"bbox": "bbox", "segm": "segmentation"}


def import_hotcoco() -> ModuleType:
    """hotcoco; not at the top of a module, so that where it has no wheel only this evaluation is missing.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import hotcoco
    except ImportError as error:
        raise ImportError(
            f"hotcoco cannot be imported ({error}). Install it (pip install hotcoco), or ask COCO's own code for the "
            "same figures: COCOEvaluator(..., implementation='pycocotools')."
        ) from error
    return hotcoco


class HotcocoGroundTruth:
    """The ground truth of a data set, to evaluate results on."""

    def __init__(self, dataset: dict[str, Any], source: str) -> None:
        """
        Args:
            dataset: what a COCO annotation file holds. ``iscrowd`` may be missing (0).
            source: its name, for messages.

        Raises:
            ImportError: hotcoco is not installed.
            ValueError: something is missing in the data set, or of another kind than COCO's.
        """
        self._coco_class, self._eval_class = import_hotcoco().COCO, import_hotcoco().COCOeval
        self._source = source
        self._without_masks: list[Any] = []
        missing = [key for key in ("images", "annotations", "categories") if key not in dataset]
        if missing:
            raise ValueError(f"{source} has no {' and no '.join(map(repr, missing))}: it is no COCO annotation file.")
        # hotcoco takes whole numbers only, and detectron2's data sets may name images as they like. Their order stays,
        # because detections of one score are ranked in it.
        self._image_numbers = {id_: i for i, id_ in enumerate(sorted({image["id"] for image in dataset["images"]}))}
        self._coco = self._coco_class(
            {
                "images": [self._image(image) for image in dataset["images"]],
                "categories": [{"id": c["id"], "name": str(c.get("name", c["id"]))} for c in dataset["categories"]],
                "annotations": list(self._annotations(dataset["annotations"])),
            }
        )

    def evaluate(
        self,
        results: Iterable[dict[str, Any]],
        iou_type: str,
        *,
        image_ids: Iterable[Any] | None = None,
        max_dets: Sequence[int] = (1, 10, 100),
    ) -> hotcoco.COCOeval:
        """Evaluates, accumulates and summarises, which prints COCO's table of twelve figures.

        Args:
            results: COCO results, which are left as they are. For masks a result's area is its mask's, for boxes its
                box's, whatever else it has.
            iou_type: 'bbox' or 'segm'.
            image_ids: evaluates on these alone.
            max_dets: three limits on the detections per image and class; the figures named AP are at the largest.

        Returns:
            With ``stats`` and ``eval['precision']`` as pycocotools' ``COCOeval`` has them.

        Raises:
            ValueError: a result is of an image that is not in the data set, a result or the ground truth lacks what
                the IoU type needs, or a score is NaN.
        """
        if iou_type == "segm" and self._without_masks:
            raise ValueError(
                f"Masks cannot be evaluated: annotation {self._without_masks[0]} of {self._source} has none (so have "
                f"{len(self._without_masks)}). Evaluate boxes alone: tasks=('bbox',)."
            )
        evaluation = self._eval_class(
            self._coco, self._coco.load_res([self._result(result, iou_type) for result in results]), iou_type
        )
        evaluation.params.max_dets = sorted(max_dets)  # as pycocotools does; hotcoco's arrays keep the order given
        if image_ids is not None:
            numbers = [self._image_numbers[id_] for id_ in image_ids if id_ in self._image_numbers]
            # to hotcoco an empty list means every image; this number is no image's
            evaluation.params.img_ids = numbers or [len(self._image_numbers)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="hotcoco: max_dets differ")  # they are asked for
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _image(self, image: dict[str, Any]) -> dict[str, Any]:
        # masks of polygons need the size, boxes do not
        size = {key: image[key] for key in ("width", "height") if key in image}
        return {"id": self._image_numbers[image["id"]], "file_name": "", **size}

    def _annotations(self, annotations: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """What the figures depend on. Annotations are numbered anew, because their ids are often no ids."""
        ids = set()
        for number, annotation in enumerate(annotations, start=1):
            name = annotation.get("id", f"number {number}")
            ids.add(name)
            missing = [key for key in ("image_id", "category_id", "bbox", "area") if key not in annotation]
            if missing:
                raise ValueError(f"Annotation {name} of {self._source} has no {' and no '.join(map(repr, missing))}.")
            if annotation["image_id"] not in self._image_numbers:
                continue  # of no listed image, as pycocotools has it
            kept = {
                "id": number,
                "image_id": self._image_numbers[annotation["image_id"]],
                "iscrowd": annotation.get("iscrowd", 0),
                **{key: annotation[key] for key in ("category_id", "bbox", "area")},
            }
            if annotation.get("segmentation"):
                kept["segmentation"] = annotation["segmentation"]
            else:
                self._without_masks.append(name)
            yield kept
        if 0 in ids or len(ids) < len(annotations):
            logger.warning(
                f"Annotations of {self._source} have the id 0, or an id twice. Each counts once here; pycocotools "
                "never matches 0 and reads two of one id as the same object, so that its figures are lower."
            )

    def _result(self, result: dict[str, Any], iou_type: str) -> dict[str, Any]:
        """What the figures depend on: with boxes beside masks, areas would be the boxes'."""
        field = RESULT_FIELDS[iou_type]
        if result["image_id"] not in self._image_numbers:
            raise ValueError(
                f"A detection is of image {result['image_id']!r}, which is not in {self._source}: predictions and "
                "annotations are of different data sets (or of different versions; allow_cached_coco=False converts "
                "anew)."
            )
        check_has(result, iou_type)
        kept = {key: result[key] for key in ("category_id", "score", field)}
        return {"image_id": self._image_numbers[result["image_id"]], **kept}


def check_has(result: dict[str, Any], task: str) -> None:
    """Raises a ValueError if a COCO result lacks what a task of RESULT_FIELDS evaluates."""
    if RESULT_FIELDS[task] not in result:
        raise ValueError(
            f"A detection in image {result['image_id']!r} has no {RESULT_FIELDS[task]!r}, which the task {task!r} "
            "needs. Has the model a head for it? Otherwise leave the task out of `tasks`."
        )
