"""Models of a few thousand weights, with weights large enough to make mistakes visible."""

from functools import partial

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from lift_det import FeatureExtractor, LiFTFeaturePyramid, TimmViT, ViT
from lift_det.modeling import LiFTPlus


def shaken(model: nn.Module) -> nn.Module:
    """Random weights, positions and statistics: many of a new model's are zero."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "square")):
            buffer.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "normalize.mean", "standardize.mean")):
            buffer.normal_(std=0.3)
    return model.eval()


def lift(channels: int, patch_size: int) -> LiFTPlus:
    return shaken(LiFTPlus(channels, patch_size))


def timm_vit(patch_size: int = 14, **kwargs: object) -> TimmViT:
    """Has positions of a 4×4 grid."""
    return shaken(TimmViT("vit_tiny_patch16_224", patch_size=patch_size, img_size=4 * patch_size, depth=1, **kwargs))


def extractor(patch_size: int = 14) -> FeatureExtractor:
    return FeatureExtractor(timm_vit(patch_size), lift(192, patch_size)).eval()


def vit() -> ViT:
    """detectron2's ViT with windows that do not divide the grid, relative positions and a convolutional block."""
    options = dict(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, drop_path_rate=0.0)
    options |= dict(norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=3)
    options |= dict(window_block_indexes=[0], residual_block_indexes=[1], pretrain_img_size=32)
    return shaken(ViT(**options))


def pyramid(net: nn.Module, input_scale: float = 1.0, square_pad: int = 0) -> LiFTFeaturePyramid:
    (shape,) = net.output_shape().values()
    finest = round(shape.stride / input_scale) // 2
    return shaken(
        LiFTFeaturePyramid(
            net,
            lift(shape.channels, shape.stride),
            in_feature="last_feat",
            out_channels=16,
            level_strides=(finest, 2 * finest, 4 * finest),
            input_scale=input_scale,
            top_block=LastLevelMaxPool() if shape.stride == 16 else None,
            square_pad=square_pad,
        )
    )
