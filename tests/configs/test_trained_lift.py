"""A trained LiFT is one key in every shipped config: its file states the rest."""

import pytest
from detectron2.config import instantiate

from lift_det import LiFT, LiFTPlus, config, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import FeatureSpec

DETECTORS = [
    name
    for name in config.list_configs()
    if name.endswith(".py") and "mask_rcnn" in name and name != "COCO/mask_rcnn_vitdet_b_100ep.py"
]
# one of each patch size; the others differ in their ViT only
TRAININGS = [f"LiFT/lift_{vit}.py" for vit in ("dino_vits8", "dinov2_vits14", "dino_vits16", "mae_vitb16")]
FROZEN = "COCO/mask_rcnn_lift_dinov2_vits14_frozen"


def _load(name, *overrides):
    """The model's config with one block of the ViT, of a detector the backbone."""
    cfg = config.load(name, overrides).model
    cfg = cfg.get("backbone", cfg)
    for key, value in (("depth", 1), ("pretrained", False), ("checkpoint", ""), ("window_block_indexes", [])):
        if key in cfg.net or key == "depth":
            cfg.net[key] = value
    for key in ("window_size", "residual_block_indexes"):
        cfg.net.pop(key, None)
    return cfg


@pytest.mark.parametrize("name", DETECTORS + TRAININGS)
def test_one_key(name, tmp_path):
    path = tmp_path / "lift.safetensors"
    net = instantiate(_load(name).net)
    save_lift(LiFTPlus(net.embed_dim, net.patch_size, attention_kernel=5, norm="LN"), path)
    key = "model.backbone.lift" if name in DETECTORS else "model.lift"
    cfg = _load(name, f"{key}.checkpoint={path}")
    if "bilinear" in name:
        with pytest.raises(CheckpointError, match="name=bilinear.*name=lift_plus"):
            instantiate(cfg)
        return
    lift = instantiate(cfg).lift
    assert (type(lift), lift.attention_kernel, lift.norm, lift.trained) == (LiFTPlus, 5, "LN", True)


@pytest.mark.parametrize(
    ("file", "override", "message"),
    [
        (LiFTPlus(384, 14), "name=lift", "name=lift, .* name=lift_plus"),
        (LiFTPlus(384, 14), "+attention_kernel=5", "attention_kernel=5, .* attention_kernel=3"),
        (LiFT(384, 14), "+residual=False", "residual=False, .* residual=True"),
        (LiFTPlus(768, 16), "norm=BN", r"in_channels=384, .* in_channels=768\n.*patch_size=14, "),
    ],
)
def test_contradictions_are_refused(file, override, message, tmp_path):
    save_lift(file, tmp_path / "lift.safetensors")
    key = "model.backbone.lift"
    prefix, stated = ("+", override[1:]) if override.startswith("+") else ("", override)
    cfg = _load(FROZEN, f"{key}.checkpoint={tmp_path / 'lift.safetensors'}", f"{prefix}{key}.{stated}")
    with pytest.raises(CheckpointError, match=message):
        instantiate(cfg)


def test_a_lift_for_another_vit_is_refused(tmp_path):
    trained_on = FeatureSpec(backbone="vit_small_patch14_reg4_dinov2.lvd142m depth=1", layer=0, facet="token")
    save_lift(LiFTPlus(384, 14), tmp_path / "lift.safetensors", trained_on.to_metadata())
    cfg = _load(FROZEN, f"model.backbone.lift.checkpoint={tmp_path / 'lift.safetensors'}")
    with pytest.raises(CheckpointError, match="vit_small_patch14_reg4_dinov2.lvd142m depth=1"):
        instantiate(cfg)
    cfg.ignore_mismatch = ["backbone"]
    assert instantiate(cfg).lift.trained
