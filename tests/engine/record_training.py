"""A hook for tests of trainings in subprocesses."""

import json
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm


class RecordTraining(HookBase):
    """Writes each iteration's loss, the trained parts of the model, and the largest difference between processes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.losses: list[float] = []

    def _state(self) -> dict[str, torch.Tensor]:
        model = getattr(self.trainer.model, "module", self.trainer.model)
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    def before_train(self) -> None:
        self.before = self._state()

    def after_step(self) -> None:
        if comm.is_main_process():
            self.losses.append(self.trainer.storage.latest()["total_loss"][0])

    def after_train(self) -> None:
        state = self._state()
        everyone = comm.all_gather(state)
        if comm.is_main_process():
            changed = {
                ".".join(name.split(".")[:2]) for name in state if not torch.equal(state[name], self.before[name])
            }
            difference = max(float((other[name] - state[name]).abs().max()) for other in everyone for name in state)
            report = {"losses": self.losses, "processes": len(everyone), "difference": difference}
            Path(self.path).write_text(json.dumps({**report, "changed": sorted(changed)}))
