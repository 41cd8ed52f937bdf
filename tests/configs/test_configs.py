"""Every shipped config: does it load, save as YAML, build, and train what it says."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets import register_coco_instances
from detectron2.model_zoo import get_config as get_upstream_config

from lift_det import BilinearUpsample, LiFT, LiFTFeaturePyramid, LiFTPlus, TimmViT, ViT, model_zoo
from lift_det.data import write_synthetic_coco
from lift_det.modeling import LiFTPretraining, save_lift

NAMES = [name for name in model_zoo.list_configs() if name.endswith(".py")]
LIFTS = [name for name in NAMES if name.startswith("LiFT/")]
DETECTORS = [name for name in NAMES if "mask_rcnn" in name]
REQUIRED = [
    "COCO/mask_rcnn_vitdet_b_100ep.py",
    "COCO/mask_rcnn_lift_vitdet_b_100ep.py",
    "COCO/mask_rcnn_lift_vitdet_l_100ep.py",
    "COCO/mask_rcnn_lift_vitdet_h_75ep.py",
    "COCO/mask_rcnn_lift_vitdet_b_fast_100ep.py",
    "COCO/mask_rcnn_bilinear_vitdet_b_100ep.py",
    "COCO/mask_rcnn_bilinear_vitdet_b_fast_100ep.py",
    "COCO/cascade_mask_rcnn_lift_vitdet_b_100ep.py",
    "COCO/mask_rcnn_lift_dino_vits16_frozen.py",
    "COCO/mask_rcnn_lift_dino_vits16_frozen_fast.py",
    "COCO/mask_rcnn_lift_dinov2_vits14_frozen.py",
    "COCO/mask_rcnn_lift_dinov2_vits14_frozen_fast.py",
    "quick_schedules/mask_rcnn_lift_vits14_overfit.py",
    *(
        f"LiFT/lift_{backbone}.py"
        for backbone in (
            *("dino_vits16", "dino_vits8", "dino_vitb16", "dino_vitb8"),
            *("dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14"),
            *("dinov2_reg_vits14", "dinov2_reg_vitb14", "dinov2_reg_vitl14"),
            *("dinov3_vits16", "dinov3_vitb16", "dinov3_vitl16", "mocov3_vits16", "mocov3_vitb16", "mae_vitb16"),
            *("augreg_vits16", "augreg_vitb16", "deit_vits16", "deit_vitb16", "vits14_cpu"),
        )
    ),
]


def test_the_promised_configs_are_there():
    assert set(REQUIRED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_has_what_detectron2s_trainer_reads_and_saves_as_yaml(name, tmp_path):
    cfg = model_zoo.get_config(name)
    assert set(cfg) == {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    assert set(get_upstream_config("common/train.py").train) <= set(cfg.train)
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, path)
    # a config with a lambda is pickled beside the YAML
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert set(LazyConfig.load(path)) == set(cfg)


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate_warms_up_and_does_not_grow_after_that(name):
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
    backbone = instantiate(cfg.model).backbone
    assert type(backbone) is LiFTFeaturePyramid
    assert type(backbone.net) is (TimmViT if timm else ViT)
    assert backbone.freeze_net is timm
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides[:4] == [4, 8, 16, 32]
    # the levels that heads and anchors are made for
    assert strides == list(cfg.model.proposal_generator.anchor_generator.strides)
    kind = BilinearUpsample if "bilinear" in name else LiFT if "lift" in name else type(None)
    assert type(backbone.lift) is kind
    if "fast" in name:
        assert backbone.input_scale <= 0.5


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
    assert (model.lift.in_channels, model.lift.patch_size) == (model.backbone.embed_dim, model.backbone.patch_size)
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


def test_a_lift_of_these_configs_fits_a_detector(tmp_path):
    training = model_zoo.get_config("LiFT/lift_dino_vits16.py").model
    training.net.update(pretrained=False, depth=1)
    lift = instantiate(training).lift
    save_lift(lift, tmp_path / "lift.safetensors")
    cfg = model_zoo.get_config("COCO/mask_rcnn_lift_dino_vits16_frozen.py")
    cfg.model.backbone.net.update(pretrained=False, depth=1)
    cfg = LazyConfig.apply_overrides(cfg, [f"model.backbone.lift.checkpoint={tmp_path}/lift.safetensors"])
    loaded = instantiate(cfg.model.backbone).lift
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in lift.state_dict().items())


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
            # boxes were made anew for what the crop has left of the objects
            masks = instances.gt_masks.get_bounding_boxes().tensor
            assert torch.equal(instances.gt_boxes.tensor, masks)
            assert (masks[:, 2] <= width + 1).all() and (masks[:, 3] <= height + 1).all()
    assert len(heights) > 3


def test_fast_and_dense_see_what_they_say():
    def scale(name):
        return model_zoo.get_config(f"COCO/{name}.py").model.backbone.input_scale

    assert scale("mask_rcnn_lift_vitdet_b_100ep") == 1
    assert scale("mask_rcnn_lift_vitdet_b_fast_100ep") == 0.5
    assert scale("mask_rcnn_lift_dinov2_vits14_frozen") == 0.875
    assert scale("mask_rcnn_lift_dinov2_vits14_frozen_fast") == 0.4375


def test_children_do_not_leak_into_their_parents():
    before = model_zoo.get_config("COCO/mask_rcnn_vitdet_b_100ep.py")
    model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_h_75ep.py")
    after = model_zoo.get_config("COCO/mask_rcnn_vitdet_b_100ep.py")
    assert str(before) == str(after)
    assert (after.train.max_iter, after.model.backbone.lift) == (184375, None)


def test_lengths_are_derived_as_their_comments_say():
    def epochs(name):
        cfg = model_zoo.get_config(f"COCO/{name}.py")
        return cfg.train.max_iter * cfg.dataloader.train.total_batch_size / 118000

    assert epochs("mask_rcnn_lift_vitdet_b_100ep") == pytest.approx(100, abs=0.1)
    assert epochs("mask_rcnn_lift_vitdet_h_75ep") == pytest.approx(75, abs=0.1)
    assert epochs("mask_rcnn_lift_dino_vits16_frozen") == pytest.approx(25, abs=0.1)
    assert epochs("mask_rcnn_lift_vitdet_b_fast_12ep_1gpu") == pytest.approx(12, abs=0.1)
