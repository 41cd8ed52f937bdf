"""Models of a few thousand weights with everything that an export has to get right, and weights that make it matter."""

from functools import partial

import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from lift_det import FeatureExtractor, LiFTFeaturePyramid, TimmViT, ViT
from lift_det.modeling import LiFTPlus


def shaken(model: nn.Module) -> nn.Module:
    """Weights, positions and statistics of some size: as models are built, much of them is zero and hides mistakes."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "square")):
            buffer.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "normalize.mean")):
            buffer.normal_(std=0.3)
    return model.eval()


def lift(channels: int, patch_size: int) -> LiFTPlus:
    """With all that LiFT can be made of."""
    return shaken(LiFTPlus(channels, patch_size))


def timm_vit(patch_size: int = 14, **kwargs: object) -> TimmViT:
    """Positions of a 4×4 grid, which other grids are interpolated from."""
    return shaken(TimmViT("vit_tiny_patch16_224", patch_size=patch_size, img_size=4 * patch_size, depth=1, **kwargs))


def extractor(patch_size: int = 14) -> FeatureExtractor:
    """ViT + LiFT."""
    return FeatureExtractor(timm_vit(patch_size), lift(192, patch_size)).eval()


def vit(window_size: int = 3) -> ViT:
    """detectron2's ViT with windows that do not fill the grid, relative positions and a convolutional block."""
    return shaken(
        ViT(
            img_size=64,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=2,
            drop_path_rate=0.0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=window_size,
            window_block_indexes=[0] if window_size else [],
            residual_block_indexes=[1],
            pretrain_img_size=32,
            pretrain_use_cls_token=True,
            out_feature="last_feat",
        )
    )


def pyramid(net: nn.Module, input_scale: float = 1.0, square_pad: int = 0) -> LiFTFeaturePyramid:
    """A backbone with its LiFT, and a level made by pooling."""
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
