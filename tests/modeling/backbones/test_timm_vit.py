"""TimmViT against timm itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lift_det import TimmViT
from lift_det.checkpoint import CheckpointError
from lift_det.modeling.backbones import timm_vit
from tests.modeling.deterministic import randomise

# timm's name, what makes it small, its prefix tokens
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4}
ARCHITECTURES = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}, 1),
    "dinov2": ("vit_small_patch14_dinov2", {**SMALL, "img_size": 70}, 1),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 70}, 5),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": 64}, 2),
    "clip": ("vit_base_patch32_clip_224", {**SMALL, "img_size": 128}, 1),
    "siglip": ("vit_base_patch16_siglip_224", {**SMALL, "img_size": 64}, 0),
    "average_pooled": ("vit_wee_patch16_reg1_gap_256", {**SMALL, "img_size": 64}, 1),
    "parallel": ("vit_small_patch16_18x2_224", {**SMALL, "img_size": 64}, 1),
    "eva02": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 70}, 1),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64}, 5),
    "rope_mixed": ("vit_small_patch16_rope_mixed_224", {**SMALL, "img_size": 64}, 1),
    "qk_norm": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "qk_norm": True}, 1),
    "post_norm": ("vit_base_patch16_rpn_224", {**SMALL, "img_size": 64, "fc_norm": False}, 0),
    "eva02_split": ("eva02_base_patch14_224", {**SMALL, "img_size": 70, "use_fc_norm": False}, 1),
    "eva_post_norm": ("eva02_tiny_patch14_224", {**SMALL, "img_size": 70, "use_post_norm": True}, 1),
}
every_architecture = pytest.mark.parametrize("kind", list(ARCHITECTURES))

pytestmark = pytest.mark.usefixtures("one_thread")


def build(kind: str, **kwargs) -> TimmViT:
    name, small, _ = ARCHITECTURES[kind]
    return randomise(TimmViT(name, **{**small, **kwargs}))


def images(model: TimmViT, rows: int, columns: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, rows * model.patch_size, columns * model.patch_size, generator=generator)


def timm_twin(kind: str, model: TimmViT) -> nn.Module:
    name, small, _ = ARCHITECTURES[kind]
    twin = timm.create_model(name, dynamic_img_size=True, **small).eval()
    assert not twin.load_state_dict(model.vit.state_dict(), strict=False).unexpected_keys
    return twin


@every_architecture
@pytest.mark.parametrize("final_norm", [True, False])
def test_tokens_of_every_layer(kind: str, final_norm: bool) -> None:
    model = build(kind, final_norm=final_norm)
    twin = timm_twin(kind, model)
    for grid in ((4, 4), (7, 2)):
        x = images(model, *grid)
        with torch.no_grad():
            norm = final_norm and model.has_final_norm
            expected = twin.forward_intermediates(x, indices=[0, 1], norm=norm, intermediates_only=True)
            for layer in (0, 1):
                assert expected[layer].std() > 0.1
                got = model.feature_map(x, layer)
                torch.testing.assert_close(got, expected[layer], atol=1e-5, rtol=1e-5)
                assert torch.equal(model.feature_map(x, layer - 2), got)
            assert torch.equal(model(x)["last_feat"], got)
    # DistributedDataParallel waits forever for a parameter without a gradient
    out = model.train()(x)["last_feat"]
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@every_architecture
def test_attributes_come_from_the_model(kind: str) -> None:
    name, _, prefix = ARCHITECTURES[kind]
    model = build(kind, out_feature="map")
    assert (model.embed_dim, model.depth, model.num_heads, model.num_prefix_tokens) == (48, 2, 4, prefix)
    assert model.patch_size == model.size_divisibility == model.vit.patch_embed.proj.kernel_size[0]
    assert model.output_shape()["map"] == ShapeSpec(channels=48, stride=model.patch_size)
    statistics = timm.get_pretrained_cfg(name)
    assert model.pixel_mean == pytest.approx([255 * m for m in statistics.mean])
    assert model.pixel_std == pytest.approx([255 * s for s in statistics.std])


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind != "parallel"])
def test_facets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys before their norm and rotation, and values, in a block of timm."""
    model = build(kind)
    twin, x = timm_twin(kind, model), images(model, 3, 4)
    original, values, seen = F.scaled_dot_product_attention, [], {}
    attention = twin.blocks[1].attn
    attention.q_norm.register_forward_pre_hook(lambda module, args: seen.update(query=args[0]))
    attention.k_norm.register_forward_pre_hook(lambda module, args: seen.update(key=args[0]))
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(
            F, "scaled_dot_product_attention", lambda q, k, v, **kw: values.append(v) or original(q, k, v, **kw)
        )
        twin.forward_features(x)
    for facet, heads in {**seen, "value": values[1]}.items():
        tokens = heads.transpose(1, 2).flatten(2)[:, ARCHITECTURES[kind][2] :]  # (N, HW, C)
        with torch.no_grad():
            got = model.feature_map(x, 1, facet)
        assert tokens.std() > 0.1
        torch.testing.assert_close(got.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-5)


