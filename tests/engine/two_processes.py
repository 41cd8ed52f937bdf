"""For test_trainer.py: the toy on two processes, each with half of every batch, computed in two parts."""

import json
import sys
import time
from pathlib import Path

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lift_det.engine import Trainer, launch
from tests.engine.toy import Toy, batches


def _halves(bad_iteration):
    rank = comm.get_rank()
    for batch in batches(bad_iteration):
        yield batch[2 * rank : 2 * rank + 2]


def _train(report: Path, bad_iteration: int | None = None) -> None:
    model = create_ddp_model(Toy(), device_ids=None)
    exchanges = []
    model.register_comm_hook(None, lambda _, bucket: exchanges.append(1) or allreduce_hook(None, bucket))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, _halves(bad_iteration), optimizer, accumulate=2)
    begin = time.monotonic()
    try:
        trainer.train(0, 4)
    finally:
        weights = comm.all_gather(model.module.weight.item())
        if comm.is_main_process():
            found = {"weights": weights, "exchanges": len(exchanges), "seconds": time.monotonic() - begin}
            report.write_text(json.dumps(found))


def main(folder: str) -> None:
    """Trains, then trains until the loss of the second process is NaN."""
    _train(Path(folder, "trained.json"))
    _train(Path(folder, "failed.json"), bad_iteration=2)


if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
