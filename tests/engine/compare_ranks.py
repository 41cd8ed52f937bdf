"""A hook for the two-process tests: are the parameters the same in all processes after training?"""

from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm


class CompareRanks(HookBase):
    """Writes the largest difference between any parameter of rank 0 and of the others to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def after_train(self) -> None:
        parameters = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}
        everyone = comm.all_gather(parameters)
        if comm.is_main_process():
            largest = max(
                float((other[name] - everyone[0][name]).abs().max()) for other in everyone[1:] for name in everyone[0]
            )
            assert all(torch.isfinite(p).all() for p in parameters.values())
            Path(self.path).write_text(f"{len(everyone)} {largest}")
