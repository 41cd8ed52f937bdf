"""detectron2's GeneralizedRCNN that says what of a checkpoint it took, and refuses one that fits by halves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling.meta_arch import GeneralizedRCNN as _GeneralizedRCNN
from torch import Tensor

from lift_det.checkpoint import check_partial_load

logger = logging.getLogger(__name__)

# Parts that a checkpoint brings whole or not at all.
_GROUPS = (
    "backbone.net.",
    "backbone.lift.",
    "backbone.simfp_",
    "proposal_generator.",
    "roi_heads.box",
    "roi_heads.mask",
    "roi_heads.",
    "",
)


class GeneralizedRCNN(_GeneralizedRCNN):
    """:class:`detectron2.modeling.GeneralizedRCNN` with its arguments, state dict and outputs.

    detectron2's checkpointer drops every tensor of another shape with a warning and goes on, whoever's trainer runs.
    All of its ways end in ``load_state_dict(…, strict=False)``, so the model itself is where that is caught.
    """

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

    def check_state_dict(self, state_dict: Mapping[str, Tensor]) -> str:
        """Decides whether a checkpoint may be loaded here; returns the report on what of it fits.

        Raises:
            CheckpointError: see :func:`lift_det.checkpoint.check_partial_load`.
        """
        return check_partial_load(
            self.state_dict(),
            state_dict,
            groups=_GROUPS,
            required=("backbone.net.",),
            allow_partial=self.allow_partial,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As :meth:`torch.nn.Module.load_state_dict`; a load that need not fit is checked and reported."""
        if not strict:
            logger.info(self.check_state_dict(state_dict))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)
