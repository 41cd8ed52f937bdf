"""A hook for the tests of training: each iteration's loss as it is (metrics.json has medians of twenty)."""

import json
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm


class RecordLosses(HookBase):
    """Writes a JSON file: losses, and how far the ranks' BatchNorm statistics and parameters end apart."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.losses: list[float] = []

    def after_step(self) -> None:
        if comm.is_main_process():
            value, iteration = self.trainer.storage.latest()["total_loss"]
            assert iteration == self.trainer.iter == len(self.losses)
            self.losses.append(value)

    def after_train(self) -> None:
        state = {name: value.detach().double() for name, value in self.trainer.model.state_dict().items()}
        everyone = comm.all_gather(state)
        if comm.is_main_process():
            apart = max(float((other[name] - state[name]).abs().max()) for other in everyone for name in state)
            norms = sorted({type(module).__name__ for module in self.trainer.model.modules()})
            report = {"losses": self.losses, "processes": len(everyone), "apart": apart, "modules": norms}
            Path(self.path).write_text(json.dumps(report))
