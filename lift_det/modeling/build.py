"""yacs: the config nodes of lift_det and the names added to detectron2's registries, which happens here alone."""

from __future__ import annotations

from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from .backbones import TimmViT, ViT
from .meta_arch import GeneralizedRCNN
from .pyramid import LiFTFeaturePyramid
from .upsamplers import LazyUpsampler


def add_lift_config(cfg: CfgNode) -> None:
    """Adds what lift_det reads to a detectron2 config, with ViTDet-B's and the dense LiFT's values as defaults.

    Call it after :func:`detectron2.config.get_cfg` and before merging a file.
    """
    cfg.MODEL.VIT = CfgNode()
    cfg.MODEL.VIT.FREEZE = False
    cfg.MODEL.VIT.USE_ACT_CHECKPOINT = False
    # A timm name makes a TimmViT, of which the next three are; windows and drop path are for LazyConfigs
    cfg.MODEL.VIT.TIMM_NAME = ""
    cfg.MODEL.VIT.CHECKPOINT = ""
    cfg.MODEL.VIT.PRETRAINED = False
    cfg.MODEL.VIT.NORM = True  # the final norm on the map
    # Without a timm name these make detectron2's ViT; its weights come through MODEL.WEIGHTS
    cfg.MODEL.VIT.IMG_SIZE = 1024
    cfg.MODEL.VIT.PATCH_SIZE = 16
    cfg.MODEL.VIT.EMBED_DIM = 768
    cfg.MODEL.VIT.DEPTH = 12
    cfg.MODEL.VIT.NUM_HEADS = 12
    cfg.MODEL.VIT.DROP_PATH_RATE = 0.1
    cfg.MODEL.VIT.WINDOW_SIZE = 14
    cfg.MODEL.VIT.WINDOW_BLOCK_INDEXES = [0, 1, 3, 4, 6, 7, 9, 10]
    cfg.MODEL.VIT.PRETRAIN_IMG_SIZE = 224

    cfg.MODEL.LIFT = CfgNode()
    cfg.MODEL.LIFT.CHECKPOINT = ""  # a trained LiFT: all that it needs
    # In the registry of upsamplers, or "none"; None is what the checkpoint holds, or "lift" without one
    cfg.MODEL.LIFT.UPSAMPLER = None
    cfg.MODEL.LIFT.NORM = None  # LiFT's normalisation layer; None is the checkpoint's, or "BN"
    cfg.MODEL.LIFT.RESIDUAL = None  # False is the paper's network; the authors' files do not say it
    cfg.MODEL.LIFT.STEPS = 1
    cfg.MODEL.LIFT.INPUT_SCALE = 1.0  # 0.5 is the fast way
    cfg.MODEL.LIFT.FREEZE = False
    # Fields of FeatureSpec in which the LiFT may have been trained on other features, such as ["backbone"]
    cfg.MODEL.LIFT.ALLOW_LIFT = []
    # Parts of the model that a checkpoint may fill in part; see lift_det.modeling.GeneralizedRCNN
    cfg.MODEL.LIFT.ALLOW_PARTIAL = []
    cfg.MODEL.LIFT.MASK_FORMAT = "bitmask"  # or "rle"; see lift_det.modeling.GeneralizedRCNN

    cfg.MODEL.SIMPLE_FPN = CfgNode()
    cfg.MODEL.SIMPLE_FPN.OUT_CHANNELS = 256
    cfg.MODEL.SIMPLE_FPN.LEVEL_STRIDES = [4, 8, 16, 32]
    cfg.MODEL.SIMPLE_FPN.NORM = "LN"
    cfg.MODEL.SIMPLE_FPN.SQUARE_PAD = 1024

    # tools/train_net.py: "ADAMW" with layer-wise decay as in ViTDet, or detectron2's "SGD"
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.VIT_LR_DECAY_RATE = 0.7
    cfg.SOLVER.LIFT_LR_RATE = None  # LiFT's factor; see lift_det.engine.LayerDecay


@BACKBONE_REGISTRY.register()
def build_lift_vitdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ViT, LiFT and simple feature pyramid from ``MODEL.VIT``, ``MODEL.LIFT`` and ``MODEL.SIMPLE_FPN``.

    ``MODEL.META_ARCHITECTURE: build_lift_rcnn`` belongs with it: detectron2's GeneralizedRCNN does not check what of a
    checkpoint fits.
    """
    net = _build_vit(cfg.MODEL.VIT, input_shape)
    pyramid = cfg.MODEL.SIMPLE_FPN
    return LiFTFeaturePyramid(
        net,
        _upsampler(cfg.MODEL.LIFT),
        in_feature="last_feat",
        out_channels=pyramid.OUT_CHANNELS,
        level_strides=pyramid.LEVEL_STRIDES,
        steps=cfg.MODEL.LIFT.STEPS,
        input_scale=cfg.MODEL.LIFT.INPUT_SCALE,
        top_block=LastLevelMaxPool(),
        norm=pyramid.NORM,
        square_pad=pyramid.SQUARE_PAD,
        freeze_net=cfg.MODEL.VIT.FREEZE,
        freeze_lift=cfg.MODEL.LIFT.FREEZE,
        allow_lift=cfg.MODEL.LIFT.ALLOW_LIFT,
    )


@META_ARCH_REGISTRY.register()
def build_lift_rcnn(cfg: CfgNode) -> GeneralizedRCNN:
    """lift_det's GeneralizedRCNN, which checks what it loads; detectron2's own has that name in the registry."""
    return GeneralizedRCNN(cfg)


def _build_vit(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    if cfg.TIMM_NAME:
        return TimmViT(
            cfg.TIMM_NAME,
            pretrained=cfg.PRETRAINED,
            checkpoint=cfg.CHECKPOINT,
            norm=cfg.NORM,
            use_act_checkpoint=cfg.USE_ACT_CHECKPOINT,
        )
    return ViT(
        img_size=cfg.IMG_SIZE,
        patch_size=cfg.PATCH_SIZE,
        in_chans=input_shape.channels,
        embed_dim=cfg.EMBED_DIM,
        depth=cfg.DEPTH,
        num_heads=cfg.NUM_HEADS,
        drop_path_rate=cfg.DROP_PATH_RATE,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=cfg.WINDOW_SIZE,
        window_block_indexes=cfg.WINDOW_BLOCK_INDEXES,
        pretrain_img_size=cfg.PRETRAIN_IMG_SIZE,
        use_act_checkpoint=cfg.USE_ACT_CHECKPOINT,
    )


def _upsampler(cfg: CfgNode) -> LazyUpsampler | None:
    if cfg.UPSAMPLER == "none":
        return None
    return LazyUpsampler(cfg.UPSAMPLER, cfg.CHECKPOINT, norm=cfg.NORM, residual=cfg.RESIDUAL)
