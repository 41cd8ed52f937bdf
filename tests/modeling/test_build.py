import pytest
from detectron2.config import instantiate
from detectron2.modeling import build_backbone, build_model

from lift_det import BilinearUpsample, LiFT, LiFTFeaturePyramid, LiFTPlus, TimmViT, ViT, model_zoo, save_lift
from lift_det.checkpoint import CheckpointError
from lift_det.modeling import GeneralizedRCNN


def _config(*opts):
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml")
    cfg.merge_from_list(list(opts))
    return cfg


def test_yacs_and_lazy_config_of_the_same_name_build_the_same_model():
    small = ("MODEL.VIT.DEPTH", 2, "MODEL.VIT.EMBED_DIM", 64, "MODEL.VIT.NUM_HEADS", 2, "MODEL.DEVICE", "cpu")
    yacs = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.yaml")
    yacs.merge_from_list([*small, "MODEL.VIT.WINDOW_BLOCK_INDEXES", [0]])
    lazy = model_zoo.get_config("COCO/mask_rcnn_lift_vitdet_b_100ep.py")
    lazy.model.backbone.net.update(dict(depth=2, embed_dim=64, num_heads=2, window_block_indexes=[0]))
    a, b = build_model(yacs), instantiate(lazy.model)
    assert {k: v.shape for k, v in a.state_dict().items()} == {k: v.shape for k, v in b.state_dict().items()}
    assert a.backbone.padding_constraints == b.backbone.padding_constraints
    assert (a.pixel_mean.tolist(), a.pixel_std.tolist()) == (b.pixel_mean.tolist(), b.pixel_std.tolist())


@pytest.mark.parametrize(("name", "kind"), [("bilinear", BilinearUpsample), ("none", type(None)), (None, LiFT)])
def test_upsampler_is_one_key(name, kind):
    model = build_model(_config("MODEL.LIFT.UPSAMPLER", name, "MODEL.LIFT.MASK_FORMAT", "rle"))
    assert isinstance(model, GeneralizedRCNN) and model.mask_format == "rle"
    backbone = model.backbone
    assert (type(backbone), type(backbone.net), type(backbone.lift)) == (LiFTFeaturePyramid, ViT, kind)
    assert [s.stride for s in backbone.output_shape().values()] == [4, 8, 16, 32, 64]


def test_a_trained_lift_is_one_key(tmp_path):
    save_lift(LiFTPlus(64, 8, attention_kernel=5), tmp_path / "lift.safetensors")
    given = ("MODEL.LIFT.CHECKPOINT", str(tmp_path / "lift.safetensors"))
    lift = build_backbone(_config(*given)).lift
    assert (type(lift), lift.attention_kernel, lift.trained) == (LiFTPlus, 5, True)
    fast = build_backbone(_config(*given, "MODEL.LIFT.INPUT_SCALE", 0.5))
    assert [s.stride for s in fast.output_shape().values()] == [4, 8, 16, 32, 64]
    for key, value in (("MODEL.LIFT.UPSAMPLER", "lift"), ("MODEL.VIT.EMBED_DIM", 32)):
        with pytest.raises(CheckpointError, match=str(value)):
            build_backbone(_config(*given, key, value))


def test_timm_and_freezing():
    freeze = ("MODEL.VIT.FREEZE", True, "MODEL.LIFT.FREEZE", True)
    backbone = build_backbone(_config("MODEL.VIT.TIMM_NAME", "vit_tiny_patch16_224", *freeze))
    assert isinstance(backbone.net, TimmViT)
    trained = {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"simfp_2", "simfp_3", "simfp_4", "simfp_5"}
