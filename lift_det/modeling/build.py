"""yacs support: config keys, and entries in detectron2's registries."""

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
    """Adds lift_det's keys to a detectron2 config, with defaults for ViTDet-B and the dense LiFT.

    Call it after :func:`detectron2.config.get_cfg` and before merging a file.
    """
    cfg.MODEL.VIT = CfgNode()
    cfg.MODEL.VIT.FREEZE = False
    cfg.MODEL.VIT.USE_ACT_CHECKPOINT = False
    # Arguments of TimmViT, which is used if TIMM_NAME is set
    cfg.MODEL.VIT.TIMM_NAME = ""
    cfg.MODEL.VIT.CHECKPOINT = ""
    cfg.MODEL.VIT.PRETRAINED = False
    cfg.MODEL.VIT.FINAL_NORM = True
    # Arguments of ViT; its weights are loaded through MODEL.WEIGHTS
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
    cfg.MODEL.LIFT.CHECKPOINT = ""  # file of a trained LiFT
    cfg.MODEL.LIFT.UPSAMPLER = None  # a registered name or "none"; None is the checkpoint's, or "lift"
    cfg.MODEL.LIFT.NORM = None  # normalisation layer; None is the checkpoint's, or "BN"
    cfg.MODEL.LIFT.RESIDUAL = None  # has to be False for the authors' files
    cfg.MODEL.LIFT.STEPS = 1
    cfg.MODEL.LIFT.INPUT_SCALE = 1.0  # 0.5 for the fast LiFT
    cfg.MODEL.LIFT.FREEZE = False
    cfg.MODEL.LIFT.ALLOW_LIFT = []  # ignore_mismatch of LiFTFeaturePyramid
    cfg.MODEL.LIFT.ALLOW_PARTIAL = []  # ignore_mismatch of GeneralizedRCNN
    cfg.MODEL.LIFT.MASK_FORMAT = "bitmask"  # or "rle"

    cfg.MODEL.SIMPLE_FPN = CfgNode()
    cfg.MODEL.SIMPLE_FPN.OUT_CHANNELS = 256
    cfg.MODEL.SIMPLE_FPN.LEVEL_STRIDES = [4, 8, 16, 32]
    cfg.MODEL.SIMPLE_FPN.NORM = "LN"
    cfg.MODEL.SIMPLE_FPN.SQUARE_PAD = 1024

    cfg.SOLVER.OPTIMIZER = "ADAMW"  # with layer-wise decay as in ViTDet, or "SGD" as in detectron2
    cfg.SOLVER.VIT_LR_DECAY_RATE = 0.7
    cfg.SOLVER.LIFT_LR_RATE = None  # see lift_det.engine.LayerDecay


@BACKBONE_REGISTRY.register()
def build_lift_vitdet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds the backbone from ``MODEL.VIT``, ``MODEL.LIFT`` and ``MODEL.SIMPLE_FPN``.

    Use it with ``MODEL.META_ARCHITECTURE: build_lift_rcnn``, which checks loaded checkpoints.
    """
    net = _build_vit(cfg.MODEL.VIT, input_shape)
    lift, pyramid = cfg.MODEL.LIFT, cfg.MODEL.SIMPLE_FPN
    upsampler = None
    if lift.UPSAMPLER != "none":
        upsampler = LazyUpsampler(lift.UPSAMPLER, lift.CHECKPOINT, norm=lift.NORM, residual=lift.RESIDUAL)
    return LiFTFeaturePyramid(
        net,
        upsampler,
        in_feature="last_feat",
        out_channels=pyramid.OUT_CHANNELS,
        level_strides=pyramid.LEVEL_STRIDES,
        steps=lift.STEPS,
        input_scale=lift.INPUT_SCALE,
        top_block=LastLevelMaxPool(),
        norm=pyramid.NORM,
        square_pad=pyramid.SQUARE_PAD,
        freeze_net=cfg.MODEL.VIT.FREEZE,
        freeze_lift=lift.FREEZE,
        ignore_mismatch=lift.ALLOW_LIFT,
    )


@META_ARCH_REGISTRY.register()
def build_lift_rcnn(cfg: CfgNode) -> GeneralizedRCNN:
    """Builds lift_det's GeneralizedRCNN; detectron2's has that name in the registry."""
    return GeneralizedRCNN(cfg)


def _build_vit(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    if cfg.TIMM_NAME:
        return TimmViT(
            cfg.TIMM_NAME,
            pretrained=cfg.PRETRAINED,
            checkpoint=cfg.CHECKPOINT,
            final_norm=cfg.FINAL_NORM,
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
