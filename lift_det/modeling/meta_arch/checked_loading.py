"""Mixin that reports and rejects partial checkpoint loads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lift_det.checkpoint import check_partial_load

logger = logging.getLogger(f"detectron2.{__name__}")


class CheckedLoading:
    """Mixin for models with a ViT at ``backbone.net``; list it before :class:`torch.nn.Module` in the base classes.

    detectron2's checkpointer drops tensors of another shape with a warning, and then calls ``load_state_dict`` with
    ``strict=False``, where this class checks the result.
    """

    #: prefixes of parameters of which a checkpoint may have only some
    ignore_mismatch: Sequence[str] = ()

    def check_state_dict(self, state_dict: Mapping[str, Tensor]) -> str:
        """Returns a report on a checkpoint, or raises CheckpointError; see :func:`check_partial_load`."""
        return check_partial_load(self.state_dict(), state_dict, self.ignore_mismatch)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As :meth:`torch.nn.Module.load_state_dict`. With ``strict=False`` the state dict is checked and reported."""
        if not strict:
            logger.info(self.check_state_dict(state_dict))
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        backbone = getattr(self, "backbone", None)
        lift, net = getattr(backbone, "lift", None), getattr(backbone, "net", None)
        names = [name.removeprefix("module.") for name in state_dict]
        loaded = {part for part in ("net", "lift") if any(name.startswith(f"backbone.{part}.") for name in names)}
        # a ViT that is loaded alone has to be the one that the LiFT was trained on; both together belong together
        if loaded == {"net"} and getattr(lift, "metadata", None) and hasattr(net, "feature_spec"):
            source = backbone if hasattr(backbone, "feature_spec") else net
            lift.trained_on.check(source.feature_spec(), backbone.ignore_mismatch)
        return result
