"""COCO results of detectron2's Instances, whose masks may be run-length encoded already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.evaluation.coco_evaluation import instances_to_coco_json as _instances_to_coco_json
from detectron2.structures import Instances

_MASK_FIELDS = ("pred_masks", "pred_masks_rle")


def instances_to_coco_json(instances: Instances, image_id: Any) -> list[dict[str, Any]]:
    """detectron2's function of this name, which also reads ``pred_masks_rle``, and prefers it to ``pred_masks``.

    Args:
        instances: on the CPU; ``pred_masks_rle`` is a list of COCO's compressed RLE of the whole image, ``{"size":
            [height, width], "counts": bytes or str}``, as ``GeneralizedRCNN(mask_format="rle")`` gives it.
        image_id: of the image in the data set.

    Returns:
        COCO results, ready for JSON.
    """
    if not instances.has("pred_masks_rle"):
        return _instances_to_coco_json(instances, image_id)
    fields = {name: value for name, value in instances.get_fields().items() if name not in _MASK_FIELDS}
    results = _instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    for result, rle in zip(results, instances.pred_masks_rle, strict=True):
        counts = rle["counts"]
        result["segmentation"] = {
            "size": [int(side) for side in rle["size"]],
            "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        }
    return results


def prediction_of(image: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    """What detectron2's COCO and LVIS evaluators keep of an image: its id, and ``instances`` or ``proposals``."""
    prediction = {"image_id": image["image_id"]}
    if "instances" in output:
        prediction["instances"] = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
    if "proposals" in output:
        prediction["proposals"] = output["proposals"].to("cpu")
    return prediction


def with_category_ids(results: Iterable[dict[str, Any]], to_category: Mapping[int, Any]) -> list[dict[str, Any]]:
    """New results with the data set's category ids in place of a model's class numbers.

    Raises:
        ValueError: a class number is not among ``to_category``.
    """
    mapped = []
    for result in results:
        if result["category_id"] not in to_category:
            raise ValueError(
                f"A prediction has class {result['category_id']}, but the data set has the classes {min(to_category)} "
                f"to {max(to_category)}: is num_classes of the model another data set's?"
            )
        mapped.append({**result, "category_id": to_category[result["category_id"]]})
    return mapped
