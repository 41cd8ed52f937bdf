import torch
from detectron2.config import LazyCall as L
from detectron2.engine import SimpleTrainer
from omegaconf import OmegaConf
from torch import nn

from lift_det.engine.train import _build_trainer


class Doubler(SimpleTrainer):
    pass


def _build(**train):
    model = nn.Linear(2, 2)
    cfg = OmegaConf.create({"train": {"amp": {"enabled": False}, **train}}, flags={"allow_objects": True})
    return _build_trainer(cfg, model, [], torch.optim.SGD(model.parameters(), lr=1.0))


def test_a_config_may_state_its_trainer():
    assert type(_build()) is SimpleTrainer
    trainer = _build(trainer=L(Doubler)(gather_metric_period=3))
    assert type(trainer) is Doubler and trainer.gather_metric_period == 3
    # as a config that was saved as YAML spells it
    named = _build(trainer={"_target_": "detectron2.engine.train_loop.SimpleTrainer", "gather_metric_period": 2})
    assert type(named) is SimpleTrainer and named.gather_metric_period == 2
