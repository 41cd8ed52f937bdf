import argparse
import json

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn
from torch.multiprocessing.spawn import ProcessRaisedException

from lift_det import LiFT, ViT
from lift_det.engine import ClippedAdamW, Trainer, do_train, launch, wrap_ddp
from lift_det.modeling import LiFTPretraining
from tests.engine.toy import Toy, batches, images, logged, toy_config, train_twice

RESUME, ANEW = argparse.Namespace(resume=True), argparse.Namespace(resume=False)


def _sgd(model, lr=1.0):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)


def _lift_training():
    torch.manual_seed(0)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=64)
    objectives = dict(full_from_half=1.0, half_from_quarter=1.0, full_from_quarter=1.0)
    statistics = [120.0] * 3, [60.0] * 3
    model = LiFTPretraining(net, LiFT(32, 8), *statistics, objectives=objectives, freeze_batchnorm=True)
    nn.init.normal_(model.lift.outc.weight, std=0.1)
    for module in model.lift.modules():
        if isinstance(module, nn.BatchNorm2d):  # of a trained LiFT
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model, [{"image": torch.rand(3, 64, 64) * 255} for _ in range(8)]


def _gradients(model, batch, accumulate, **options):
    """After one step of SGD at a rate of 1: what the weights lost; and the logged losses."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(model, [batch], _sgd(model), accumulate=accumulate, **options)
    trainer.train(0, 1)
    losses = {name: value for name, (value, _) in trainer.storage.latest().items() if "loss" in name}
    return {name: before[name] - p.detach() for name, p in model.named_parameters() if p.requires_grad}, losses


def _files(folder):
    return {path.name: torch.load(path, weights_only=True) for path in folder.glob("*.pth")}


def test_four_parts_of_two_have_the_gradients_of_eight(one_thread):
    (one, batch), (model, _) = _lift_training(), _lift_training()
    whole, whole_losses = _gradients(one, batch, 1)
    parts, losses = _gradients(model, batch, 4)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-2
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert losses == pytest.approx(whole_losses, rel=1e-5) and len(losses) == 4
    assert model.steps == 1  # of the optimizer
    before = dict(_lift_training()[0].named_buffers())  # the statistics of BatchNorm are frozen
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if "running" in name)


def test_parts_are_as_equal_as_possible():
    seen, model = [], Toy()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    batch = [{"x": torch.tensor(1.0 + i), "y": torch.tensor(2.0)} for i in range(7)]
    gradients, losses = _gradients(model, batch, 3)
    expected, expected_losses = _gradients(Toy(), batch, 1)
    assert gradients["weight"].item() == pytest.approx(expected["weight"].item(), rel=1e-6)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    _gradients(model, batch[:2], 3)
    assert seen == [2, 2, 3, 1, 1]


def test_clipping_with_the_trainer_or_clipped_adamw():
    class Sum(nn.Sequential):
        def forward(self, batch):
            return super().forward(torch.stack(batch)).sum()  # one loss instead of a dict

    models = [Sum(nn.Linear(4, 4), nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    data = [[torch.full((4,), scale)] for scale in (100.0, 0.001, 10.0)]
    clipping = ClippedAdamW(models[0].parameters(), lr=0.1, max_norm=0.5)
    plain = torch.optim.AdamW(models[1].parameters(), lr=0.1)
    norms = []
    for trainer in (Trainer(models[0], data, clipping), Trainer(models[1], data, plain, clip_norm=0.5)):
        trainer.train(0, 3)
        norms.append([value for value, _ in trainer.storage.history("grad_norm").values()])
        assert "total_loss" in trainer.storage.latest()
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert norms[0] == norms[1] and norms[0][0] > 100 > norms[0][1]  # before clipping
    model = Toy()
    Trainer(model, [images(1, y=100.0)], _sgd(model), clip_value=0.25).train(0, 1)
    assert model.weight == 0.25


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "clip_norm and clip_value"),
        ({"clip_norm": 1.0}, "max_norm"),  # of a ClippedAdamW
        ({"precision": "bf16"}, "float32, bfloat16, float16"),
        ({"precision": "float16"}, "GPU"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_wrong_options_are_refused(options, names):
    model = Toy()
    with pytest.raises(ValueError, match=names):
        Trainer(model, [], ClippedAdamW(model.parameters()) if names == "max_norm" else _sgd(model), **options)


def test_bfloat16_is_autocast():
    class Linear(nn.Linear):
        def forward(self, batch):
            output = super().forward(torch.stack(batch))
            assert output.dtype == torch.bfloat16
            return {"loss": output.sum()}

    model = Linear(4, 4)
    gradients, _ = _gradients(model, [torch.ones(4)], accumulate=1, precision="bfloat16")
    assert model.weight.dtype == torch.float32 and torch.allclose(gradients["weight"], torch.ones(4, 4))


def test_amp_and_precision_must_not_contradict(tmp_path):
    do_train(ANEW, toy_config(tmp_path, amp={"enabled": True}, trainer=L(Trainer)(precision="bfloat16"), max_iter=1))
    with pytest.raises(ValueError, match="train.amp.enabled"):
        do_train(ANEW, toy_config(tmp_path, amp={"enabled": True}, trainer=L(Trainer)(precision="float32")))


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.trained = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch):
        return {"loss": self.norm(self.trained(self.frozen(torch.stack(batch)))).exp().mean()}


def test_averages_of_weights_and_statistics(one_thread):
    torch.manual_seed(0)
    model = WithNorm()
    trainer = Trainer(model, [list(torch.randn(4, 2)) for _ in range(20)], _sgd(model, 0.1), ema_decay=0.5)
    run_step, expected = trainer.run_step, {}

    def averaging_step():
        run_step()
        decay = min(0.5, (1 + trainer.iter) / (10 + trainer.iter)) if trainer.iter else 0.0
        for name in ("trained.weight", "norm.running_mean"):
            expected[name] = decay * expected.get(name, 0.0) + (1 - decay) * model.state_dict()[name].double()

    trainer.run_step = averaging_step
    trainer.train(0, 20)
    averaged = trainer.ema.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name].double(), value, rtol=1e-5, atol=1e-6)
    assert averaged["norm.num_batches_tracked"] == 20
    assert not any(name.startswith("frozen") for name in trainer.state_dict()["ema"]["averages"])


def test_the_averaged_weights_are_evaluated_and_written(tmp_path):
    do_train(ANEW, toy_config(tmp_path, trainer=L(Trainer)(ema_decay=0.9), eval_period=5))
    files = _files(tmp_path)
    own, averaged = (files[name]["model"]["weight"].item() for name in ("model_final.pth", "model_ema.pth"))
    assert 0 < averaged < own
    evaluated = logged(tmp_path, "toy/weight")
    assert evaluated.keys() == {4, 10} and evaluated[10] == pytest.approx(averaged)
    assert evaluated[4] == pytest.approx(files["model_0000004.pth"]["trainer"]["ema"]["averages"]["weight"].item())


def test_resumed_it_ends_as_without_an_interruption(tmp_path):
    def config(name, **loader):
        cfg = toy_config(tmp_path / name, trainer=L(Trainer)(ema_decay=0.9, accumulate=2, clip_norm=0.5))
        cfg.train.checkpointer.period = 6  # the loader starts again on resume, and its batches repeat after three
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


def test_an_average_may_start_or_end_with_a_resume(tmp_path):
    def train(iterations, args, **options):
        do_train(args, toy_config(tmp_path, max_iter=iterations, trainer=L(Trainer)(**options)))
        return _files(tmp_path)["model_final.pth"]["trainer"]

    assert "ema" not in train(5, ANEW)
    assert train(10, RESUME, ema_decay=0.9)["ema"]["updates"] == 5
    assert "ema" not in train(15, RESUME)


def test_averages_of_an_earlier_version_are_resumed():
    """They have the trained weights only."""
    source, target = WithNorm(), WithNorm()
    averages = {name: value.clone() + 1 for name, value in source.state_dict().items() if name.startswith("trained")}
    trainer = Trainer(target, [], _sgd(target), ema_decay=0.9)
    state = {**trainer.state_dict(), "ema": {"updates": 7, "averages": averages}}
    trainer.load_state_dict(state)
    for name, value in {**target.state_dict(), **averages}.items():
        assert torch.equal(trainer.ema.module.state_dict()[name], value), name
    state["ema"]["averages"]["no_more.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="no_more.weight"):
        trainer.load_state_dict(state)


@pytest.mark.parametrize(("options", "bad_iteration"), [({}, 8), ({"accumulate": 2}, 8), ({"ema_decay": 0.9}, 9)])
def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_images(options, bad_iteration, tmp_path):
    cfg = toy_config(tmp_path, trainer=L(Trainer)(**options), eval_period=2)
    cfg.dataloader.train.bad_iteration = bad_iteration  # 9 is the last
    with pytest.raises(FloatingPointError) as error:
        do_train(ANEW, cfg)
    message = str(error.value)
    assert all(part in message for part in (str(bad_iteration), "nan", "2.jpg", "image id 2", "model_0000004.pth"))
    assert ("0.jpg" in message) is ("accumulate" not in options)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000004.pth"]
    # the metrics before it are written, and it is not evaluated
    assert max(logged(tmp_path, "total_loss")) == bad_iteration - 1 and max(logged(tmp_path, "toy/weight")) == 7


def test_a_gradient_that_is_not_finite_stops_the_training():
    class Root(Toy):
        def forward(self, batch):
            return {"loss": self.weight.square().sqrt()}  # 0, with a gradient of 0 · ∞

    model = Root()
    with pytest.raises(FloatingPointError, match=r"(?s)0.jpg.*1.jpg"):
        Trainer(model, [images(2)], _sgd(model)).train(0, 1)
    assert model.weight == 0


def test_two_processes(tmp_path):
    """They have the gradients of one; a failure in one stops both, and names the image of that one."""
    with pytest.raises(ProcessRaisedException) as error:
        launch(train_twice, 2, dist_url="auto", args=(str(tmp_path),))
    trained, failed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("trained", "failed"))
    model = Toy()
    Trainer(model, batches(), _sgd(model, 0.1)).train(0, 4)
    assert trained["weights"] == pytest.approx([model.weight.item()] * 2, rel=1e-6)
    assert trained["exchanges"] == 4  # of gradients: one per iteration, not one per part
    assert "2.jpg (image id 2)" in str(error.value) and "0.jpg" not in str(error.value)
    assert failed["seconds"] < 10 and failed["weights"][0] == failed["weights"][1]


@pytest.mark.parametrize(("trainer", "compressed"), [({"precision": "bfloat16"}, False), ({"accumulate": 2}, True)])
def test_gradients_are_compressed_in_float16_only(trainer, compressed, monkeypatch):
    seen = {}
    monkeypatch.setattr("detectron2.engine.defaults.create_ddp_model", lambda model, **options: seen.update(options))
    train = {"device": "cuda", "amp": {"enabled": True}, "ddp": {"fp16_compression": True}, "trainer": trainer}
    wrap_ddp(OmegaConf.create({"train": train}), nn.Linear(2, 2))
    assert seen == {"fp16_compression": compressed}
