"""Post-processing of a detector's output, with masks as bitmasks or COCO RLEs."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess as _detector_postprocess
from detectron2.structures import Instances, ROIMasks
from detectron2.utils.memory import retry_if_cuda_oom

from lift_det.layers import mask_to_rle, paste_masks

MASK_FORMATS = ("bitmask", "rle")
# Name of the masks during detectron2's post-processing, which does not touch unknown fields.
_KEPT = "pred_roi_masks"


class RLEList(list):
    """A list of RLEs that can be indexed by tensors, as the other fields of Instances."""

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor) and item.dim() == 1:
            if item.dtype == torch.bool:
                if len(item) != len(self):
                    raise IndexError(f"expected {len(self)} bools, one for each RLE, got {len(item)}")
                item = item.nonzero()[:, 0]
            return RLEList(list.__getitem__(self, i) for i in item.tolist())
        found = super().__getitem__(item)
        return RLEList(found) if isinstance(item, slice) else found


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5, mask_format: str = "bitmask"
) -> Instances:
    """detectron2's ``detector_postprocess`` with a choice of mask format.

    Args:
        results: predictions for one image, with ``pred_boxes`` in pixels of ``results.image_size`` and optionally
            ``pred_masks``, (N, 1, M, M) probabilities or ``ROIMasks``. Boxes may be modified in place.
        output_height, output_width: in pixels.
        mask_threshold: pixels with at least this probability are in the mask.
        mask_format: ``"bitmask"`` returns ``pred_masks``, (N, height, width) bool; ``"rle"`` returns
            ``pred_masks_rle``, {"size": [height, width], "counts": str} for each mask.
    """
    if not results.has("pred_masks"):
        return _detector_postprocess(results, output_height, output_width, mask_threshold)
    fields = results.get_fields()
    masks = fields.pop("pred_masks")
    fields[_KEPT] = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
    results = _detector_postprocess(Instances(results.image_size, **fields), output_height, output_width)
    masks, shape = results.get(_KEPT), (int(output_height), int(output_width))
    results.remove(_KEPT)
    field, convert = ("pred_masks_rle", _json_rles) if mask_format == "rle" else ("pred_masks", _bitmasks)
    # falls back to the CPU if the GPU is out of memory, as in detectron2
    results.set(field, retry_if_cuda_oom(convert)(masks, results.pred_boxes.tensor, shape, mask_threshold))
    return results


def _bitmasks(masks: torch.Tensor, boxes: torch.Tensor, image_shape: tuple[int, int], threshold: float) -> torch.Tensor:
    return paste_masks(masks, boxes, image_shape, threshold).bool()  # uint8 where there are none


def _json_rles(masks: torch.Tensor, boxes: torch.Tensor, image_shape: tuple[int, int], threshold: float) -> RLEList:
    rles = mask_to_rle(masks, boxes, image_shape, threshold)
    return RLEList({**rle, "counts": rle["counts"].decode("ascii")} for rle in rles)
