import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from lift_det import LiFT, ViT, model_zoo
from lift_det.data import write_synthetic_coco
from lift_det.engine import EMA, ClippedAdamW, Trainer, do_train
from lift_det.engine.trainer import averaged_weights
from lift_det.modeling import LiFTPretraining
from tests.engine.toy import Toy, batches, images, toy_config

ROOT = Path(__file__).resolve().parents[2]
RESUME, ANEW = argparse.Namespace(resume=True), argparse.Namespace(resume=False)


def _sgd(model, lr=1.0):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)


def _lift_training(**options):
    torch.manual_seed(0)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=64)
    objectives = dict(full_from_half=1.0, half_from_quarter=1.0, full_from_quarter=1.0)
    model = LiFTPretraining(net, LiFT(32, 8), [120.0] * 3, [60.0] * 3, objectives=objectives, **options)
    nn.init.normal_(model.lift.outc.weight, std=0.1)
    for module in model.lift.modules():
        if isinstance(module, nn.BatchNorm2d):  # of a LiFT that was trained
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    generator = torch.Generator().manual_seed(1)
    batch = [{"image": torch.rand(3, 64, 64, generator=generator) * 255} for _ in range(8)]
    return model, batch


def _gradients(model, batch, accumulate):
    """After one step of SGD at a rate of 1: what the weights lost."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(model, [batch], _sgd(model), accumulate=accumulate)
    trainer.train(0, 1)
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name}
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}, losses


@pytest.mark.parametrize("mirror", [False, True])
def test_four_parts_of_two_have_the_gradients_of_eight(mirror, one_thread):
    (whole, whole_losses), (parts, losses) = (
        _gradients(*_lift_training(freeze_norm=True, mirror=mirror), accumulate) for accumulate in (1, 4)
    )
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-2
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert losses == pytest.approx(whole_losses, rel=1e-5) and len(losses) == 4


def test_batchnorm_that_is_not_frozen_sees_a_part(one_thread):
    whole, parts = (_gradients(*_lift_training(), accumulate)[0] for accumulate in (1, 4))
    assert max(float((parts[name] - whole[name]).abs().max()) for name in whole) > 1e-3


def test_a_frozen_batchnorm_keeps_its_statistics_and_a_step_counts_once(one_thread):
    model, batch = _lift_training(freeze_norm=True)
    before = {name: value.clone() for name, value in model.named_buffers()}
    for start in (0, 0, 2):  # a second training of one iteration is a step, too
        Trainer(model, [batch, batch], _sgd(model, 0.1), accumulate=3).train(start, start + 1)
    assert model.steps == 3
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if "running" in name)


@pytest.mark.parametrize(("number", "sizes"), [(7, [2, 2, 3]), (3, [1, 1, 1]), (2, [1, 1])])
def test_parts_are_as_equal_as_can_be(number, sizes):
    seen = []

    class Recorder(Toy):
        def forward(self, batch):
            seen.append(len(batch))
            return super().forward(batch)

    batch = [{"x": torch.tensor(1.0 + i), "y": torch.tensor(2.0)} for i in range(number)]
    gradients, losses = _gradients(Recorder(), batch, 3)
    assert seen == sizes
    expected, expected_losses = _gradients(Toy(), batch, 1)
    assert gradients["weight"].item() == pytest.approx(expected["weight"].item(), rel=1e-6)
    assert losses == pytest.approx(expected_losses, rel=1e-6)


def test_clipping_is_that_of_clipped_adamw_and_the_norm_is_logged():
    class Sum(nn.Sequential):
        def forward(self, batch):
            return {"loss": super().forward(torch.stack(batch)).sum()}

    models = [Sum(nn.Linear(4, 4), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    data = [[torch.full((4,), scale)] for scale in (100.0, 0.001, 10.0)]
    clipping = ClippedAdamW(models[0].parameters(), lr=0.1, max_norm=0.5)
    plain = torch.optim.AdamW(models[1].parameters(), lr=0.1)
    norms = []
    for trainer in (Trainer(models[0], data, clipping), Trainer(models[1], data, plain, clip_norm=0.5)):
        trainer.train(0, 3)
        norms.append([value for value, _ in trainer.storage.history("grad_norm").values()])
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert norms[0] == norms[1] and norms[0][0] > 100 > norms[0][1]  # before clipping


def test_values_are_clipped_one_by_one():
    model = Toy()
    Trainer(model, [images(1, y=100.0)], _sgd(model), clip_value=0.25).train(0, 1)
    assert model.weight == 0.25


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "number of parts"),
        ({"clip_norm": 0.0}, "clip_norm: expected a positive"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "exclude each other"),
        ({"precision": "bf16"}, "expected one of float32, bfloat16, float16"),
        ({"precision": "float16"}, "needs a GPU"),
        ({"ema_decay": 1.0}, "between 0 and 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    model = Toy()
    with pytest.raises(ValueError, match=message):
        Trainer(model, [], _sgd(model), **options)


def test_clipping_twice_is_refused():
    model = Toy()
    with pytest.raises(ValueError, match=r"optimizer.max_norm=1 \(ClippedAdamW\)"):
        Trainer(model, [], ClippedAdamW(model.parameters()), clip_norm=1.0)


def test_bfloat16_trains_a_mask_rcnn_and_lift_on_a_cpu(tmp_path, request, one_thread):
    """Losses near those of float32, from bfloat16 activations, ROIAlign's and the mask head's among them."""
    write_synthetic_coco(tmp_path, num_train=4, num_val=2)
    folder = tmp_path / "synthetic"
    register_coco_instances("two_shapes", {}, str(folder / "annotations/instances_train.json"), str(folder / "train"))
    request.addfinalizer(lambda: (DatasetCatalog.remove("two_shapes"), MetadataCatalog.remove("two_shapes")))
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.py")
    net = cfg.model.backbone.net
    net.embed_dim, net.depth, net.num_heads = 32, 1, 2
    cfg.dataloader.train.total_batch_size, cfg.dataloader.train.dataset.names = 2, "two_shapes"
    batch = next(iter(instantiate(cfg.dataloader.train)))
    losses = {}
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = instantiate(cfg.model)
        seen = []
        model.backbone.lift.outc.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1].dtype))
        trainer = Trainer(
            model, itertools.repeat(batch), torch.optim.AdamW(model.parameters(), 1e-4), precision=precision
        )
        trainer.train(0, 3)
        losses[precision] = [value for value, _ in trainer.storage.history("total_loss").values()]
        assert set(seen) == {getattr(torch, precision)}
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]

    lift_losses = []
    for precision in ("float32", "bfloat16"):
        model, batch = _lift_training()
        trainer = Trainer(
            model, itertools.repeat(batch), torch.optim.AdamW(model.lift.parameters(), 3e-3), precision=precision
        )
        trainer.train(0, 8)
        lift_losses.append([value for value, _ in trainer.storage.history("total_loss").values()])
    for single, half in zip(*lift_losses, strict=True):
        assert half == pytest.approx(single, rel=0.02)
    assert lift_losses[1][-1] < 0.97 * lift_losses[1][0] and lift_losses[0] != lift_losses[1]


@pytest.mark.parametrize(
    ("amp", "precision", "right"),
    [(False, "float32", True), (False, "bfloat16", True), (True, "bfloat16", True), (True, "float32", False)],
)
def test_amp_and_precision_must_not_contradict(amp, precision, right, tmp_path):
    cfg = toy_config(tmp_path, amp={"enabled": amp}, trainer=L(Trainer)(precision=precision), max_iter=1)
    if right:
        do_train(ANEW, cfg)
    else:
        with pytest.raises(ValueError, match="train.amp.enabled=True asks for mixed precision"):
            do_train(ANEW, cfg)


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.trained = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)


def test_ema_is_what_it_says():
    model = WithNorm()
    ema = EMA(model, 0.5)
    expected = {}
    for t in range(20):
        for i, value in enumerate((*model.trained.parameters(), model.norm.running_mean)):
            nn.init.normal_(value, mean=float(i))
        model.norm.num_batches_tracked += 1
        decay = min(0.5, (1 + t) / (10 + t))
        for name, value in (("trained.weight", model.trained.weight), ("norm.running_mean", model.norm.running_mean)):
            now = value.detach().double()
            expected[name] = now if t == 0 else decay * expected[name] + (1 - decay) * now
        ema.update()
    state = ema.state_dict()
    assert state["updates"] == 20
    for name, value in expected.items():
        torch.testing.assert_close(state["averages"][name].double(), value, rtol=1e-5, atol=1e-6)
    # what is frozen is not held twice, and what is counted is not averaged
    assert set(state["averages"]) == {
        "trained.weight", "trained.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"
    }  # fmt: skip


def test_averaged_weights_are_taken_off_again_whatever_happens():
    model = WithNorm()
    ema = EMA(model, 0.9)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.applied():  # there is none yet
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    ema.update()
    nn.init.zeros_(model.trained.weight)
    with pytest.raises(KeyboardInterrupt), ema.applied():
        assert torch.equal(model.trained.weight, own["trained.weight"])
        raise KeyboardInterrupt
    assert not model.trained.weight.any()


def test_averages_are_of_a_bfloat16_model_in_float32():
    model = Toy().bfloat16()
    ema = EMA(model, 0.999)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        ema.update()
    assert ema.state_dict()["averages"]["weight"].item() == pytest.approx(1 + 9 / 11, rel=1e-6)
    with ema.applied():
        assert model.weight.dtype == torch.bfloat16
    assert model.weight == 2


def _files(folder):
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pth")}


def test_the_averaged_weights_are_evaluated_and_written(tmp_path):
    do_train(ANEW, toy_config(tmp_path, trainer=L(Trainer)(ema_decay=0.9), eval_period=5))
    files = _files(tmp_path)
    own, averaged = (files[name]["model"]["weight"].item() for name in ("model_final.pth", "model_ema.pth"))
    assert 0 < averaged < own and files["model_final.pth"]["trainer"]["ema"]["updates"] == 10
    assert files["model_final.pth"]["trainer"]["ema"]["averages"]["weight"] == averaged
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    evaluated = {
        line["iteration"]: line["toy/weight"]
        for line in map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
        if "toy/weight" in line
    }
    assert evaluated.keys() == {4, 10} and evaluated[10] == pytest.approx(averaged)
    assert evaluated[4] == pytest.approx(files["model_0000004.pth"]["trainer"]["ema"]["averages"]["weight"].item())


def test_resumed_it_ends_as_without_an_interruption(tmp_path):
    def config(name, **loader):
        cfg = toy_config(tmp_path / name, trainer=L(Trainer)(ema_decay=0.9, accumulate=2, clip_norm=0.5))
        cfg.train.checkpointer.period = 6  # the loader begins anew on resume, and its batches come round after three
        cfg.dataloader.train.update(loader)
        return cfg

    do_train(ANEW, config("whole"))
    with pytest.raises(FloatingPointError):
        do_train(ANEW, config("parts", bad_iteration=8))
    do_train(RESUME, config("parts"))
    whole, parts = _files(tmp_path / "whole"), _files(tmp_path / "parts")
    for name in ("model_final.pth", "model_ema.pth"):
        assert torch.equal(whole[name]["model"]["weight"], parts[name]["model"]["weight"])
    assert whole["model_final.pth"]["trainer"] == parts["model_final.pth"]["trainer"]  # optimizer and average


def test_an_average_may_begin_or_end_with_a_resume(tmp_path, caplog):
    def train(iterations, args, **options):
        caplog.clear()
        do_train(args, toy_config(tmp_path, max_iter=iterations, trainer=L(Trainer)(**options)))
        return _files(tmp_path)["model_final.pth"]["trainer"]

    assert "ema" not in train(5, ANEW)
    state = train(10, RESUME, ema_decay=0.9)
    assert state["ema"]["updates"] == 5 and "begins with this resume" in caplog.text
    assert "ema" not in train(15, RESUME) and "averaged weights are dropped" in caplog.text
    assert state["iteration"] == 9


def test_averages_of_other_parameters_are_refused():
    model = WithNorm()
    ema = EMA(model, 0.9)
    ema.update()
    model.trained.requires_grad_(False)
    with pytest.raises(ValueError, match=r"2 are only in one of them, trained.bias, trained.weight"):
        EMA(model, 0.9).load_state_dict(ema.state_dict())


def test_upstreams_trainer_has_no_average():
    model = Toy()
    with averaged_weights(SimpleTrainer(model, [], _sgd(model))):
        assert model.weight == 0


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"ema_decay": 0.9}])
def test_a_loss_that_is_not_finite_ends_the_training_and_names_the_images(options, tmp_path):
    cfg = toy_config(tmp_path, trainer=L(Trainer)(**options), eval_period=2)
    cfg.dataloader.train.bad_iteration = 9  # the last one
    with pytest.raises(FloatingPointError) as error:
        do_train(ANEW, cfg)
    message = str(error.value)
    assert "at iteration 9: loss=nan on these images:" in message and "2.jpg (image id 2)" in message
    assert ("0.jpg" in message) is ("accumulate" not in options)  # the first part was fine
    assert f"The last checkpoint is '{tmp_path}/model_0000004.pth': --resume goes on from there" in message
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000004.pth"]
    lines = list(map(json.loads, (tmp_path / "metrics.json").read_text().splitlines()))
    # what was measured before is written, and nothing is evaluated after it
    assert max(line["iteration"] for line in lines if "total_loss" in line) == 8
    assert max(line["iteration"] for line in lines if "toy/weight" in line) == 7


def test_a_gradient_that_is_not_finite_does_too():
    class Root(Toy):
        def forward(self, batch):
            return {"loss": self.weight.square().sqrt()}  # 0, and 0 · ∞

    model = Root()
    trainer = Trainer(model, [images(2)], _sgd(model))
    with pytest.raises(FloatingPointError, match=r"(?s)norm of nan at iteration 0: one of these images:.*0.jpg.*1.jpg"):
        trainer.train(0, 1)
    assert model.weight == 0


def test_metrics_of_a_model_that_gives_one_loss():
    class One(Toy):
        def forward(self, batch):
            return super().forward(batch)["loss"]

    model = One()
    trainer = Trainer(model, batches(), _sgd(model, 0.1), accumulate=2)
    trainer.train(0, 2)
    assert trainer.storage.latest()["total_loss"][0] < 4 and "loss" not in trainer.storage.latest()


def test_two_processes(tmp_path):
    """They have the gradients of one; and what fails in one ends both, at once, with the other's image named."""
    command = [sys.executable, "-m", "tests.engine.two_processes", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    trained, failed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("trained", "failed"))
    model = Toy()
    Trainer(model, batches(), _sgd(model, 0.1)).train(0, 4)
    assert trained["weights"] == pytest.approx([model.weight.item()] * 2, rel=1e-6)
    assert trained["exchanges"] == 4  # of gradients: one in each iteration, and not one for each part
    assert done.returncode != 0
    assert "at iteration 2: loss=nan on these images:\n  2.jpg (image id 2)\nThe weights" in done.stderr
    assert failed["seconds"] < 10 and failed["weights"][0] == failed["weights"][1]


def test_lift_counts_its_steps_without_a_trainer():
    """Every forward is one; in an iteration that stands still, the first alone."""
    model, batch = _lift_training()
    model.train()
    for _ in range(2):
        model(batch[:1])
    assert model.steps == 2
    with EventStorage(5):
        for _ in range(3):
            model(batch[:1])
    assert model.steps == 3
