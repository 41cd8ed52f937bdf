"""A training of one weight."""

import json

import torch
from detectron2.config import LazyCall as L
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.utils.events import get_event_storage
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf
from torch import nn


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
