"""AdamW that clips the gradients' norm, because detectron2's lazy trainer leaves that to the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class ClippedAdamW(torch.optim.AdamW):
    """:class:`torch.optim.AdamW` that scales the gradients of a step down to a common norm of at most ``max_norm``."""

    def __init__(self, params: Any, *, max_norm: float = 1.0, **kwargs: Any) -> None:
        """
        Args:
            params: as AdamW's.
            max_norm: of all gradients together (L2).
            kwargs: as AdamW's, but for ``fused``, which under AMP is given scaled gradients.

        Raises:
            ValueError: ``fused=True``.
        """
        if kwargs.get("fused"):
            raise ValueError("ClippedAdamW cannot be fused: AMP gives a fused optimizer its gradients still scaled.")
        super().__init__(params, **kwargs)
        self.max_norm = max_norm

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Clips, then steps. A closure is refused: its gradients would come after the clipping."""
        if closure is not None:
            raise ValueError("ClippedAdamW takes no closure.")
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.max_norm)
        return super().step()
