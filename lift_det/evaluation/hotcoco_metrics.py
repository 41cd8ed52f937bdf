"""COCO metrics with hotcoco (https://github.com/derekallman/hotcoco), which equal those of pycocotools."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import hotcoco

#: the field of a COCO result or annotation that each task evaluates
RESULT_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def import_hotcoco() -> ModuleType:
    """Imports hotcoco on demand, because some platforms have no wheel of it."""
    try:
        import hotcoco
    except ImportError as error:
        raise ImportError(
            f"hotcoco cannot be imported ({error}). Install it (pip install hotcoco), or use pycocotools, which gives "
            "the same results: COCOEvaluator(..., implementation='pycocotools')."
        ) from error
    return hotcoco


def evaluate_with_hotcoco(
    dataset: dict[str, Any],
    results: Iterable[dict[str, Any]],
    task: str,
    source: str,
    image_ids: Iterable[Any] | None = None,
    max_dets: Sequence[int] = (1, 10, 100),
) -> hotcoco.COCOeval:
    """Evaluates COCO results, and prints COCO's summary.

    Args:
        dataset: content of a COCO annotation file. A missing ``iscrowd`` is 0. Annotation ids need not be unique.
        results: COCO results, each with the field that the task needs.
        task: ``"bbox"`` or ``"segm"``.
        source: name of the annotation file, for messages.
        image_ids: evaluate only these images.
        max_dets: three limits on the detections per image and class. AP uses the largest.

    Returns:
        An object with ``stats`` and ``eval["precision"]``, as in pycocotools' ``COCOeval``.

    Raises:
        ImportError: hotcoco is not installed.
        ValueError: an annotation lacks a field that the task needs, or a result has an unknown image or a NaN score.
    """
    hotcoco = import_hotcoco()
    field = RESULT_FIELDS[task]
    # hotcoco needs integer ids. Their order is kept, because it ranks detections of equal score.
    numbers = {id_: i for i, id_ in enumerate(sorted({image["id"] for image in dataset["images"]}))}
    images = []
    for image in dataset["images"]:
        size = {key: image[key] for key in ("width", "height") if key in image}
        images.append({"id": numbers[image["id"]], "file_name": "", **size})
    categories = [{"id": c["id"], "name": str(c.get("name", c["id"]))} for c in dataset["categories"]]
    annotations = []
    for number, annotation in enumerate(dataset["annotations"], start=1):
        for key in ("image_id", "category_id", "bbox", "area", field):
            if annotation.get(key) in (None, []):
                raise ValueError(
                    f"Annotation {annotation.get('id', f'number {number}')} of {source} has no {key!r}, which the task "
                    f"{task!r} needs. Correct the file, or remove the task from `tasks`."
                )
        if annotation["image_id"] in numbers:  # pycocotools also ignores annotations of unknown images
            kept = {key: annotation[key] for key in ("category_id", "bbox", "area", field)}
            kept |= {"id": number, "image_id": numbers[annotation["image_id"]]}
            annotations.append({**kept, "iscrowd": annotation.get("iscrowd", 0)})
    detections = []
    for result in results:
        if result["image_id"] not in numbers:
            raise ValueError(
                f"A detection is of image {result['image_id']!r}, which is not in {source}. Are predictions and "
                "annotations of the same dataset (allow_cached_coco=False converts it again)?"
            )
        # only the field of the task: with a box, the area of a mask would be that of the box
        kept = {key: result[key] for key in ("category_id", "score", field)}
        detections.append({**kept, "image_id": numbers[result["image_id"]]})

    ground_truth = hotcoco.COCO({"images": images, "categories": categories, "annotations": annotations})
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(detections), task)
    evaluation.params.max_dets = sorted(max_dets)  # as pycocotools does
    if image_ids is not None:
        # for hotcoco an empty list means all images, so use a number that no image has
        evaluation.params.img_ids = [numbers[id_] for id_ in image_ids if id_ in numbers] or [len(numbers)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="hotcoco: max_dets differ")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
