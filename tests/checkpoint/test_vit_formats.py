"""Weights in each format give the features of the original implementation."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from torch import Tensor, nn

from lift_det.checkpoint import CheckpointError, convert_vit, read_state_dict, recognise_vit
from lift_det.modeling import TimmViT, ViT
from tests.modeling.deterministic import randomise

State = dict[str, Tensor]

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 64}
SMALL_14 = {**SMALL, "img_size": 70}
PLAIN = ("vit_small_patch16_224", SMALL)
DISTILLED = ("deit_small_distilled_patch16_224", SMALL)
EVA = ("eva02_tiny_patch14_224", SMALL_14)
SIGLIP = ("vit_base_patch16_siglip_224", SMALL)
DINOV2 = ("vit_small_patch14_dinov2", SMALL_14)
REGISTERS = ("vit_small_patch14_reg4_dinov2", SMALL_14)
GIANT = ("vit_giant_patch14_dinov2", {**SMALL_14, "mlp_ratio": 5.5})
GIANT_REGISTERS = ("vit_giant_patch14_reg4_dinov2", {**SMALL_14, "mlp_ratio": 5.5})

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fixed_positions(family: str, grid: int, dim: int) -> Tensor:
    """Computed as in MAE's and MoCo v3's code, one position after the other."""
    out = torch.zeros(1, 1 + grid * grid, dim)
    for row in range(grid):
        for column in range(grid):
            first, second = (column, row) if family == "mae" else (row, column)
            for i in range(dim // 4):
                omega = 1.0 / 10000 ** (i / (dim // 4))
                for quarter, position in enumerate((first, first, second, second)):
                    wave = (torch.sin, torch.cos)[quarter % 2]
                    out[0, 1 + row * grid + column, quarter * (dim // 4) + i] = wave(torch.tensor(position * omega))
    return out


def timm_model(name: str, kwargs: dict, positions: str = "") -> nn.Module:
    model = randomise(timm.create_model(name, dynamic_img_size=True, **kwargs))
    if positions:
        model.pos_embed.data.copy_(fixed_positions(positions, model.patch_embed.grid_size[0], model.embed_dim))
    return model


# --- what the official releases save, from timm's names --------------------------------------------------------------


def encoder(model: nn.Module) -> State:
    return {k: v for k, v in model.state_dict().items() if not k.startswith(("head", "fc_norm"))}


def another(state: State) -> State:
    """Other weights, such as a student's."""
    return {name: value + 1 for name, value in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def dino_head(prefix: str) -> State:
    state = {f"mlp.{i}.{kind}": noise(8) for i in (0, 2, 4) for kind in ("weight", "bias")}
    return prefixed(prefix, {**state, "last_layer.weight_g": noise(9, 1), "last_layer.weight_v": noise(9, 8)})


def dinov2(model: nn.Module) -> State:
    swiglu = any(isinstance(m, timm.layers.GluMlp) for m in model.modules())
    out = {"mask_token": noise(1, 64)}
    for name, value in encoder(model).items():
        if swiglu:
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        out[name.replace("reg_token", "register_tokens")] = value
    if "register_tokens" in out:  # Meta has a position of the class token, which timm has added to it
        position = noise(1, 1, 64)
        out["pos_embed"] = torch.cat([position, out["pos_embed"]], dim=1)
        out["cls_token"] = out["cls_token"] - position
    return out


def dinov2_chunks(model: nn.Module) -> State:
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", k): v for k, v in dinov2(model).items()}


def mocov3(model: nn.Module) -> State:
    head = {"head.0.weight": noise(8, 64), "head.1.running_mean": noise(8), "head.1.num_batches_tracked": noise(1)}
    return {
        **prefixed("module.base_encoder.", {**encoder(model), **head}),
        **prefixed("module.momentum_encoder.", {**another(encoder(model)), **head}),
        **prefixed("module.predictor.", {"0.weight": noise(8, 8), "1.weight": noise(8)}),
    }


def mae(model: nn.Module) -> State:
    decoder = {"mask_token": noise(1, 1, 32), "decoder_pos_embed": noise(1, 17, 32), "decoder_embed.weight": noise(32)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": noise(96, 32), "decoder_norm.bias": noise(32)}
    return {**encoder(model), **decoder, "decoder_pred.weight": noise(768, 32)}


def classifier(*names: str) -> State:
    return {f"{name}.{kind}": noise(5, 64) for name in names for kind in ("weight", "bias")}


def detector(state: State) -> State:
    rest = {"backbone.simfp_2.0.weight": noise(4), "backbone.lift.x": noise(2), "roi_heads.mask_head.x": noise(3)}
    return {**rest, "proposal_generator.rpn_head.conv.weight": noise(2), "pixel_mean": noise(3, 1, 1), **state}


# How it is saved, the model, the format.
RELEASES: dict[str, tuple[Callable[[nn.Module], object], tuple, str]] = {
    "timm training": (lambda m: {"state_dict": prefixed("module._orig_mod.", m.state_dict())}, PLAIN, "timm"),
    "timm in a detector": (
        lambda m: {"model": detector(prefixed("backbone.net.vit.", encoder(m))), "iteration": 5},
        DINOV2,
        "timm",
    ),
    "eva": (lambda m: m.state_dict(), EVA, "timm"),
    "siglip": (lambda m: m.state_dict(), SIGLIP, "timm"),
    "encoder": (encoder, PLAIN, "timm"),
    "dino": (
        lambda m: {
            "student": {**prefixed("module.backbone.", another(encoder(m))), **dino_head("module.head.")},
            "teacher": {**prefixed("backbone.", encoder(m)), **dino_head("head.")},
            "optimizer": {"state": {0: {"exp_avg": noise(3)}}, "param_groups": [{"lr": 0.1}]},
            "args": Namespace(arch="vit_small", patch_size=16),
            "dino_loss": {"center": noise(1, 9)},
        },
        PLAIN,
        "dino",
    ),
    "dino student": (
        lambda m: {"student": {**prefixed("module.backbone.", encoder(m)), **dino_head("module.head.")}},
        PLAIN,
        "dino",
    ),
    "dinov2": (dinov2, DINOV2, "dinov2"),
    "dinov2 registers": (dinov2, REGISTERS, "dinov2"),
    "dinov2 giant": (dinov2, GIANT, "dinov2"),
    "dinov2 chunks": (dinov2_chunks, GIANT_REGISTERS, "dinov2"),
    "dinov2 teacher": (
        lambda m: {"teacher": {**prefixed("backbone.", dinov2_chunks(m)), **dino_head("ibot_head.")}},
        REGISTERS,
        "dinov2",
    ),
    "dinov2 training": (
        lambda m: {
            "model": {
                **prefixed("student.backbone.", another(dinov2(m))),
                **prefixed("teacher.backbone.", dinov2(m)),
                **dino_head("teacher.dino_head."),
            }
        },
        DINOV2,
        "dinov2",
    ),
    "mocov3": (lambda m: {"state_dict": mocov3(m), "optimizer": {"state": {}}}, PLAIN, "mocov3"),
    "mocov3 linear": (
        lambda m: {"state_dict": prefixed("module.", {**encoder(m), **classifier("head")}), "best_acc1": noise(1)},
        (*PLAIN, "mocov3"),
        "mocov3",
    ),
    "mae": (lambda m: {"model": encoder(m)}, (*PLAIN, "mae"), "mae"),
    "mae with decoder": (lambda m: {"model": mae(m)}, PLAIN, "mae"),
    "deit": (lambda m: {"model": {**encoder(m), **classifier("head")}}, PLAIN, "timm"),
    "deit distilled": (lambda m: {"model": {**encoder(m), **classifier("head", "head_dist")}}, DISTILLED, "deit"),
}


@pytest.mark.parametrize("name", list(RELEASES))
def test_releases(name: str, tmp_path: Path) -> None:
    write, arch, format = RELEASES[name]
    source = timm_model(*arch)
    torch.save(write(source), tmp_path / "weights.pth.tar")
    assert recognise_vit(read_state_dict(tmp_path / "weights.pth.tar")[0]) == format
    model = TimmViT(arch[0], checkpoint=tmp_path / "weights.pth.tar", **arch[1]).eval()
    x = noise(2, 3, 7 * model.patch_size, 5 * model.patch_size)
    with torch.no_grad():
        expected = source.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        got = model(x)["last_feat"]
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


# --- transformers --------------------------------------------------------------------------------------------------

HF_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
HF_VIT = {**HF_SMALL, "intermediate_size": 256, "image_size": 64, "patch_size": 16}
HF_14 = {**HF_SMALL, "image_size": 70, "patch_size": 14}


@pytest.mark.parametrize(
    ("kind", "config", "arch", "names", "format"),
    [
        ("ViTModel", HF_VIT, PLAIN, "modules", "hf_vit"),
        ("ViTForMaskedImageModeling", HF_VIT, PLAIN, "hub", "hf_vit"),
        ("DeiTForImageClassificationWithTeacher", HF_VIT, DISTILLED, "hub", "hf_vit"),
        ("Dinov2ForImageClassification", HF_14, DINOV2, "modules", "hf_dinov2"),
        ("Dinov2Model", {**HF_14, "use_swiglu_ffn": True}, GIANT, "hub", "hf_dinov2"),
        ("Dinov2WithRegistersForImageClassification", HF_14, REGISTERS, "hub", "hf_dinov2"),
        ("Dinov2WithRegistersModel", {**HF_14, "use_swiglu_ffn": True}, GIANT_REGISTERS, "modules", "hf_dinov2"),
        ("ViTMAEForPreTraining", {**HF_VIT, "decoder_num_hidden_layers": 1, "mask_ratio": 0.0}, PLAIN, "hub", "hf_vit"),
    ],
)
def test_transformers(kind: str, config: dict, arch: tuple, names: str, format: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, kind)
    source = randomise(cls(cls.config_class(**config)))
    if names == "hub":
        source.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:
        path = tmp_path / "pytorch_model.bin"
        torch.save(source.state_dict(), path)
    assert recognise_vit(read_state_dict(path)[0]) == format
    model = TimmViT(arch[0], checkpoint=path, **arch[1]).eval()
    x = noise(2, 3, arch[1]["img_size"], arch[1]["img_size"])
    # MAE shuffles the patches by this noise: here not at all
    options = {"noise": torch.arange(16.0).expand(2, -1)} if "MAE" in kind else {}
    with torch.no_grad():
        tokens = source.base_model(pixel_values=x, **options).last_hidden_state[:, model.num_prefix_tokens :]
        got = model(x)["last_feat"]
    assert tokens.std() > 0.1
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-4)


# --- detectron2 ----------------------------------------------------------------------------------------------------

D2 = dict(
    img_size=64,
    patch_size=16,
    embed_dim=64,
    depth=3,
    num_heads=4,
    use_rel_pos=True,
    window_size=3,
    window_block_indexes=[0, 2],
    pretrain_img_size=80,
    out_feature="map",
)
D2_PLAIN = {**D2, "use_rel_pos": False, "window_size": 0, "window_block_indexes": [], "depth": 2}


@pytest.mark.parametrize("wrap", ["bare", "detector"])
@pytest.mark.parametrize("blocks", [{}, {"residual_block_indexes": [1]}])
def test_detectron2_computes_the_same(wrap: str, blocks: dict, tmp_path: Path) -> None:
    source = randomise(UpstreamViT(**D2, **blocks))
    state = source.state_dict()
    if wrap == "detector":
        state = detector(prefixed("backbone.net.", state))
    torch.save({"model": state}, tmp_path / "x.pth")
    assert recognise_vit(read_state_dict(tmp_path / "x.pth")[0]) == "vitdet"
    model = ViT(**D2, **blocks, checkpoint=tmp_path / "x.pth").eval()
    x = noise(2, 3, 48, 112)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["map"], source(x)["map"], atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"lift_det\.ViT"):
        TimmViT(PLAIN[0], checkpoint=tmp_path / "x.pth", **SMALL)


