"""Each format of weights, written as its owner writes it, gives the features that its owner computes."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lift_det.checkpoint import CheckpointError, convert_vit, read_state_dict, recognise_vit
from lift_det.modeling import TimmViT, ViT

State = dict[str, Tensor]

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 4, "img_size": 64}
SMALL_14 = {**SMALL, "img_size": 70}
PLAIN = ("vit_small_patch16_224", SMALL)
DISTILLED = ("deit_small_distilled_patch16_224", SMALL)
DINOV2 = ("vit_small_patch14_dinov2", SMALL_14)
REGISTERS = ("vit_small_patch14_reg4_dinov2", SMALL_14)
GIANT = ("vit_giant_patch14_dinov2", {**SMALL_14, "mlp_ratio": 5.5})
GIANT_REGISTERS = ("vit_giant_patch14_reg4_dinov2", {**SMALL_14, "mlp_ratio": 5.5})
LEARNED, FIXED_MAE, FIXED_MOCO = "learned", "mae", "mocov3"


pytestmark = pytest.mark.usefixtures("one_thread")


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter: LayerScale and the tokens start near 0, behind which any mistake would hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = ("norm" in name and "weight" in name) or "gamma" in name or "lambda" in name
            parameter.copy_(1 + 0.2 * noise if around_one else noise * (0.5 if parameter.ndim < 2 else 0.1))
            if "token" in name or "pos" in name:
                parameter.copy_(noise * 0.5)
    return module.eval()


def noise(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fixed_positions(kind: str, grid: int, dim: int) -> Tensor:
    """As MAE's and MoCo v3's sources compute them, one position after the other."""
    out = torch.zeros(1, 1 + grid * grid, dim)
    for row in range(grid):
        for column in range(grid):
            first, second = (column, row) if kind == FIXED_MAE else (row, column)
            for i in range(dim // 4):
                omega = 1.0 / 10000 ** (i / (dim // 4))
                for quarter, value in enumerate(
                    (torch.sin, torch.cos)[q % 2](torch.tensor((first, first, second, second)[q] * omega))
                    for q in range(4)
                ):
                    out[0, 1 + row * grid + column, quarter * (dim // 4) + i] = value
    return out


def timm_model(name: str, kwargs: dict, positions: str = LEARNED) -> nn.Module:
    model = randomise(timm.create_model(name, dynamic_img_size=True, **kwargs))
    if positions != LEARNED:
        grid = model.patch_embed.grid_size[0]
        model.pos_embed.data.copy_(fixed_positions(positions, grid, model.embed_dim))
    return model


def encoder_of(model: nn.Module) -> State:
    return {k: v for k, v in model.state_dict().items() if not k.startswith(("head", "fc_norm"))}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


# --- writers: what the official releases save, from timm's names ---------------------------------------------------


def dino_head(prefix: str) -> State:
    state = {f"mlp.{i}.{kind}": noise(8) for i in (0, 2, 4) for kind in ("weight", "bias")}
    return prefixed(prefix, {**state, "last_layer.weight_g": noise(9, 1), "last_layer.weight_v": noise(9, 8)})


def write_timm(model: nn.Module) -> object:
    return model.state_dict()


def write_timm_training(model: nn.Module) -> object:
    return {"epoch": 3, "arch": "vit", "state_dict": prefixed("module._orig_mod.", model.state_dict())}


def write_timm_backbone_in_a_detector(model: nn.Module) -> object:
    rest = {"backbone.simfp_2.0.weight": noise(4), "backbone.lift.x": noise(2), "roi_heads.mask_head.x": noise(3)}
    rest["proposal_generator.rpn_head.conv.weight"] = noise(2, 2, 3, 3)
    return {"model": {**rest, **prefixed("backbone.net.vit.", encoder_of(model))}, "iteration": 5}


def write_dino_bare(model: nn.Module) -> object:
    return encoder_of(model)


def write_dino_training(model: nn.Module) -> object:
    other = {name: value + 1 for name, value in encoder_of(model).items()}  # the student is another network
    return {
        "student": {**prefixed("module.backbone.", other), **dino_head("module.head.")},
        "teacher": {**prefixed("backbone.", encoder_of(model)), **dino_head("head.")},
        "optimizer": {"state": {0: {"exp_avg": noise(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 100,
        "args": Namespace(arch="vit_small", patch_size=16),
        "dino_loss": {"center": noise(1, 9)},
    }


def write_dino_student(model: nn.Module) -> object:
    return {"student": {**prefixed("module.backbone.", encoder_of(model)), **dino_head("module.head.")}}


def dinov2_names(model: nn.Module) -> State:
    state = encoder_of(model)
    out = {"mask_token": noise(1, 64)}
    for name, value in state.items():
        if any(isinstance(m, timm.layers.GluMlp) for m in model.modules()):
            name = name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")
        out[name.replace("reg_token", "register_tokens")] = value
    if "register_tokens" in out:  # Meta adds a position to the class token, which timm has added for good
        position = noise(1, 1, 64)
        out["pos_embed"] = torch.cat([position, out["pos_embed"]], dim=1)
        out["cls_token"] = out["cls_token"] - position
    return out


def write_dinov2(model: nn.Module) -> object:
    return dinov2_names(model)


def write_dinov2_chunked(model: nn.Module) -> object:
    # two chunks of one block; identities before a chunk's own blocks keep the numbers
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", k): v for k, v in dinov2_names(model).items()}


def write_dinov2_teacher(model: nn.Module) -> object:
    heads = {**dino_head("dino_head."), **dino_head("ibot_head.")}
    return {"teacher": {**prefixed("backbone.", write_dinov2_chunked(model)), **heads}}


def write_dinov2_arch(model: nn.Module) -> object:
    ours = dinov2_names(model)
    student = {name: value + 1 for name, value in ours.items()}
    parts = {**prefixed("student.backbone.", student), **prefixed("teacher.backbone.", ours)}
    return {"model": {**parts, **dino_head("student.dino_head."), **dino_head("teacher.dino_head.")}, "iteration": 1}


def write_mocov3(model: nn.Module) -> object:
    head = {"head.0.weight": noise(8, 64), "head.1.running_mean": noise(8), "head.1.num_batches_tracked": noise(1)}
    other = {name: value + 1 for name, value in encoder_of(model).items()}
    state = {
        **prefixed("module.base_encoder.", {**encoder_of(model), **head}),
        **prefixed("module.momentum_encoder.", {**other, **head}),
        **prefixed("module.predictor.", {"0.weight": noise(8, 8), "1.weight": noise(8)}),
    }
    return {
        "epoch": 300,
        "arch": "vit_small",
        "state_dict": state,
        "optimizer": {"state": {}},
        "scaler": {"scale": 1.0},
    }


def write_mocov3_linear(model: nn.Module) -> object:
    head = {"head.weight": noise(5, 64), "head.bias": noise(5)}
    return {"epoch": 90, "state_dict": prefixed("module.", {**encoder_of(model), **head}), "best_acc1": noise(1)}


def write_mae(model: nn.Module) -> object:
    return {"model": encoder_of(model)}


def write_mae_full(model: nn.Module) -> object:
    decoder = {"mask_token": noise(1, 1, 32), "decoder_pos_embed": noise(1, 17, 32), "decoder_embed.weight": noise(32)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": noise(96, 32), "decoder_norm.bias": noise(32)}
    return {"model": {**encoder_of(model), **decoder, "decoder_pred.weight": noise(768, 32)}}


def write_deit(model: nn.Module) -> object:
    return {"model": {**encoder_of(model), "head.weight": noise(5, 64), "head.bias": noise(5)}}


def write_deit_distilled(model: nn.Module) -> object:
    state = {f"{head}.{kind}": noise(5, 64) for head in ("head", "head_dist") for kind in ("weight", "bias")}
    return {"model": {**encoder_of(model), **state}}


@pytest.mark.parametrize(
    ("write", "arch", "positions", "format", "ignored"),
    [
        (write_timm, PLAIN, LEARNED, "timm", {"classifier"}),
        (write_timm_training, PLAIN, LEARNED, "timm", {"classifier"}),
        (write_timm_backbone_in_a_detector, DINOV2, LEARNED, "timm", {"the rest of a detector"}),
        (write_timm, ("eva02_tiny_patch14_224", SMALL_14), LEARNED, "timm", {"classifier"}),
        (write_timm, ("vit_base_patch16_siglip_224", SMALL), LEARNED, "timm", {"classifier"}),
        (write_dino_bare, PLAIN, LEARNED, "timm", set()),  # nothing in the file tells DINO's bare encoder from DeiT's
        (write_dino_training, PLAIN, LEARNED, "dino", {"projection head"}),
        (write_dino_student, PLAIN, LEARNED, "dino", {"projection head"}),
        (write_dinov2, DINOV2, LEARNED, "dinov2", {"mask token, of pretraining only"}),
        (write_dinov2, REGISTERS, LEARNED, "dinov2", {"mask token, of pretraining only"}),
        (write_dinov2, GIANT, LEARNED, "dinov2", {"mask token, of pretraining only"}),
        (write_dinov2_chunked, GIANT_REGISTERS, LEARNED, "dinov2", {"mask token, of pretraining only"}),
        (write_dinov2_teacher, REGISTERS, LEARNED, "dinov2", {"mask token, of pretraining only", "projection head"}),
        (
            write_dinov2_arch,
            DINOV2,
            LEARNED,
            "dinov2",
            {"mask token, of pretraining only", "projection head", "pretraining"},
        ),
        (write_mocov3, PLAIN, FIXED_MOCO, "mocov3", {"projection head", "pretraining"}),
        (write_mocov3, PLAIN, LEARNED, "mocov3", {"projection head", "pretraining"}),
        (write_mocov3_linear, PLAIN, FIXED_MOCO, "mocov3", {"projection head"}),
        (write_mae, PLAIN, FIXED_MAE, "mae", set()),
        (write_mae_full, PLAIN, FIXED_MAE, "mae", {"mask token, of pretraining only", "decoder of pretraining"}),
        (write_mae_full, PLAIN, LEARNED, "mae", {"mask token, of pretraining only", "decoder of pretraining"}),
        (write_deit, PLAIN, LEARNED, "timm", {"classifier"}),
        (write_deit_distilled, DISTILLED, LEARNED, "deit", {"classifier"}),
    ],
    ids=lambda value: value.__name__[6:] if callable(value) else value[0] if isinstance(value, tuple) else "",
)
def test_timm_computes_the_same_from_a_release(
    write: Callable[[nn.Module], object], arch: tuple, positions: str, format: str, ignored: set, tmp_path: Path
) -> None:
    source = timm_model(*arch, positions=positions)
    torch.save(write(source), tmp_path / "weights.pth.tar")
    state = read_state_dict(tmp_path / "weights.pth.tar")[0]
    assert recognise_vit(state) == format
    report = convert_vit(state)[1]
    assert report.format == format and set(report.ignored.values()) == ignored
    plain = {name.removeprefix("module.").removeprefix("_orig_mod.") for name in state}
    assert report.mapped.keys() | report.ignored.keys() == plain  # nothing goes unsaid
    assert not report.mapped.keys() & report.ignored.keys()
    model = TimmViT(arch[0], checkpoint=tmp_path / "weights.pth.tar", **arch[1]).eval()
    patch, grid = model.patch_size, arch[1]["img_size"] // model.patch_size
    for rows, columns in ((grid, grid), (3, 6), (7, 5)):
        x = noise(2, 3, rows * patch, columns * patch)
        with torch.no_grad():
            # prefix tokens taken off, as a map; the last norm as the model has it
            expected = source.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
            got = model(x)["last_feat"]
        assert expected.std() > 0.1
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("write", "arch"), [(write_dinov2, REGISTERS), (write_dino_training, PLAIN)])
def test_positions_of_another_grid_are_timms(write: Callable, arch: tuple, tmp_path: Path) -> None:
    name, kwargs = arch
    patch = timm.create_model(name, **kwargs).patch_embed.patch_size[0]
    source = timm_model(name, {**kwargs, "img_size": 7 * patch})
    torch.save(write(source), tmp_path / "x.pth")
    source.set_input_size(img_size=kwargs["img_size"])
    model = TimmViT(name, checkpoint=tmp_path / "x.pth", **kwargs).eval()
    torch.testing.assert_close(model.vit.pos_embed, source.pos_embed, atol=1e-6, rtol=1e-6)
    x = noise(1, 3, 3 * patch, 5 * patch)
    with torch.no_grad():
        expected = source.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(model(x)["last_feat"], expected, atol=1e-4, rtol=1e-4)


# --- transformers --------------------------------------------------------------------------------------------------

HF_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
HF_VIT = {**HF_SMALL, "intermediate_size": 256, "image_size": 64, "patch_size": 16}
HF_14 = {**HF_SMALL, "image_size": 70, "patch_size": 14}


@pytest.mark.parametrize("names", ["hub", "modules"])
@pytest.mark.parametrize(
    ("kind", "config", "arch", "format"),
    [
        ("ViTModel", HF_VIT, PLAIN, "hf_vit"),
        ("ViTForImageClassification", HF_VIT, PLAIN, "hf_vit"),
        ("ViTForMaskedImageModeling", HF_VIT, PLAIN, "hf_vit"),
        ("DeiTModel", HF_VIT, DISTILLED, "hf_vit"),
        ("DeiTForImageClassificationWithTeacher", HF_VIT, DISTILLED, "hf_vit"),
        ("Dinov2Model", HF_14, DINOV2, "hf_dinov2"),
        ("Dinov2ForImageClassification", HF_14, DINOV2, "hf_dinov2"),
        ("Dinov2Model", {**HF_14, "use_swiglu_ffn": True}, GIANT, "hf_dinov2"),
        ("Dinov2WithRegistersModel", HF_14, REGISTERS, "hf_dinov2"),
        ("Dinov2WithRegistersForImageClassification", HF_14, REGISTERS, "hf_dinov2"),
        ("Dinov2WithRegistersModel", {**HF_14, "use_swiglu_ffn": True}, GIANT_REGISTERS, "hf_dinov2"),
    ],
)
def test_transformers_computes_the_same(
    kind: str, config: dict, arch: tuple, format: str, names: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, whose ViTs are compared, is not installed")
    cls = getattr(transformers, kind)
    source = randomise(cls(cls.config_class(**config)))
    if names == "hub":
        source.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
    else:  # what torch.save writes of the modules as they are
        path = tmp_path / "pytorch_model.bin"
        torch.save(source.state_dict(), path)
    assert recognise_vit(read_state_dict(path)[0]) == format
    model = TimmViT(arch[0], checkpoint=path, **arch[1]).eval()
    x = noise(2, 3, arch[1]["img_size"], arch[1]["img_size"])  # the grid of pretraining: elsewhere each interpolates
    encoder = source.base_model
    with torch.no_grad():
        tokens = encoder(pixel_values=x).last_hidden_state[:, model.num_prefix_tokens :]
        got = model(x)["last_feat"]
    assert tokens.std() > 0.1
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-4)


def test_classic_names_of_the_hub() -> None:
    """Which name goes where, whatever the installed transformers writes: query, key and value in this order."""
    parts = {part: noise(4, 4, seed=i) for i, part in enumerate(("value", "key", "query"))}
    state = {f"vit.encoder.layer.11.attention.attention.{part}.weight": value for part, value in parts.items()}
    state["vit.embeddings.patch_embeddings.projection.weight"] = noise(4, 3, 2, 2)
    state["vit.encoder.layer.11.attention.output.dense.weight"] = noise(4, 4, seed=7)
    state["vit.encoder.layer.11.output.dense.weight"] = noise(4, 8)
    converted, report = convert_vit(state)
    assert torch.equal(converted["blocks.11.attn.qkv.weight"], torch.cat([parts[p] for p in ("query", "key", "value")]))
    assert torch.equal(converted["blocks.11.attn.proj.weight"], noise(4, 4, seed=7))
    assert converted.keys() == {
        "patch_embed.proj.weight",
        *(f"blocks.11.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc2")),
    }
    assert report.mapped["vit.encoder.layer.11.attention.attention.key.weight"] == "blocks.11.attn.qkv.weight"
    del state["vit.encoder.layer.11.attention.attention.key.weight"]
    with pytest.raises(CheckpointError, match="nothing for blocks.11.attn.k.weight"):
        convert_vit(state)


def test_mae_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers, whose ViTs are compared, is not installed")
    config = transformers.ViTMAEConfig(**HF_VIT, decoder_num_hidden_layers=1, mask_ratio=0.0)
    source = randomise(transformers.ViTMAEForPreTraining(config))
    source.save_pretrained(tmp_path)
    model = TimmViT(PLAIN[0], checkpoint=tmp_path / "model.safetensors", **SMALL).eval()
    x = noise(2, 3, 64, 64)
    with torch.no_grad():
        # it shuffles the patches by this noise: the same order
        order = torch.arange(16.0).expand(2, -1)
        tokens = source.vit(x, noise=order).last_hidden_state[:, 1:]
        torch.testing.assert_close(model(x)["last_feat"].flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-4)


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
        rest = {"backbone.simfp_4.0.weight": noise(4), "roi_heads.0.weight": noise(3), "pixel_mean": noise(3, 1, 1)}
        state = {**prefixed("backbone.net.", state), **rest, "proposal_generator.x": noise(2)}
    torch.save({"model": state}, tmp_path / "x.pth")
    assert recognise_vit(read_state_dict(tmp_path / "x.pth")[0]) == "vitdet"
    model = ViT(**D2, **blocks, checkpoint=tmp_path / "x.pth").eval()
    for size in ((80, 80), (64, 64), (48, 112)):
        x = noise(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(model(x)["map"], source(x)["map"], atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"lift_det\.ViT"):
        TimmViT(PLAIN[0], checkpoint=tmp_path / "x.pth", **SMALL)


@pytest.mark.parametrize("use_cls_token", [True, False])
@pytest.mark.parametrize(
    ("write", "positions"), [(write_timm, LEARNED), (write_mae_full, FIXED_MAE), (write_mocov3, FIXED_MOCO), (None, "")]
)
def test_a_plain_vit_goes_into_detectron2s(
    write: Callable | None, positions: str, use_cls_token: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The patches' tokens of a ViT without a class token are the same in both libraries."""
    kwargs = {**SMALL, "img_size": 80}
    source = timm_model(PLAIN[0], kwargs, positions=positions or LEARNED)
    if write is None:
        source = timm_model("vit_base_patch16_siglip_224", kwargs)
        del source.attn_pool
        written = source.state_dict()
    else:
        written = write(source)
    torch.save(written, tmp_path / "x.pth")
    if write is None and use_cls_token:
        with pytest.raises(CheckpointError, match=r"pretrain_img_size=5 × patch_size.*pretrain_use_cls_token=False"):
            ViT(**D2_PLAIN, checkpoint=tmp_path / "x.pth")
        return
    with caplog.at_level("INFO"):
        model = ViT(**D2_PLAIN, pretrain_use_cls_token=use_cls_token, checkpoint=tmp_path / "x.pth").eval()
    for key in ("blocks.1.attn.qkv.weight", "patch_embed.proj.bias"):
        assert torch.equal(model.state_dict()[key], source.state_dict()[key])
    assert "without a last norm" in caplog.text and "norm.weight" in caplog.text
    assert ("cls_token" in caplog.text) == (write is not None)
    x = noise(1, 3, 80, 80)
    with torch.no_grad():
        tokens = source.patch_embed(x).flatten(1, 2) + source.pos_embed[:, -25:]
        for block in source.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(model(x)["map"].flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-4)


