"""detectron2's GeneralizedRCNN with checked loading and RLE masks."""

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
    """detectron2's GeneralizedRCNN, with the same state dict, checked loading of checkpoints, and masks as RLE."""

    @configurable
    def __init__(self, *, ignore_mismatch: Sequence[str] = (), mask_format: str = "bitmask", **kwargs: Any) -> None:
        """
        Args:
            ignore_mismatch: prefixes of parameters of which a checkpoint may have only some, such as ``["roi_heads"]``
                for other classes, or ``["backbone.simfp_"]`` to initialise a dense pyramid from ViTDet's.
            mask_format: ``"bitmask"`` predicts ``pred_masks`` as detectron2 does; ``"rle"`` predicts
                ``pred_masks_rle``, {"size": [height, width], "counts": str} for each mask, about ten times as fast and
                with little memory. detectron2's evaluator and visualizer need bitmasks;
                :class:`lift_det.evaluation.COCOEvaluator` supports both.
            kwargs: see :class:`detectron2.modeling.GeneralizedRCNN`.

        Raises:
            ValueError: an unknown mask format.
        """
        super().__init__(**kwargs)
        if mask_format not in MASK_FORMATS:
            raise ValueError(f"mask_format: expected 'bitmask' or 'rle', got '{mask_format}'.")
        use_channel_layer_norm(self)
        self.ignore_mismatch = tuple(ignore_mismatch)
        self.mask_format = mask_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **super().from_config(cfg),
            "ignore_mismatch": cfg.MODEL.IGNORE_MISMATCH,
            "mask_format": cfg.MODEL.LIFT.MASK_FORMAT,
        }

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """As detectron2's, with masks in ``mask_format``. Tracing needs ``"bitmask"``."""
        if torch.jit.is_tracing() and self.mask_format == "bitmask":
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        # here, because detectron2's inference calls _postprocess of its own class
        outputs = []
        for instances, batched_input in zip(results, batched_inputs, strict=True):
            image_height, image_width = batched_input["image"].shape[-2:]
            height, width = batched_input.get("height", image_height), batched_input.get("width", image_width)
            instances = detector_postprocess(instances, height, width, mask_format=self.mask_format)
            outputs.append({"instances": instances})
        return outputs
