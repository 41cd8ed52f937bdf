import pytest
import torch
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from torch.testing import assert_close

from lift_det import ViT

ARGUMENTS = dict(
    img_size=64,
    patch_size=16,
    embed_dim=32,
    depth=3,
    num_heads=2,
    use_rel_pos=True,
    rel_pos_zero_init=False,
    window_size=3,
    window_block_indexes=[0, 2],
    residual_block_indexes=[1],
    out_feature="map",
)


def _pair(**kwargs):
    upstream, ours = UpstreamViT(**ARGUMENTS), ViT(**ARGUMENTS, **kwargs)
    ours.load_state_dict(upstream.state_dict(), strict=True)
    return upstream, ours


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (16, 80)])
def test_is_upstreams(size):
    upstream, ours = _pair()
    x = torch.randn(2, 3, *size)
    assert torch.equal(upstream.eval()(x)["map"], ours.eval()(x)["map"])
    assert ours.output_shape() == upstream.output_shape()


def test_checkpointing_changes_neither_names_nor_gradients():
    plain, checkpointed = _pair(use_act_checkpoint=True)
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    x = torch.randn(1, 3, 64, 64)
    saved = []
    for vit in (plain, checkpointed):
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = vit.train()(x)["map"]
        out.square().sum().backward()
        saved.append(count)
    for (name, a), (_, b) in zip(plain.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert saved[1] < 0.5 * saved[0]  # what it is for


def test_part_of_a_patch_is_refused():
    with pytest.raises(ValueError, match="patches of 16 pixels.*72×64"):
        ViT(**ARGUMENTS)(torch.zeros(1, 3, 72, 64))
