"""Support of yacs configs: their keys, and entries in detectron2's registries."""

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
    """Adds lift_det's keys to a detectron2 config, before a file is merged. Defaults are ViTDet-B with dense LiFT."""
    cfg.MODEL.VIT = CfgNode()
    cfg.MODEL.VIT.FREEZE = False
    cfg.MODEL.VIT.USE_ACT_CHECKPOINT = False
    # Arguments of TimmViT, which is used if TIMM_NAME is not empty
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

    cfg.MODEL.IGNORE_MISMATCH = []  # of GeneralizedRCNN
    cfg.MODEL.LIFT = CfgNode()
    # Arguments of LazyUpsampler and LiFTFeaturePyramid
    cfg.MODEL.LIFT.CHECKPOINT = ""  # file of a trained LiFT
    cfg.MODEL.LIFT.UPSAMPLER = None  # a registered name, or "none" for no upsampler
    cfg.MODEL.LIFT.NORM = None  # default: that of the checkpoint, or "BN"
    cfg.MODEL.LIFT.RESIDUAL = None  # False for the authors' files
    cfg.MODEL.LIFT.STEPS = 1
    cfg.MODEL.LIFT.INPUT_SCALE = 1.0  # 0.5 for the fast LiFT
    cfg.MODEL.LIFT.FREEZE = False
    cfg.MODEL.LIFT.IGNORE_MISMATCH = []  # of LiFTFeaturePyramid
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
    """Builds a :class:`LiFTFeaturePyramid`. Use it with ``MODEL.META_ARCHITECTURE: build_lift_rcnn``."""
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
        ignore_mismatch=lift.IGNORE_MISMATCH,
    )


@META_ARCH_REGISTRY.register()
def build_lift_rcnn(cfg: CfgNode) -> GeneralizedRCNN:
    """Builds lift_det's GeneralizedRCNN, under a name that detectron2's registry does not have yet."""
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