def test_blocks_without_separate_projections() -> None:
    with pytest.raises(ValueError, match="Parallel.*value"):
        build("parallel").resolve(1, "value", None)


@pytest.mark.parametrize("kind", ["dinov2_registers", "rope_mixed"])
def test_act_checkpoint_gives_the_same_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = timm_vit.checkpoint_activations
    monkeypatch.setattr(
        timm_vit, "checkpoint_activations", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    gradients = []
    for use in (False, True):
        model = build(kind, use_act_checkpoint=use, drop_path_rate=0.5).train()
        x = images(model, 3, 4).requires_grad_()
        torch.manual_seed(0)  # the recomputation has to draw the same stochastic depth
        out = model(x)["last_feat"]
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients.append({"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}})
    assert len(calls) == model.depth
    model.eval()(x)
    assert len(calls) == model.depth
    for name, expected in gradients[0].items():
        scale = max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6 * scale, rtol=1e-6, msg=name)


# --- weights -------------------------------------------------------------------------------------------------------


def save_timm_model(path: Path, kind: str, **kwargs) -> nn.Module:
    name, small, _ = ARCHITECTURES[kind]
    model = randomise(timm.create_model(name, dynamic_img_size=True, **{**small, **kwargs}), seed=5)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(path))
    return model


@every_architecture
@pytest.mark.parametrize("final_norm", [True, False])
def test_checkpoint_with_its_head(kind: str, final_norm: bool, tmp_path: Path) -> None:
    source = {k: v.half() for k, v in save_timm_model(tmp_path / "timm.safetensors", kind).state_dict().items()}
    torch.save({"model": {f"module.{k}": v for k, v in source.items()}}, tmp_path / "vit.pth")
    name, small, _ = ARCHITECTURES[kind]
    model = TimmViT(name, checkpoint=tmp_path / "vit.pth", final_norm=final_norm, **small)
    assert model.weights_given and all(p.requires_grad for p in model.parameters())
    for key, value in model.vit.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, source[key].float()), key
    assert {name.split(".")[0] for name in source.keys() - model.vit.state_dict().keys()} <= {
        "head", "head_dist", "fc_norm", "attn_pool", *([] if final_norm else ["norm"])
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vit", "siglip", "dinov3"])
def test_pretrained_is_timms_own_loading(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    source = save_timm_model(path, kind)
    name, small, _ = ARCHITECTURES[kind]
    # timm reads this file instead of downloading one
    overlay = {"file": str(path)}
    model = TimmViT(name, pretrained=True, final_norm=False, pretrained_cfg_overlay=overlay, **small)
    for key, value in model.vit.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("kind", ["dinov2_registers", "deit_distilled", "siglip", "eva02"])
def test_positions_of_another_grid_are_resized(kind: str, tmp_path: Path) -> None:
    name, small, _ = ARCHITECTURES[kind]
    patch = timm.create_model(name, **small).patch_embed.patch_size[0]
    source = save_timm_model(tmp_path / "vit.safetensors", kind, img_size=8 * patch)
    model = TimmViT(name, checkpoint=str(tmp_path / "vit.safetensors"), **small)
    with torch.no_grad():
        source.set_input_size(img_size=small["img_size"])
    torch.testing.assert_close(model.vit.pos_embed, source.pos_embed, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"embed_dim": 64}, ["expected (1, 1, 64), got (1, 1, 48)"]),
        ({"depth": 1}, ["blocks.1."]),
        ({"depth": 3}, ["blocks.2."]),
        ({"patch_size": 10}, ["14×14", "10×10"]),
        ({"reg_tokens": 4}, ["vit.safetensors"]),
        ({"init_values": 0}, ["ls1.gamma"]),
        ({"qkv_bias": False}, ["attn.qkv.bias"]),
    ],
)
def test_checkpoint_of_another_vit(changed: dict, names: list[str], tmp_path: Path) -> None:
    save_timm_model(tmp_path / "vit.safetensors", "dinov2")
    name, small, _ = ARCHITECTURES["dinov2"]
    with pytest.raises(CheckpointError) as error:
        TimmViT(name, checkpoint=tmp_path / "vit.safetensors", **{**small, **changed})
    assert all(text in str(error.value) for text in names)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"norm.weight": None}, "norm.weight"),
        ({"pos_embed": None}, "pos_embed"),
        ({"blocks.0.extra": torch.zeros(1)}, "blocks.0.extra"),
        ({"blocks.0.ls1.gamma": torch.zeros(48)}, "ls1.gamma"),
        ({"pos_embed": torch.zeros(1, 18, 48)}, "vit.pth"),  # 17 without the class token's, which is no square
    ],
)
def test_missing_and_unknown_tensors(change: dict, name: str, tmp_path: Path) -> None:
    state = {**build("vit").vit.state_dict(), **change}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "vit.pth")
    architecture, small, _ = ARCHITECTURES["vit"]
    with pytest.raises(CheckpointError, match=name):
        TimmViT(architecture, checkpoint=tmp_path / "vit.pth", **small)


