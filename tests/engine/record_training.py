"""A hook for tests of trainings in subprocesses."""

import json
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm


class RecordTraining(HookBase):
    """Writes the loss of each iteration, and the largest difference between the models of the processes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.losses: list[float] = []

    def after_step(self) -> None:
        if comm.is_main_process():
            self.losses.append(self.trainer.storage.latest()["total_loss"][0])

    def after_train(self) -> None:
        states = comm.all_gather(getattr(self.trainer.model, "module", self.trainer.model).state_dict())
        if comm.is_main_process():
            difference = max(
                float((state[name] - value).abs().max()) for state in states for name, value in states[0].items()
            )
            report = {"losses": self.losses, "processes": len(states), "difference": difference}
            Path(self.path).write_text(json.dumps(report))
