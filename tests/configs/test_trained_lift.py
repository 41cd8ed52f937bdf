"""A trained LiFT is one key in every shipped config: its file says the rest."""

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
TRAININGS = [name for name in config.list_configs() if name.startswith("LiFT/")]
# the large ones take seconds to build, and differ in their ViT alone
SMALL_TRAININGS = [name for name in TRAININGS if "vits" in name or "mae" in name]
FROZEN = "COCO/mask_rcnn_lift_dinov2_vits14_frozen"


def _load(name, *overrides):
    """The model's config, its ViT reduced to one block and its heads to what is quick to build."""
    cfg = config.load(name, overrides).model
    net = cfg.net if "net" in cfg else cfg.backbone.net
    net.depth = 1
    for key, value in (("pretrained", False), ("checkpoint", ""), ("window_block_indexes", [])):
        if key in net:
            net[key] = value
    for key in ("window_size", "residual_block_indexes"):
        net.pop(key, None)
    if "roi_heads" in cfg:
        for head in [cfg.roi_heads.box_head] if "box_head" in cfg.roi_heads else cfg.roi_heads.box_heads:
            head.fc_dims, head.conv_dims = [], []
        cfg = cfg.backbone  # the heads say nothing about LiFT
    return cfg


def _width_and_patch(name):
    built = instantiate(_load(name))
    net = built.net if hasattr(built, "net") else built.backbone.net
    return net.embed_dim, net.patch_size


@pytest.mark.parametrize("name", DETECTORS + SMALL_TRAININGS)
def test_one_key(name, tmp_path):
    path = tmp_path / "lift.safetensors"
    save_lift(LiFTPlus(*_width_and_patch(name), pool=5, norm="LN"), path)
    key = "model.backbone.lift" if name in DETECTORS else "model.lift"
    cfg = _load(name, f"{key}.checkpoint={path}")
    if "bilinear" in name:
        with pytest.raises(CheckpointError, match="stated name=bilinear, in the file name=lift_plus"):
            instantiate(cfg)
        return
    lift = instantiate(cfg).lift
    assert (type(lift), lift.pool_size, lift.norm, lift.trained) == (LiFTPlus, 5, "LN", True)


@pytest.mark.parametrize("name", DETECTORS + TRAININGS)
def test_shipped_configs_state_no_sizes_of_lift(name):
    model = config.load(name).model
    lift = model.lift if "lift" in model else model.backbone.lift
    assert not {"in_channels", "patch_size"} & set(lift)


@pytest.mark.parametrize("name", [FROZEN, f"{FROZEN}_fast"])
@pytest.mark.parametrize(
    ("file", "override", "message"),
    [
        (LiFTPlus(384, 14), "name=lift", "stated name=lift, in the file name=lift_plus"),
        (LiFTPlus(384, 14), "+pool=5", "stated pool=5, in the file pool=3"),
        (LiFT(384, 14), "+residual=False", "stated residual=False, in the file residual=True"),
        (LiFTPlus(768, 16), "norm=BN", r"in_channels=384, in the file in_channels=768\n.*patch_size=14, in the file"),
    ],
)
def test_contradictions_are_refused(name, file, override, message, tmp_path):
    save_lift(file, tmp_path / "lift.safetensors")
    key = "model.backbone.lift"
    prefix, stated = ("+", override[1:]) if override.startswith("+") else ("", override)
    cfg = _load(name, f"{key}.checkpoint={tmp_path / 'lift.safetensors'}", f"{prefix}{key}.{stated}")
    with pytest.raises(CheckpointError, match=message):
        instantiate(cfg)


def test_a_lift_of_another_vit_is_refused(tmp_path):
    trained_on = FeatureSpec(backbone="vit_small_patch14_reg4_dinov2.lvd142m depth=1", layer=0, facet="token")
    save_lift(LiFTPlus(384, 14), tmp_path / "lift.safetensors", trained_on.to_metadata())
    cfg = _load(FROZEN, f"model.backbone.lift.checkpoint={tmp_path / 'lift.safetensors'}")
    with pytest.raises(CheckpointError, match="backbone: trained with 'vit_small_patch14_reg4_dinov2.lvd142m depth=1'"):
        instantiate(cfg)
    cfg.allow_lift = ["backbone"]
    assert instantiate(cfg).lift.trained
