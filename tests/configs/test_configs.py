"""Every shipped config loads, saves as YAML, builds, and trains what it should."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.model_zoo import get_config as get_upstream_config

from lift_det import BilinearUpsample, LiFT, LiFTFeaturePyramid, LiFTPlus, TimmViT, ViT, model_zoo
from lift_det.data import write_synthetic_coco
from lift_det.evaluation import COCOEvaluator
from lift_det.modeling import LiFTPretraining

NAMES = model_zoo.list_configs()
LIFTS = [name for name in NAMES if name.startswith("LiFT/")]
DETECTORS = [name for name in NAMES if "mask_rcnn" in name and name.endswith(".py")]


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


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".py")])
def test_learning_rate_warms_up_and_then_does_not_grow(name):
    cfg = model_zoo.get_config(name)
    multiplier = instantiate(cfg.lr_multiplier)
    rates = [multiplier(i / 1000) for i in range(1001)]  # detectron2 asks for 1.0 after the last iteration
    assert rates[0] < 0.01 and max(rates) == pytest.approx(1, abs=0.5)
    peak = rates.index(max(rates))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


@pytest.mark.parametrize("name", DETECTORS)
def test_builds_with_vitdets_strides(name):
    cfg = model_zoo.get_config(name)
    net = cfg.model.backbone.net
    timm = net._target_ is TimmViT
    if timm:
        net.update(pretrained=False, checkpoint="", depth=1)
    else:
        net.update(depth=1, window_block_indexes=[])
    model = instantiate(cfg.model)
    backbone = model.backbone
    assert type(backbone) is LiFTFeaturePyramid
    assert type(backbone.net) is (TimmViT if timm else ViT)
    assert backbone.freeze_net is timm
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides[:4] == [4, 8, 16, 32]
    # the levels that heads and anchors are made for
    assert strides == list(cfg.model.proposal_generator.anchor_generator.strides)
    kind = BilinearUpsample if "bilinear" in name else LiFT if "lift" in name else type(None)
    assert type(backbone.lift) is kind
    if timm:
        assert backbone.input_scale in (0.5, 1.0) or backbone.input_scale == (7 if "fast" in name else 14) / 16
    else:
        assert backbone.input_scale == (0.5 if "fast" in name else 1.0)
    # the evaluator reads the masks as RLE
    assert model.mask_format == "rle" and cfg.dataloader.evaluator._target_ is COCOEvaluator


@pytest.mark.parametrize("name", LIFTS)
def test_lift_fits_its_vit_and_trains_alone(name):
    cfg = model_zoo.get_config(name)
    net = cfg.model.net
    net.update(checkpoint="", depth=1)
    if net._target_ is TimmViT:
        net.pretrained = False
    cfg.model.feature_cache = ""
    model = instantiate(cfg.model)
    assert type(model) is LiFTPretraining and type(model.lift) is LiFTPlus
    vit = model.backbone.net
    assert (model.lift.in_channels, model.lift.patch_size) == (vit.embed_dim, vit.patch_size)
    assert model.lift.patch_size == int(name.split("_vit")[1][1:].split("_")[0].removesuffix(".py"))
    assert cfg.dataloader.train.dataset.image_size % (4 * model.lift.patch_size) == 0
    trained = {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"lift"}
    cfg.optimizer.params.model = model
    (in_optimizer,) = {len({id(p) for g in instantiate(cfg.optimizer).param_groups for p in g["params"]})}
    assert in_optimizer == len(list(model.lift.parameters()))
    assert model.pixel_mean.min() > 100  # on the 0 to 255 scale
    assert ("augreg" in name) is bool((model.pixel_std == 127.5).all())
    assert cfg.model.net.get("num_heads", 12) == 12  # stated where timm's would be wrong


def test_large_scale_jitter_crops_objects(tmp_path):
    write_synthetic_coco(tmp_path, num_train=4, num_val=1)
    annotations = tmp_path / "synthetic" / "annotations" / "instances_train.json"
    register_coco_instances("jitter_test", {}, str(annotations), str(tmp_path / "synthetic" / "train"))
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py").dataloader.train
    cfg.dataset.names, cfg.total_batch_size, cfg.num_workers = "jitter_test", 2, 0
    heights = set()
    for batch, _ in zip(instantiate(cfg), range(10), strict=False):
        for item in batch:
            instances = item["instances"]
            height, width = item["image"].shape[-2:]
            heights.add(height)
            assert height <= 1024 and width <= 1024
            # boxes are recomputed for the cropped objects
            masks = instances.gt_masks.get_bounding_boxes().tensor
            assert torch.equal(instances.gt_boxes.tensor, masks)
            assert (masks[:, 2] <= width + 1).all() and (masks[:, 3] <= height + 1).all()
    assert len(heights) > 3


def test_children_do_not_leak_into_their_parents():
    before = model_zoo.get_config("COCO/mask_rcnn_vitdet_b_100ep.py")
    model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_h_75ep.py")
    after = model_zoo.get_config("COCO/mask_rcnn_vitdet_b_100ep.py")
    assert str(before) == str(after)
    assert (after.train.max_iter, after.model.backbone.lift) == (184375, None)
