import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import SimpleTrainer
from omegaconf import OmegaConf
from torch import nn

from lift_det.engine import Trainer, create_ddp_model
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
    # as an override on a command line
    ours = _build(trainer={"accumulate": 4})
    assert type(ours) is Trainer and ours.accumulate == 4


@pytest.mark.parametrize(
    ("device", "trainer", "expected"),
    [
        ("cpu", {}, {"device_ids": None, "fp16_compression": False}),
        ("cuda", {}, {"fp16_compression": True}),
        ("cuda", {"precision": "float16"}, {"fp16_compression": True}),
        ("cuda", {"precision": "bfloat16"}, {"fp16_compression": False}),
        ("cuda", {"accumulate": 2}, {"fp16_compression": True}),  # of the precision that amp means
        ("cuda", {"precision": "float32"}, {"fp16_compression": False}),
    ],
)
def test_processes_exchange_gradients_as_fits_device_and_trainer(device, trainer, expected, monkeypatch):
    seen = {}
    monkeypatch.setattr("detectron2.engine.defaults.create_ddp_model", lambda model, **options: seen.update(options))
    ddp, amp = {"broadcast_buffers": False, "fp16_compression": True}, {"enabled": True}
    train = {"device": device, "amp": amp, "ddp": ddp, "trainer": trainer}
    create_ddp_model(OmegaConf.create({"train": train}), nn.Linear(2, 2))
    assert seen == {"broadcast_buffers": False, **expected}
