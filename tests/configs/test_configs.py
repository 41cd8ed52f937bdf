"""Every shipped config: does it load, save as YAML, build, and train what it says."""

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.model_zoo import get_config as get_upstream_config

from lift_det import BilinearUpsample, LiFT, LiFTFeaturePyramid, TimmViT, ViT, model_zoo

NAMES = [name for name in model_zoo.list_configs() if name.endswith(".py")]
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
        assert cfg.lr_multiplier.scheduler.num_updates == cfg.train.max_iter
        return cfg.train.max_iter * cfg.dataloader.train.total_batch_size / 118000

    assert epochs("mask_rcnn_lift_vitdet_b_100ep") == pytest.approx(100, abs=0.1)
    assert epochs("mask_rcnn_lift_vitdet_h_75ep") == pytest.approx(75, abs=0.1)
    assert epochs("mask_rcnn_lift_dino_vits16_frozen") == pytest.approx(25, abs=0.1)
    assert epochs("mask_rcnn_lift_vitdet_b_fast_12ep_1gpu") == pytest.approx(12, abs=0.1)
