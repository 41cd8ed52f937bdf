"""detectron2's GeneralizedRCNN, checking what it loads, with masks that need not be images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch import GeneralizedRCNN as _GeneralizedRCNN
from detectron2.structures import Instances

from ..norms import use_channel_layer_norm
from .checked_loading import CheckedLoading
from .postprocess import MASK_FORMATS, detector_postprocess


class GeneralizedRCNN(CheckedLoading, _GeneralizedRCNN):
    """:class:`detectron2.modeling.GeneralizedRCNN` with its arguments, state dict and (by default) outputs."""

    @configurable
    def __init__(self, *, allow_partial: Sequence[str] = (), mask_format: str = "bitmask", **kwargs: Any) -> None:
        """
        Args:
            allow_partial: parts of the model which a checkpoint may fill in part, such as ``["roi_heads"]`` for another
                number of classes, or ``["backbone.simfp_"]`` to start a dense pyramid from a ViTDet's.
            mask_format: of the masks that inference gives: "bitmask", ``pred_masks`` as upstream's; or "rle", in its
                place ``pred_masks_rle``, for each mask the RLE that detectron2's evaluator makes of it, {"size":
                [height, width], "counts": str}. Those take a tenth of the time (for masks in fp32), next to no memory,
                and :class:`lift_det.evaluation.COCOEvaluator` reads either; detectron2's own and its visualizer want
                bitmasks.
            kwargs: as upstream's.

        Raises:
            ValueError: another mask format.
        """
        super().__init__(**kwargs)
        if mask_format not in MASK_FORMATS:
            raise ValueError(f"mask_format: expected 'bitmask' or 'rle', got '{mask_format}'.")
        use_channel_layer_norm(self)  # the heads', too
        self.allow_partial = tuple(allow_partial)
        self.mask_format = mask_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "allow_partial": cfg.MODEL.LIFT.ALLOW_PARTIAL,
            "mask_format": cfg.MODEL.LIFT.MASK_FORMAT,
        }

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """As upstream's; the masks are in ``mask_format``.

        Tracing goes through upstream's post-processing, which is made for it, and needs "bitmask": an RLE is text.
        """
        if torch.jit.is_tracing() and self.mask_format == "bitmask":
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        # not upstream's _postprocess, which its inference calls by the name of its own class
        outputs = []
        for instances, batched_input in zip(results, batched_inputs, strict=True):
            image_height, image_width = batched_input["image"].shape[-2:]
            height, width = batched_input.get("height", image_height), batched_input.get("width", image_width)
            instances = detector_postprocess(instances, height, width, mask_format=self.mask_format)
            outputs.append({"instances": instances})
        return outputs
