"""detectron2's GeneralizedRCNN, checking what it loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch import GeneralizedRCNN as _GeneralizedRCNN

from .checked_loading import CheckedLoading


class GeneralizedRCNN(CheckedLoading, _GeneralizedRCNN):
    """:class:`detectron2.modeling.GeneralizedRCNN` with its arguments, state dict and outputs."""

    @configurable
    def __init__(self, *, allow_partial: Sequence[str] = (), **kwargs: Any) -> None:
        """
        Args:
            allow_partial: parts of the model which a checkpoint may fill in part, such as ``["roi_heads"]`` for another
                number of classes, or ``["backbone.simfp_"]`` to start a dense pyramid from a ViTDet's.
            kwargs: as upstream's.
        """
        super().__init__(**kwargs)
        self.allow_partial = tuple(allow_partial)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "allow_partial": cfg.MODEL.LIFT.ALLOW_PARTIAL}
