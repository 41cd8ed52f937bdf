"""Every shipped config loads, saves as YAML, builds, and trains what it should."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.model_zoo import get_config as get_upstream_config

from lift_det import BilinearUpsample, LiFT, LiFTFeaturePyramid, LiFTPlus, TimmViT, ViT, model_zoo, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.data import write_synthetic_coco
from lift_det.evaluation import COCOEvaluator
from lift_det.modeling import FeatureSpec, LiFTPretraining

NAMES = model_zoo.list_configs()
LIFTS = [name for name in NAMES if name.startswith("LiFT/")]
DETECTORS = [name for name in NAMES if "mask_rcnn" in name and name.endswith(".py")]


def shrink(net):
    """Leaves one block of a ViT's config, without weights."""
    net.update(depth=1, checkpoint="")
    net.update(dict(pretrained=False) if net._target_ is TimmViT else dict(window_block_indexes=[]))
    return net


def set_trained_lift(cfg, net, path, metadata=None):
    """Sets LiFT's one key, the file; the file states the rest."""
    save_lift(LiFTPlus(net.embed_dim, net.patch_size, attention_kernel=5, norm="LN"), path, metadata)
    cfg.lift.checkpoint = str(path)


@pytest.mark.parametrize("name", NAMES)
def test_has_what_detectron2s_trainer_reads_and_saves_as_yaml(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from any folder
    first_line = Path(model_zoo.get_config_file(name)).read_text().split("\n")[0]  # shown by `lift-det configs`
    assert first_line.startswith("# ") and first_line.endswith(".") and len(first_line) < 100
    cfg = model_zoo.get_config(name)
    if name.endswith(".yaml"):
        assert isinstance(cfg, CfgNode) and cfg.MODEL.BACKBONE.NAME == "build_lift_vitdet_backbone"
        return
    assert set(cfg) == {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    assert set(get_upstream_config("common/train.py").train) <= set(cfg.train)
    LazyConfig.save(cfg, "config.yaml")
    # a config with a lambda would be pickled beside the YAML
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    saved = LazyConfig.load("config.yaml")
    assert set(saved) == set(cfg) and saved.train == cfg.train
    # the learning rate warms up, and then never grows
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(i / 1000) for i in range(1001)]  # detectron2 asks for 1.0 after the last iteration
    assert rates[0] < 0.01 and max(rates) == pytest.approx(1, abs=0.5)
    peak = rates.index(max(rates))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_has_vitdets_strides_and_takes_a_trained_lift(name, tmp_path):
    cfg = model_zoo.get_config(name)
    timm = shrink(cfg.model.backbone.net)._target_ is TimmViT
    model = instantiate(cfg.model)
    backbone = model.backbone
    assert type(backbone) is LiFTFeaturePyramid and type(backbone.net) is (TimmViT if timm else ViT)
    assert backbone.freeze_net is timm
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides[:4] == [4, 8, 16, 32]
    # the levels that heads and anchors are made for
    assert strides == list(cfg.model.proposal_generator.anchor_generator.strides)
    if timm:
        assert backbone.input_scale in (0.5, 1.0, 7 / 16 if "fast" in name else 14 / 16)
    else:
        assert backbone.input_scale == (0.5 if "fast" in name else 1.0)
    # the evaluator reads the masks as RLE
    assert model.mask_format == "rle" and cfg.dataloader.evaluator._target_ is COCOEvaluator
    kind = BilinearUpsample if "bilinear" in name else LiFT if "lift" in name else type(None)
    assert type(backbone.lift) is kind
    if backbone.lift is None:
        return
    set_trained_lift(cfg.model.backbone, backbone.net, tmp_path / "lift.safetensors")
    if kind is BilinearUpsample:
        with pytest.raises(CheckpointError, match="name=bilinear.*name=lift_plus"):
            instantiate(cfg.model.backbone)
    else:
        lift = instantiate(cfg.model.backbone).lift
        assert (type(lift), lift.attention_kernel, lift.norm, lift.trained) == (LiFTPlus, 5, "LN", True)


@pytest.mark.parametrize("name", LIFTS)
def test_lift_fits_its_vit_and_trains_alone(name, tmp_path):
    cfg = model_zoo.get_config(name)
    shrink(cfg.model.net)
    cfg.model.feature_cache = ""
    model = instantiate(cfg.model)
    assert type(model) is LiFTPretraining and type(model.lift) is LiFTPlus
    vit = model.backbone.net
    assert (model.lift.in_channels, model.lift.patch_size) == (vit.embed_dim, vit.patch_size)
    assert model.lift.patch_size == int(name.split("_vit")[1][1:].split("_")[0].removesuffix(".py"))
    assert cfg.dataloader.train.dataset.image_size % (4 * model.lift.patch_size) == 0
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"lift"}
    cfg.optimizer.params.model = model
    optimized = [p for group in instantiate(cfg.optimizer).param_groups for p in group["params"]]
    assert set(map(id, optimized)) == set(map(id, model.lift.parameters()))
    assert model.pixel_mean.min() > 100  # on the 0 to 255 scale
    assert ("augreg" in name) is bool((model.pixel_std == 127.5).all())
    set_trained_lift(cfg.model, vit, tmp_path / "lift.safetensors")
    assert instantiate(cfg.model).lift.attention_kernel == 5


def test_a_lift_for_another_vit_is_refused(tmp_path):
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_dinov2_vits14_frozen").model.backbone
    other = FeatureSpec(backbone="vit_small_patch14_reg4_dinov2.lvd142m depth=1", layer=0, facet="token")
    set_trained_lift(cfg, instantiate(shrink(cfg.net)), tmp_path / "lift.safetensors", other.to_metadata())
    with pytest.raises(CheckpointError, match="vit_small_patch14_reg4_dinov2.lvd142m depth=1"):
        instantiate(cfg)
    cfg.ignore_mismatch = ["backbone"]
    assert instantiate(cfg).lift.trained


def test_large_scale_jitter_crops_objects(tmp_path):
    root = write_synthetic_coco(tmp_path, num_train=4, num_val=1)
    register_coco_instances("jitter_test", {}, str(root / "annotations/instances_train.json"), str(root / "train"))
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py").dataloader.train
    cfg.dataset.names, cfg.total_batch_size, cfg.num_workers = "jitter_test", 2, 0
    batches = iter(instantiate(cfg))
    heights = set()
    for _ in range(5):
        for item in next(batches):
            height, width = item["image"].shape[-2:]
            heights.add(height)
            assert height <= 1024 and width <= 1024
            # boxes are recomputed for the cropped objects
            boxes = item["instances"].gt_masks.get_bounding_boxes().tensor
            assert torch.equal(item["instances"].gt_boxes.tensor, boxes)
            assert (boxes[:, 2] <= width + 1).all() and (boxes[:, 3] <= height + 1).all()
    assert len(heights) > 3


def test_children_do_not_leak_into_their_parents():
    before = model_zoo.get_config("COCO/mask_rcnn_vitdet_b_100ep.py")
    model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_h_75ep.py")
    assert str(before) == str(model_zoo.get_config("COCO/mask_rcnn_vitdet_b_100ep.py"))