def test_relative_positions_come_whole_or_not_at_all(tmp_path: Path) -> None:
    state = randomise(UpstreamViT(**D2)).state_dict()
    torch.save({k: v for k, v in state.items() if "rel_pos" not in k}, tmp_path / "x.pth")
    model = ViT(**D2, checkpoint=tmp_path / "x.pth")
    assert not any(v.any() for k, v in model.state_dict().items() if "rel_pos" in k)
    assert torch.equal(model.blocks[2].mlp.fc1.weight, state["blocks.2.mlp.fc1.weight"])
    torch.save({k: v for k, v in state.items() if k != "blocks.1.attn.rel_pos_w"}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"missing[\s\S]*blocks\.1\.attn\.rel_pos_w"):
        ViT(**D2, checkpoint=tmp_path / "x.pth")
    torch.save(state, tmp_path / "x.pth")
    for change, message in (
        ({"window_size": 4}, r"rel_pos_h: expected \(7, 16\), got \(5, 16\)[\s\S]*window_size"),
        ({"use_rel_pos": False}, "not in the model"),
        ({"pretrain_img_size": 64}, "26 positions and the model 17.*pretrain_img_size=5"),
        ({"depth": 2, "window_block_indexes": [0]}, r"not in the model[\s\S]*blocks\.2"),
    ):
        with pytest.raises(CheckpointError, match=message):
            ViT(**{**D2, **change}, checkpoint=tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (DINOV2, r"LayerScale.*lift_det\.TimmViT"),
        (DISTILLED, r"distillation token.*lift_det\.TimmViT"),
        (("vit_base_patch16_clip_224", SMALL), r"norm before its blocks.*lift_det\.TimmViT"),
        (("vit_wee_patch16_reg1_gap_256", {**SMALL, "init_values": 0}), r"registers.*lift_det\.TimmViT"),
    ],
)
def test_what_detectron2s_vit_has_not_is_refused(arch: tuple, message: str, tmp_path: Path) -> None:
    torch.save(timm_model(*arch).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        ViT(**{**D2_PLAIN, "pretrain_img_size": 64}, checkpoint=tmp_path / "x.pth")


# --- what is refused, and what is said -----------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_mocov3, write_mocov3_linear])
def test_mocov3s_heads_have_to_be_stated(write: Callable, tmp_path: Path) -> None:
    kwargs = {"depth": 2, "img_size": 64}
    source = timm_model(PLAIN[0], {**kwargs, "num_heads": 12}, positions=FIXED_MOCO)
    torch.save(write(source), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="the model has 6.*state num_heads=12"):
        TimmViT(PLAIN[0], checkpoint=tmp_path / "x.pth", **kwargs)
    with pytest.raises(CheckpointError, match="the model has 6.*state num_heads=12"):
        ViT(**{**D2_PLAIN, "embed_dim": 384, "num_heads": 6, "pretrain_img_size": 64}, checkpoint=tmp_path / "x.pth")
    model = TimmViT(PLAIN[0], checkpoint=tmp_path / "x.pth", num_heads=12, **kwargs).eval()
    x = noise(1, 3, 64, 64)
    with torch.no_grad():
        expected = source.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
        torch.testing.assert_close(model(x)["last_feat"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("write", "arch", "extra"),
    [
        (write_timm, PLAIN, "neck.weight"),
        (write_dino_training, PLAIN, "head.other.weight"),
        (write_mae_full, PLAIN, "encoder_extra"),
        (write_mocov3, PLAIN, "module.queue"),
        (write_dinov2, DINOV2, "blocks.0.adapter.weight"),
    ],
)
def test_unknown_names_need_leave(write: Callable, arch: tuple, extra: str, tmp_path: Path) -> None:
    written = write(timm_model(*arch))
    for key in ("model", "state_dict", "teacher"):
        if key in written:
            written = written[key]
    torch.save({**written, extra: noise(3)}, tmp_path / "x.pth")
    name = extra.removeprefix("module.")
    with pytest.raises(CheckpointError, match=rf"1 not in the model:\s+{re.escape(name)} \(3,\)"):
        TimmViT(arch[0], checkpoint=tmp_path / "x.pth", **arch[1])
    with pytest.raises(CheckpointError):
        TimmViT(arch[0], checkpoint=tmp_path / "x.pth", allow_unexpected=["another"], **arch[1])
    TimmViT(arch[0], checkpoint=tmp_path / "x.pth", allow_unexpected=[re.escape(name)], **arch[1])


def test_layer_scale_is_never_dropped(tmp_path: Path) -> None:
    torch.save(timm_model(*DINOV2).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"ls1\.gamma"):
        TimmViT(DINOV2[0], checkpoint=tmp_path / "x.pth", allow_unexpected=[".*"], init_values=0, **SMALL_14)


def test_the_log_says_what_became_of_each_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(write_dinov2(timm_model(REGISTERS[0], {**SMALL_14, "img_size": 98})), tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        TimmViT(REGISTERS[0], checkpoint=tmp_path / "x.pth", **SMALL_14)
    for text in (
        "format dinov2, 35 tensors matched",
        "register_tokens → reg_token",
        "pos_embed: from (1, 49, 64) to (1, 25, 64)",
        "1 ignored (mask token, of pretraining only):\n    mask_token",
    ):
        assert text in caplog.text


def test_a_checkpoint_with_a_piece_missing_is_refused(tmp_path: Path) -> None:
    for write, arch, gone in (
        (write_dinov2, REGISTERS, "register_tokens"),
        (write_dinov2, DINOV2, "blocks.1.ls2.gamma"),
        (write_timm, PLAIN, "cls_token"),
    ):
        state = write(timm_model(*arch))
        del state[gone]
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(CheckpointError):
            TimmViT(arch[0], checkpoint=tmp_path / "x.pth", **arch[1])


def test_fixed_positions_tell_mae_from_mocov3() -> None:
    state = encoder_of(timm_model(*PLAIN))
    for half in (False, True):
        for family in (FIXED_MAE, FIXED_MOCO):
            positions = fixed_positions(family, 4, 64)
            assert recognise_vit({**state, "pos_embed": positions.half() if half else positions}) == family
    assert recognise_vit({**state, "pos_embed": fixed_positions(FIXED_MAE, 4, 64) + 0.02}) == "timm"
    assert recognise_vit({"encoder.weight": noise(2)}) == "other"


def test_file_names_do_not_matter(tmp_path: Path) -> None:
    model = timm_model(*DINOV2)
    save_file({k: v.contiguous() for k, v in dinov2_names(model).items()}, tmp_path / "mae_vitdet_hf_vit.safetensors")
    assert recognise_vit(load_file(tmp_path / "mae_vitdet_hf_vit.safetensors")) == "dinov2"
