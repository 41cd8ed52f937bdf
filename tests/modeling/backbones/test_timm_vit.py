"""TimmViT against timm itself, windows against the same block run on each window, and what it refuses."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lift_det import TimmViT
from lift_det.checkpoint import CheckpointError
from lift_det.modeling.backbones import timm_vit
from tests.modeling.deterministic import randomise

REAL_WEIGHTS = Path("../shared/weights/vit_small_patch14_fp16.safetensors")

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
}
every_architecture = pytest.mark.parametrize("kind", list(ARCHITECTURES))


pytestmark = pytest.mark.usefixtures("one_thread")


def build(kind: str, **kwargs) -> TimmViT:
    name, small, _ = ARCHITECTURES[kind]
    model = TimmViT(name, **{**small, **kwargs}).eval()
    randomise(model)
    return model


def images(model: TimmViT, rows: int, columns: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, rows * model.patch_size, columns * model.patch_size, generator=generator)


def timm_twin(kind: str, model: TimmViT) -> nn.Module:
    name, small, _ = ARCHITECTURES[kind]
    twin = timm.create_model(name, dynamic_img_size=True, **small).eval()
    assert not twin.load_state_dict(model.vit.state_dict(), strict=False).unexpected_keys
    return twin


# --- the map is timm's ---------------------------------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("norm", [True, False])
def test_map_is_timms(kind: str, norm: bool) -> None:
    model = build(kind, norm=norm)
    twin = timm_twin(kind, model)
    for grid in ((4, 4), (3, 6), (7, 2)):
        x = images(model, *grid)
        with torch.no_grad():
            got = model(x)["last_feat"]
            if norm:
                tokens = twin.forward_features(x)[:, ARCHITECTURES[kind][2] :]
                expected = tokens.transpose(1, 2).reshape(2, model.embed_dim, *grid)
            else:
                expected = twin.forward_intermediates(x, indices=1, norm=False, intermediates_only=True)[0]
        assert got.shape == (2, 48, *grid)
        assert expected.std() > 0.1
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@every_architecture
def test_facts_come_from_the_model(kind: str) -> None:
    name, _, prefix = ARCHITECTURES[kind]
    model = build(kind, out_feature="map")
    assert (model.embed_dim, model.depth, model.num_heads) == (48, 2, 4)
    assert model.num_prefix_tokens == prefix
    assert model.patch_size == model.size_divisibility == model.vit.patch_embed.proj.kernel_size[0]
    shape = model.output_shape()["map"]
    assert (shape.channels, shape.stride) == (48, model.patch_size)
    statistics = timm.get_pretrained_cfg(name)
    assert model.pixel_mean == pytest.approx([255 * m for m in statistics.mean])
    assert model.pixel_std == pytest.approx([255 * s for s in statistics.std])


def test_pixel_statistics_differ_between_models() -> None:
    assert build("dinov2").pixel_mean == pytest.approx((123.675, 116.28, 103.53))
    assert build("siglip").pixel_std == pytest.approx((127.5, 127.5, 127.5))


def test_absolute_positions_keep_rows_and_columns_apart() -> None:
    model = build("dinov2", norm=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or "patch_embed" in name:
                parameter.zero_()  # the blocks and the image add nothing: the map is the resized positions
        ramp = torch.linspace(-1, 1, 5).view(5, 1, 1).expand(5, 5, 48)  # positions that know their row only
        model.vit.pos_embed[:, 1:] = ramp.reshape(25, 48)
        out = model(images(model, 4, 9))["last_feat"]
    torch.testing.assert_close(out, out[..., :1].expand_as(out), atol=1e-5, rtol=0)
    assert (out[:, :, 1:] > out[:, :, :-1] + 0.2).all()


@every_architecture
@pytest.mark.parametrize("norm", [True, False])
def test_every_parameter_gets_a_gradient(kind: str, norm: bool) -> None:
    # DistributedDataParallel waits for ever for a parameter that gets none
    model = build(kind, norm=norm, window_size=2, window_block_indexes=[0]).train()
    out = model(images(model, 3, 2))["last_feat"]
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert norm or not any(name.startswith("vit.norm.") for name in model.state_dict())


@every_architecture
def test_state_dict_names_are_timms(kind: str) -> None:
    model = build(kind, window_size=2, window_block_indexes=[0, 1])
    names = timm_twin(kind, model).state_dict()
    left_out = {name for name in names if f"vit.{name}" not in model.state_dict()}
    assert {name.split(".")[0] for name in left_out} <= {"head", "head_dist", "fc_norm", "attn_pool"}
    assert all(name[len("vit.") :] in names for name in model.state_dict())


def test_sits_under_detectron2s_pyramid_and_survives_copying() -> None:
    net = build("dinov2")
    pyramid = SimpleFeaturePyramid(net, "last_feat", 16, (2.0, 1.0, 0.5), norm="LN")
    # strides that are no powers of two are detectron2's to refuse or take; ours are stated as they are
    assert net.output_shape()["last_feat"].stride == 14
    assert [f.shape[-2:] for f in pyramid(images(net, 4, 6)).values()] == [(8, 12), (4, 6), (2, 3)]
    x = images(net, 2, 3)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(net(x)["last_feat"], twin(x)["last_feat"])


# --- windows -------------------------------------------------------------------------------------------------------


@every_architecture
def test_window_as_large_as_the_grid_is_global_attention(kind: str) -> None:
    model = build(kind, window_size=1, window_block_indexes=[0])
    for grid in ((4, 4), (3, 5)):
        x = images(model, *grid)
        outputs = []
        for window_size, indexes in ((1, ()), (max(grid), (0,)), (14, (0, 1)), (2, (0, 1))):
            model.window_size, model.window_block_indexes = window_size, indexes
            with torch.no_grad():
                outputs.append(model(x)["last_feat"])
        expected, exactly, larger, smaller = outputs
        torch.testing.assert_close(exactly, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(larger, expected, atol=1e-5, rtol=1e-5)
        assert (smaller - expected).abs().max() > 1e-2


@every_architecture
def test_windowed_block_is_the_block_on_each_window(kind: str) -> None:
    model = build(kind)
    prefix, block = model.num_prefix_tokens, model.vit.blocks[1]
    for rows, columns in ((4, 6), (5, 3), (1, 5)):
        tokens = torch.randn(2, prefix + rows * columns, 48, generator=torch.Generator().manual_seed(3))
        rope = None
        if getattr(model.vit, "rope", None) is not None:
            rope = model.vit.rope.get_embed(shape=(rows, columns))
            rope = rope[1] if kind == "rope_mixed" else rope
        expected = torch.zeros_like(tokens)
        for top in range(0, rows, 2):
            for left in range(0, columns, 2):
                ys, xs = range(top, min(top + 2, rows)), range(left, min(left + 2, columns))
                index = torch.tensor([y * columns + x for y in ys for x in xs])
                window = torch.cat([tokens[:, :prefix], tokens[:, prefix + index]], dim=1)
                out = block(window) if rope is None else block(window, rope=rope[..., index, :])
                expected[:, prefix + index] = out[:, prefix:]
                expected[:, :prefix] += out[:, :prefix] * len(index) / (rows * columns)
        got = timm_vit._run_in_windows(block, tokens, rope, grid=(rows, columns), window_size=2, num_prefix=prefix)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_only_the_blocks_named_have_windows() -> None:
    # without prefix tokens nothing crosses a window's border but a global block
    model = build("siglip", window_size=2, window_block_indexes=[0, 1])
    x = images(model, 4, 5, batch=1)
    changed = x.clone()
    changed[..., -16:, -16:] += 1.0  # the last patch: in a window of what the columns leave over, rows 2 and 3
    with torch.no_grad():
        difference = (model(changed)["last_feat"] - model(x)["last_feat"]).abs().amax(dim=(0, 1))
        model.window_block_indexes = (0,)
        everywhere = (model(changed)["last_feat"] - model(x)["last_feat"]).abs().amax(dim=(0, 1))
    touched = torch.zeros(4, 5, dtype=torch.bool)
    touched[2:, 4] = True
    assert torch.equal(difference > 1e-6, touched)
    assert (everywhere > 1e-6).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"window_size": 2}, "need both"),
        ({"window_block_indexes": [0]}, "need both"),
        ({"window_size": -1, "window_block_indexes": [0]}, "window_size=-1"),
        ({"window_size": 2, "window_block_indexes": [0, 2]}, r"\[2\] are not blocks: the model has 2, 0 to 1"),
        ({"window_size": 2, "window_block_indexes": [-1]}, r"\[-1\] are not blocks"),
    ],
)
def test_windows_that_make_no_sense_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("vit", **kwargs)


# --- activation checkpointing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dinov2_registers", "dinov3", "rope_mixed"])
@pytest.mark.parametrize("windows", [{}, {"window_size": 2, "window_block_indexes": [0, 1]}])
def test_act_checkpoint_gives_the_same_gradients(kind: str, windows: dict) -> None:
    gradients = []
    for use in (False, True):
        model = build(kind, use_act_checkpoint=use, drop_path_rate=0.5, **windows).train()
        x = images(model, 3, 4).requires_grad_()
        torch.manual_seed(0)  # stochastic depth has to be drawn the same again in the recomputation
        out = model(x)["last_feat"]
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients.append({"x": x.grad, **{name: p.grad for name, p in model.named_parameters()}})
    for name, expected in gradients[0].items():
        scale = max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6 * scale, rtol=1e-6, msg=name)


def test_act_checkpoint_is_for_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = timm_vit.checkpoint_activations
    monkeypatch.setattr(
        timm_vit, "checkpoint_activations", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    model = build("vit", use_act_checkpoint=True)
    model(images(model, 2, 2))
    assert len(calls) == 0
    model.train()(images(model, 2, 2))
    assert len(calls) == model.depth


# --- weights -------------------------------------------------------------------------------------------------------


def save_timm_model(path: Path, kind: str, **kwargs) -> nn.Module:
    name, small, _ = ARCHITECTURES[kind]
    model = timm.create_model(name, dynamic_img_size=True, **{**small, **kwargs}).eval()
    randomise(model, seed=5)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(path))
    return model


@every_architecture
@pytest.mark.parametrize("norm", [True, False])
def test_checkpoint_with_its_head_loads(kind: str, norm: bool, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    source = save_timm_model(path, kind)
    name, small, prefix = ARCHITECTURES[kind]
    model = TimmViT(name, checkpoint=path, norm=norm, **small).eval()
    for key, value in model.vit.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    x = images(model, 3, 4, batch=1)
    with torch.no_grad():
        expected = source.forward_intermediates(x, indices=1, norm=norm, intermediates_only=True)[0]
        torch.testing.assert_close(model(x)["last_feat"], expected, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["vit", "siglip", "deit_distilled", "average_pooled", "dinov3"])
def test_pretrained_is_timms_own_loading(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    source = save_timm_model(path, kind)
    name, small, _ = ARCHITECTURES[kind]
    # timm reads this file where it would have fetched the one of its name
    model = TimmViT(name, pretrained=True, norm=False, pretrained_cfg_overlay={"file": str(path)}, **small).eval()
    for key, value in model.vit.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("kind", ["vit", "dinov2_registers", "deit_distilled", "siglip", "eva02"])
def test_positions_of_another_grid_are_resized(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vit.safetensors"
    name, small, _ = ARCHITECTURES[kind]
    patch = timm.create_model(name, **small).patch_embed.patch_size[0]
    source = save_timm_model(path, kind, img_size=8 * patch)
    with caplog.at_level(logging.INFO):
        model = TimmViT(name, checkpoint=str(path), **small).eval()
    with torch.no_grad():  # the grid of the source is 8×8; timm's own way of making it the model's is the reference
        source.set_input_size(img_size=small["img_size"])
    torch.testing.assert_close(model.vit.pos_embed, source.pos_embed, atol=1e-6, rtol=1e-6)
    assert f"to (1, {source.pos_embed.shape[1]}, 48)" in caplog.text


def test_half_precision_and_wrappings_load(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    source = build("dinov2")
    state = {f"module.{k}": v.half() for k, v in source.state_dict().items()}  # names as TimmViT under DDP has them
    torch.save({"model": state}, path)
    name, small, _ = ARCHITECTURES["dinov2"]
    model = TimmViT(name, checkpoint=path, **small)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, source.state_dict()[key].half().float(), atol=0, rtol=0)


def test_the_release_of_dinov2_loads(tmp_path: Path) -> None:
    # Meta's names: a mask token beside them, register_tokens, positions that begin with the class token's
    source = build("dinov2_registers")
    state = source.vit.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.full((1, 1, 48), 0.25), state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - 0.25
    state["mask_token"] = torch.zeros(1, 48)
    torch.save(state, tmp_path / "vit.pth")
    name, small, _ = ARCHITECTURES["dinov2_registers"]
    model = TimmViT(name, checkpoint=tmp_path / "vit.pth", **small).eval()
    x = images(model, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["last_feat"], source(x)["last_feat"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "messages"),
    [
        ({"embed_dim": 64}, ["48×3×14×14", "64×3×14×14", "expected (1, 1, 64), got (1, 1, 48)"]),
        ({"depth": 1}, ["1 blocks", "2 blocks", "not in the model", "blocks.1."]),
        ({"depth": 3}, ["3 blocks", "2 blocks", "missing in the checkpoint", "blocks.2."]),
        ({"patch_size": 10}, ["14×14 pixels", "10×10"]),
        ({"reg_tokens": 4}, ["4 registers", "0 registers"]),
        ({"init_values": 0}, ["ls1.gamma", "without LayerScale", "with LayerScale"]),
        ({"qkv_bias": False}, ["not in the model", "attn.qkv.bias"]),
    ],
)
def test_the_wrong_vit_is_refused(changed: dict, messages: list[str], tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_timm_model(path, "dinov2")
    name, small, _ = ARCHITECTURES["dinov2"]
    with pytest.raises(CheckpointError) as error:
        TimmViT(name, checkpoint=path, **{**small, **changed})
    for message in [*messages, "Use the timm name"]:
        assert message in str(error.value)


def test_nothing_may_be_missing_or_unknown(tmp_path: Path) -> None:
    name, small, _ = ARCHITECTURES["vit"]
    state = build("vit").vit.state_dict()
    for change, message in (
        ({"norm.weight": None}, "norm.weight"),
        ({"pos_embed": None}, "pos_embed"),
        ({"blocks.0.extra": torch.zeros(1)}, "blocks.0.extra"),
        ({"blocks.0.ls1.gamma": torch.zeros(48)}, "ls1.gamma"),
        # 18 positions: 17 without the class token's, which is no square
        ({"pos_embed": torch.zeros(1, 18, 48)}, "pos_embed 1×18×48"),
    ):
        torch.save({k: v for k, v in {**state, **change}.items() if v is not None}, tmp_path / "vit.pth")
        with pytest.raises(CheckpointError) as error:
            TimmViT(name, checkpoint=tmp_path / "vit.pth", **small)
        assert message in str(error.value)
    # the final norm may only be left over where it was dropped
    torch.save(state, tmp_path / "vit.pth")
    gap, small_gap, _ = ARCHITECTURES["average_pooled"]
    TimmViT(name, checkpoint=tmp_path / "vit.pth", norm=False, **small)
    with pytest.raises(CheckpointError):
        TimmViT(gap, checkpoint=tmp_path / "vit.pth", **small_gap)


def test_weights_from_two_places_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        TimmViT("vit_tiny_patch16_224", pretrained=True, checkpoint="vit.pth")


@pytest.mark.skipif(not REAL_WEIGHTS.is_file(), reason=f"{REAL_WEIGHTS} is not there: real weights are not shipped")
def test_real_weights() -> None:
    model = TimmViT("vit_small_patch14_dinov2.lvd142m", checkpoint=REAL_WEIGHTS).eval()
    assert (model.embed_dim, model.depth, model.num_heads, model.patch_size) == (384, 12, 6, 14)
    twin = timm.create_model("vit_small_patch14_dinov2.lvd142m", dynamic_img_size=True, num_classes=0).eval()
    twin.load_state_dict({k: v.float() for k, v in load_file(REAL_WEIGHTS).items()}, strict=True)
    x = images(model, 10, 16, batch=1)
    with torch.no_grad():
        got, expected = model(x)["last_feat"], twin.forward_features(x)[:, 1:]
    assert torch.isfinite(got).all() and got.std() > 0.5
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not REAL_WEIGHTS.is_file(), reason=f"{REAL_WEIGHTS} is not there: real weights are not shipped")
def test_real_weights_do_not_lose_their_layer_scale() -> None:
    with pytest.raises(CheckpointError, match=r"ls1\.gamma[\s\S]*without LayerScale[\s\S]*with LayerScale"):
        TimmViT("vit_small_patch16_224", checkpoint=REAL_WEIGHTS, patch_size=14, img_size=518)


# --- what is not a plain ViT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
        ("resnet18", "ResNet"),
        ("samvit_base_patch16", "VisionTransformerSAM"),
        ("beit_base_patch16_224", "Beit"),
        ("vit_base_r50_s16_224", "HybridEmbed"),
    ],
)
def test_other_models_are_refused_by_class(name: str, found: str) -> None:
    with pytest.raises(ValueError, match=f"{found}[\\s\\S]*TimmViT takes plain ViTs"):
        TimmViT(name)


def test_unknown_names_get_close_matches() -> None:
    with pytest.raises(ValueError, match="no model 'vit_smal_patch14_dinov2'.*vit_small_patch14_dinov2"):
        TimmViT("vit_smal_patch14_dinov2")
    with pytest.raises(ValueError, match=r"lvd142.*vit_small_patch14_dinov2\.lvd142m"):
        TimmViT("vit_small_patch14_dinov2.lvd142")


def test_images_of_broken_patches_are_refused() -> None:
    model = build("dinov2")
    for height, width in ((28, 41), (41, 28), (32, 32)):
        with pytest.raises(ValueError, match=f"{height}×{width} pixels are not whole patches of 14×14"):
            model(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"patch_size": (16, 8)}, "16×8"),
        ({"patch_drop_rate": 0.5}, "patch_drop_rate"),
        ({"num_classes": 10}, "num_classes"),
        ({"dynamic_img_size": False}, "dynamic_img_size"),
    ],
)
def test_kwargs_that_cannot_work_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("vit", **kwargs)


def test_kwargs_go_to_timm() -> None:
    # MoCo v3's ViT-S: the same shapes, other features
    six, twelve = (TimmViT("vit_small_patch16_224", depth=1, num_heads=heads) for heads in (6, 12))
    assert (six.num_heads, twelve.num_heads) == (6, 12)
    twelve.load_state_dict(six.state_dict())
    x = images(six, 2, 3)
    assert (six(x)["last_feat"] - twelve(x)["last_feat"]).abs().max() > 1e-4
    with pytest.raises(TypeError, match="windowsize"):
        build("vit", windowsize=2)
