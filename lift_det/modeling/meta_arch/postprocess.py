"""detectron2's post-processing of a detector's output, with masks as bitmasks or as COCO's RLE."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess as _detector_postprocess
from detectron2.structures import Instances, ROIMasks
from detectron2.utils.memory import retry_if_cuda_oom

from lift_det.layers import mask_to_rle, paste_masks

MASK_FORMATS = ("bitmask", "rle")
# The masks' name while detectron2's function rescales boxes and drops the empty ones: it leaves a field alone which it
# does not know.
_KEPT = "pred_roi_masks"


class RLEList(list):
    """A list of RLEs which can be indexed as the fields of :class:`detectron2.structures.Instances` are: by a tensor of
    bools or of integers too, as in ``instances[instances.scores > 0.5]``. ``Instances.cat`` makes a plain list of it.
    """

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
    """:func:`detectron2.modeling.postprocessing.detector_postprocess`, with a choice of the masks' format.

    Boxes are scaled to the output size and clipped to it, and instances with an empty box dropped.

    Args:
        results: of one image; ``pred_boxes`` in pixels of the image that the detector saw (``results.image_size``), and
            perhaps ``pred_masks``, (N, 1, M, M) probabilities or ``ROIMasks``. Its boxes may be modified.
        output_height, output_width: pixels.
        mask_threshold: a pixel is in a mask if its probability is at least this.
        mask_format: "bitmask" gives detectron2's ``pred_masks``, (N, height, width) bool. "rle" gives
            ``pred_masks_rle`` in its place: for each mask {"size": [height, width], "counts": str}, as detectron2
            writes them into a JSON file.
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
    # Out of memory on a GPU, it goes to the CPU, as detectron2 does.
    results.set(field, retry_if_cuda_oom(convert)(masks, results.pred_boxes.tensor, shape, mask_threshold))
    return results


def _bitmasks(masks: torch.Tensor, boxes: torch.Tensor, image_shape: tuple[int, int], threshold: float) -> torch.Tensor:
    return paste_masks(masks, boxes, image_shape, threshold).bool()  # uint8 where there are none


def _json_rles(masks: torch.Tensor, boxes: torch.Tensor, image_shape: tuple[int, int], threshold: float) -> RLEList:
    rles = mask_to_rle(masks, boxes, image_shape, threshold)
    return RLEList({**rle, "counts": rle["counts"].decode("ascii")} for rle in rles)
