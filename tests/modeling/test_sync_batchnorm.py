"""Synchronised BatchNorm."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from torch import nn

from lift_det import LiFT
from lift_det.modeling.norms import synchronise_batchnorm


def _two_processes(monkeypatch, backend):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)


@pytest.mark.parametrize("backend, kind", [("nccl", "SyncBatchNorm"), ("gloo", "_SyncBatchNorm2d")])
def test_replaced_in_place(backend, kind, monkeypatch):
    torch.manual_seed(0)
    lift = LiFT(8, 8, residual=False)
    lift.others = nn.ModuleList([nn.GroupNorm(2, 4), FrozenBatchNorm2d(4)])  # not replaced
    images, features = torch.randn(2, 3, 32, 32), torch.randn(2, 8, 4, 4)
    for _ in range(3):
        lift(images, features)  # statistics other than the initial ones
    lift.eval()
    lift.up1.train()
    lift.image_convs_1[1].weight.requires_grad_(False)
    names, tensors = list(lift.state_dict()), [*lift.parameters(), *lift.buffers()]
    modes = {name: module.training for name, module in lift.named_modules()}

    _two_processes(monkeypatch, backend)
    synchronise_batchnorm(lift)
    assert sum(type(module).__name__ == kind for module in lift.modules()) == 5
    assert [type(module) for module in lift.others] == [nn.GroupNorm, FrozenBatchNorm2d]
    assert list(lift.state_dict()) == names
    assert all(a is b for a, b in zip([*lift.parameters(), *lift.buffers()], tensors, strict=True))
    assert {name: module.training for name, module in lift.named_modules()} == modes
    again = list(lift.modules())
    synchronise_batchnorm(lift)
    assert all(a is b for a, b in zip(lift.modules(), again, strict=True))

    del lift.others
    plain = LiFT(8, 8, residual=False).eval()
    plain.load_state_dict(lift.state_dict())
    torch.testing.assert_close(lift.eval()(images, features), plain(images, features), rtol=0, atol=1e-6)


def test_statistics_of_half_precision_do_not_cancel(monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm2d(3))
    _two_processes(monkeypatch, "gloo")
    # two processes with the same images
    monkeypatch.setattr("detectron2.layers.batch_norm.differentiable_all_reduce", lambda x: 2 * x)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    synchronise_batchnorm(module)
    images = (5 + 0.3 * torch.randn(4, 3, 16, 16)).bfloat16()
    output = module(images).detach()
    variance = images.float().var(dim=(0, 2, 3))
    torch.testing.assert_close(module[0].running_var, 0.9 + 0.1 * variance, rtol=1e-3, atol=1e-4)
    assert output.dtype == torch.bfloat16 and output.float().std() == pytest.approx(1, abs=0.02)