@pytest.mark.parametrize(("siglip", "use_cls_token"), [(False, True), (False, False), (True, False)])
def test_plain_vit_in_detectron2s(
    siglip: bool, use_cls_token: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = timm_model(SIGLIP[0] if siglip else PLAIN[0], {**SMALL, "img_size": 80})
    torch.save(source.state_dict() if siglip else mae(source), tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        model = ViT(**D2_PLAIN, pretrain_use_cls_token=use_cls_token, checkpoint=tmp_path / "x.pth").eval()
    assert "norm.weight" in caplog.text and ("cls_token" in caplog.text) is not siglip
    x = noise(1, 3, 80, 80)
    with torch.no_grad():
        tokens = source.patch_embed(x).flatten(1, 2) + source.pos_embed[:, -25:]
        for block in source.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(model(x)["map"].flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-4)


def test_vitdet_without_relative_positions(tmp_path: Path) -> None:
    state = randomise(UpstreamViT(**D2)).state_dict()
    torch.save({k: v for k, v in state.items() if "rel_pos" not in k}, tmp_path / "x.pth")
    model = ViT(**D2, checkpoint=tmp_path / "x.pth")
    assert not any(v.any() for k, v in model.state_dict().items() if "rel_pos" in k)
    assert torch.equal(model.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    torch.save({k: v for k, v in state.items() if k != "blocks.1.attn.rel_pos_w"}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.rel_pos_w"):
        ViT(**D2, checkpoint=tmp_path / "x.pth")


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        (None, {"window_size": 4}, r"rel_pos_h: expected \(7, 16\), got \(5, 16\).*window_size"),
        (None, {"use_rel_pos": False}, "rel_pos_h"),
        (None, {"pretrain_img_size": 64}, r"pos_embed: expected \(1, 17, 64\), got \(1, 26, 64\).*pretrain_img_size"),
        (None, {"depth": 2, "window_block_indexes": [0]}, r"blocks\.2"),
        (DINOV2, D2_PLAIN, "ls1.gamma.*TimmViT"),
        (DISTILLED, D2_PLAIN, "dist_token.*TimmViT"),
        (("vit_base_patch16_clip_224", SMALL), D2_PLAIN, "norm_pre.*TimmViT"),
        (("vit_wee_patch16_reg1_gap_256", {**SMALL, "init_values": 0}), D2_PLAIN, "reg_token.*TimmViT"),
    ],
)
def test_vits_that_detectron2s_cannot_be(arch: tuple | None, change: dict, message: str, tmp_path: Path) -> None:
    source = randomise(UpstreamViT(**D2)) if arch is None else timm_model(*arch)
    torch.save(source.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        ViT(**{**D2, **change}, checkpoint=tmp_path / "x.pth")


def test_mocov3s_heads_have_to_be_stated(tmp_path: Path) -> None:
    kwargs = {"depth": 2, "img_size": 64}
    source = timm_model(PLAIN[0], {**kwargs, "num_heads": 12}, positions="mocov3")
    torch.save(RELEASES["mocov3 linear"][0](source), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="num_heads=12"):
        TimmViT(PLAIN[0], checkpoint=tmp_path / "x.pth", **kwargs)
    with pytest.raises(CheckpointError, match="num_heads=12"):
        ViT(**{**D2_PLAIN, "embed_dim": 384, "num_heads": 6, "pretrain_img_size": 64}, checkpoint=tmp_path / "x.pth")
    assert TimmViT(PLAIN[0], checkpoint=tmp_path / "x.pth", num_heads=12, **kwargs).num_heads == 12


def test_layer_scale_is_never_dropped(tmp_path: Path) -> None:
    torch.save(timm_model(*DINOV2).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"ls1\.gamma"):
        TimmViT(DINOV2[0], checkpoint=tmp_path / "x.pth", ignore_unexpected=[".*"], init_values=0, **SMALL_14)


def test_resized_and_ignored_tensors_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(dinov2(timm_model(REGISTERS[0], {**SMALL_14, "img_size": 98})), tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        TimmViT(REGISTERS[0], checkpoint=tmp_path / "x.pth", **SMALL_14)
    for text in ("dinov2", "pos_embed: from (1, 49, 64) to (1, 25, 64)", "mask_token"):
        assert text in caplog.text


def test_fixed_positions_tell_mae_from_mocov3() -> None:
    state = encoder(timm_model(*PLAIN))
    for family in ("mae", "mocov3"):
        positions = fixed_positions(family, 4, 64)
        for values in (positions, positions.half()):
            assert recognise_vit({**state, "pos_embed": values}) == family
    assert recognise_vit({**state, "pos_embed": fixed_positions("mae", 4, 64) + 0.02}) == "timm"
    assert recognise_vit({"encoder.weight": noise(2)}) == "other"


@pytest.mark.parametrize(
    ("write", "arch", "extra"),
    [(encoder, PLAIN, "neck.weight"), (mocov3, PLAIN, "module.queue"), (dinov2, DINOV2, "blocks.0.x.y")],
)
def test_unknown_names(write: Callable, arch: tuple, extra: str, tmp_path: Path) -> None:
    torch.save({**write(timm_model(*arch)), extra: noise(3)}, tmp_path / "x.pth")
    name = re.escape(extra.removeprefix("module."))
    with pytest.raises(CheckpointError, match=rf"{name} \(3,\)"):
        TimmViT(arch[0], checkpoint=tmp_path / "x.pth", ignore_unexpected=["another"], **arch[1])
    TimmViT(arch[0], checkpoint=tmp_path / "x.pth", ignore_unexpected=[name], **arch[1])


def test_missing_part_of_a_projection() -> None:
    state = {"vit.embeddings.patch_embeddings.projection.weight": noise(4, 3, 2, 2)}
    state |= {f"vit.encoder.layer.11.attention.attention.{part}.weight": noise(4, 4) for part in ("query", "value")}
    with pytest.raises(CheckpointError, match="blocks.11.attn.k.weight"):
        convert_vit(state)
