"""A hook for the two-process tests: what has trained, and is it the same in all processes afterwards?"""

import json
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm


class CompareRanks(HookBase):
    """Writes to a JSON file which parts of the model changed, and how far the ranks' parameters are apart."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _parameters(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.trainer.model.module.named_parameters()}

    def before_train(self) -> None:
        self.before = self._parameters()

    def after_train(self) -> None:
        after = self._parameters()
        everyone = comm.all_gather(after)
        if not comm.is_main_process():
            return
        apart = max(float((other[name] - after[name]).abs().max()) for other in everyone for name in after)
        changed = {".".join(name.split(".")[:2]) for name in after if not torch.equal(after[name], self.before[name])}
        finite = all(bool(torch.isfinite(p).all()) for p in after.values())
        report = {"processes": len(everyone), "apart": apart, "changed": sorted(changed), "finite": finite}
        Path(self.path).write_text(json.dumps(report))
