"""A training of one weight, also on two processes, and a hook for trainings in subprocesses."""

import json
import time
from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from lift_det.engine import Trainer


class Toy(nn.Module):
    """Mean squared difference of weight · x and y over the images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        if not self.training:
            return [self.weight.item()]
        distances = torch.stack([self.weight * image["x"] - image["y"] for image in batch])
        return {"loss": distances.square().mean()}


class Score(DatasetEvaluator):
    """The evaluated weight, and the score listed for the iteration."""

    def __init__(self, scores=None):
        self.scores = scores or {}

    def process(self, inputs, outputs):
        self.weight = outputs[0]

    def evaluate(self):
        return {"toy": {"weight": self.weight, "score": self.scores.get(get_event_storage().iter, 0.0)}}


def images(number, y=1.0):
    return [
        {"x": torch.tensor(1.0), "y": torch.tensor(y), "file_name": f"{i}.jpg", "image_id": i} for i in range(number)
    ]


def batches(bad_iteration=None):
    """Endless batches of four images; the target of the third image in batch ``bad_iteration`` is NaN."""
    iteration = 0
    while True:
        batch = images(4, y=1.0 + iteration % 3)
        if iteration == bad_iteration:
            batch[2]["y"] = torch.tensor(float("nan"))
        yield batch
        iteration += 1


def toy_config(folder, **train):
    cfg = OmegaConf.create({}, flags={"allow_objects": True})
    cfg.model = L(Toy)()
    cfg.optimizer = L(torch.optim.AdamW)(params=L(get_default_optimizer_params)(), lr=0.1)
    cfg.lr_multiplier = L(LinearParamScheduler)(start_value=1.0, end_value=0.5)
    cfg.dataloader = {"train": L(batches)(), "test": L(images)(number=1), "evaluator": L(Score)()}
    cfg.train = {
        "output_dir": str(folder),
        "init_checkpoint": "",
        "max_iter": 10,
        "device": "cpu",
        "amp": {"enabled": False},
        "ddp": {},
        "checkpointer": {"period": 5},
        "eval_period": 0,
        "log_period": 1,
        **train,
    }
    return cfg


def logged(folder, name):
    """Returns the values of a metric by iteration."""
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {line["iteration"]: line[name] for line in lines if name in line}


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


def train_twice(folder: str) -> None:
    """Trains, then trains until the loss of the second process is NaN."""
    _train(Path(folder, "trained.json"))
    _train(Path(folder, "failed.json"), bad_iteration=2)


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