def test_real_weights(shared: Path) -> None:
    path = shared / "weights/vit_small_patch14_fp16.safetensors"
    model = TimmViT("vit_small_patch14_dinov2.lvd142m", checkpoint=path).eval()
    assert (model.embed_dim, model.depth, model.num_heads, model.patch_size) == (384, 12, 6, 14)
    twin = timm.create_model("vit_small_patch14_dinov2.lvd142m", dynamic_img_size=True, num_classes=0).eval()
    twin.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=True)
    x = images(model, 10, 16, batch=1)
    with torch.no_grad():
        got, expected = model(x)["last_feat"], twin.forward_features(x)[:, 1:]
    assert torch.isfinite(got).all() and got.std() > 0.5
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer"),
        ("resnet18", {}, "ResNet"),
        ("samvit_base_patch16", {}, "VisionTransformerSAM"),
        ("beit_base_patch16_224", {}, "Beit"),
        ("vit_base_r50_s16_224", {}, "HybridEmbed"),
        ("vit_smal_patch14_dinov2", {}, "vit_small_patch14_dinov2"),
        ("vit_small_patch14_dinov2.lvd142", {}, "lvd142"),
        ("vit_tiny_patch16_224", {"pretrained": True, "checkpoint": "vit.pth"}, "vit.pth"),
        ("vit_tiny_patch16_224", {"patch_size": (16, 8)}, "16×8"),
    ],
)
def test_wrong_models_and_arguments(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmViT(name, **options)


def test_images_of_partial_patches() -> None:
    model = build("dinov2")
    for height, width in ((28, 41), (41, 28)):
        with pytest.raises(ValueError, match=f"{height}×{width}"):
            model(torch.zeros(1, 3, height, width))
