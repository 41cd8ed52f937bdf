import pytest
import torch
from detectron2.modeling.backbone.utils import window_unpartition
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from torch.testing import assert_close

from lift_det import ViT
from lift_det.modeling.backbones import FACETS
from lift_det.modeling.backbones import vit as vit_module

pytestmark = pytest.mark.usefixtures("one_thread")

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


def _pair(use_act_checkpoint=False, **kwargs):
    torch.manual_seed(0)
    upstream = UpstreamViT(**(ARGUMENTS | kwargs))
    for p in upstream.parameters():  # zeros would hide mistakes
        torch.nn.init.normal_(p, std=0.1)
    ours = ViT(**(ARGUMENTS | kwargs), use_act_checkpoint=use_act_checkpoint)
    ours.load_state_dict(upstream.state_dict(), strict=True)
    return upstream, ours


def _same_gradients(upstream, ours):
    largest = max(p.grad.abs().max().item() for p in upstream.parameters())
    for (name, a), (_, b) in zip(upstream.named_parameters(), ours.named_parameters(), strict=True):
        # with one row of tokens, its table's gradient is zero but for rounding
        scale = max(a.grad.abs().max().item(), 1e-3 * largest)
        assert_close(b.grad / scale, a.grad / scale, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("size", [(32, 96), (48, 48), (256, 112)])
@pytest.mark.parametrize("arguments", [{}, dict(qkv_bias=False), dict(use_rel_pos=False), dict(window_size=0)])
def test_is_upstreams(size, arguments, monkeypatch):
    """With gradients, and without, where the CPU computes the map in pieces."""
    monkeypatch.setattr(vit_module, "_CPU_TOKENS", 30)
    upstream, ours = _pair(**arguments)
    x = torch.randn(2, 3, *size)
    expected = upstream(x)["map"]
    assert_close(ours(x)["map"], expected, atol=2e-6, rtol=1e-5)
    with torch.no_grad():
        assert_close(ours.eval()(x)["map"], expected, atol=2e-6, rtol=1e-5)
    assert ours.output_shape() == upstream.output_shape()
    weights = torch.randn_like(expected)
    for vit in (upstream, ours):
        (vit(x)["map"] * weights).sum().backward()
    _same_gradients(upstream, ours)


def test_layers_and_facets_are_upstreams():
    upstream, ours = _pair()
    x = torch.randn(2, 3, 64, 80)  # windows of 3 × 3 patches are padded
    outputs = {}
    for i, block in enumerate(upstream.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: outputs.update({(i, "token"): out}))
        block.attn.qkv.register_forward_hook(
            lambda m, a, out, i=i: outputs.update({(i, FACETS[j + 1]): x for j, x in enumerate(out.chunk(3, -1))})
        )
    with torch.no_grad():
        upstream(x)
        for (layer, facet), expected in outputs.items():
            if facet != "token" and layer != 1:
                expected = window_unpartition(expected, 3, (6, 6), (4, 5))
            assert expected.std() > 0.05
            assert_close(ours.feature_map(x, layer, facet), expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-5)
    assert len(outputs) == 12


def test_stochastic_depth_drops_whole_branches():
    upstream, ours = _pair(drop_path_rate=0.5)
    x, maps = torch.randn(8, 3, 64, 64), []
    for vit in (upstream, ours):
        torch.manual_seed(0)
        maps.append(vit.train()(x)["map"])
    assert_close(*maps, atol=2e-6, rtol=1e-5)


def test_under_autocast_errs_no_more_than_upstream():
    upstream, ours = _pair()
    x = torch.randn(1, 3, 112, 112)
    exact = upstream.double()(x.double())["map"]
    upstream.float()
    errors = []
    for vit in (upstream, ours):
        with torch.autocast("cpu", torch.bfloat16):
            out = vit(x)["map"]
            with torch.no_grad():
                assert_close(vit.eval()(x)["map"], out, atol=0.05, rtol=0.05)
        out.square().mean().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in vit.parameters())
        errors.append((out.double() - exact).norm() / exact.norm())
    assert errors[1] < 1.5 * errors[0]


def test_compiles_into_one_graph():
    _, ours = _pair()
    x = torch.randn(1, 3, 64, 80)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    expected = ours(x)["map"]
    with torch.no_grad():
        assert_close(compiled.eval()(x)["map"], expected, atol=2e-6, rtol=1e-5)
    ours.train()
    assert_close(compiled(x)["map"], expected, atol=2e-6, rtol=1e-5)
    expected.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    compiled(x)["map"].square().sum().backward()
    for name, p in ours.named_parameters():
        assert_close(p.grad, wanted[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def _kept_elements(vit, x):
    """Elements of the tensors that the forward pass keeps for the backward."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = vit.train()(x)["map"]
    out.square().sum().backward()
    return sum(sizes.values())


def test_memory_kept_for_the_backward():
    upstream, ours = _pair(window_size=0)
    x = torch.randn(1, 3, 448, 448)
    assert _kept_elements(ours, x) < 0.4 * _kept_elements(upstream, x)
    plain, checkpointed = _pair(use_act_checkpoint=True)
    x = torch.randn(1, 3, 64, 64)
    assert _kept_elements(checkpointed, x) < 0.5 * _kept_elements(plain, x)
    _same_gradients(plain, checkpointed)
