"""Mixin that reports and rejects partial checkpoint loads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lift_det.checkpoint import check_partial_load

logger = logging.getLogger(f"detectron2.{__name__}")


class CheckedLoading:
    """Mixin for models with ``backbone.net``; comes before :class:`torch.nn.Module` in the base classes.

    detectron2's checkpointer drops tensors of another shape with a warning. It always ends in
    ``load_state_dict(…, strict=False)``, so the check is there.
    """

    #: prefixes of parts that a checkpoint may fill in part
    ignore_mismatch: Sequence[str] = ()

    def check_state_dict(self, state_dict: Mapping[str, Tensor]) -> str:
        """Returns a report on a checkpoint; see :func:`lift_det.checkpoint.check_partial_load`.

        Raises:
            CheckpointError: it may not be loaded.
        """
        return check_partial_load(self.state_dict(), state_dict, self.ignore_mismatch)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """See :meth:`torch.nn.Module.load_state_dict`; ``strict=False`` checks and reports the load."""
        if not strict:
            logger.info(self.check_state_dict(state_dict))
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        backbone = getattr(self, "backbone", None)
        lift, net = getattr(backbone, "lift", None), getattr(backbone, "net", None)
        names = [name.removeprefix("module.") for name in state_dict]
        loaded = {part for part in ("net", "lift") if any(name.startswith(f"backbone.{part}.") for name in names)}
        # a ViT alone may not be the one that the LiFT's file is for; a checkpoint with both has trained them together
        if loaded == {"net"} and getattr(lift, "metadata", None) and hasattr(net, "feature_spec"):
            source = backbone if hasattr(backbone, "feature_spec") else net
            lift.trained_on.check(source.feature_spec(), backbone.ignore_mismatch)
        return result
