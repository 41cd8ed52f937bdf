"""Mixin that reports and rejects partial checkpoint loads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lift_det.checkpoint import check_partial_load

logger = logging.getLogger(f"detectron2.{__name__}")

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


class CheckedLoading:
    """For models with ``backbone.net`` in them; comes before :class:`torch.nn.Module` among the base classes.

    detectron2's checkpointer drops every tensor of another shape with a warning and goes on, whoever's trainer runs.
    All of its ways end in ``load_state_dict(…, strict=False)``, so the model itself is where that is caught.
    """

    #: parts of the model, by prefix, which a checkpoint may fill in part
    allow_partial: Sequence[str] = ()

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
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        backbone = getattr(self, "backbone", None)
        lift, net = getattr(backbone, "lift", None), getattr(backbone, "net", None)
        names = [name.removeprefix("module.") for name in state_dict]
        brought = {part for part in ("net", "lift") if any(name.startswith(f"backbone.{part}.") for name in names)}
        # a ViT for a LiFT that has been read from a file; a checkpoint that brings both has trained them together
        if brought == {"net"} and getattr(lift, "metadata", None) and hasattr(net, "feature_spec"):
            source = backbone if hasattr(backbone, "feature_spec") else net
            lift.trained_on.check(source.feature_spec(), backbone.allow_lift)
        return result
