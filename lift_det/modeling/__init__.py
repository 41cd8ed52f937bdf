"""Models: ViTs, feature upsamplers, the feature pyramid, the detector and LiFT's training."""

from .backbones import NamedViT, PlainViT, TimmViT, ViT, find_vit
from .build import add_lift_config, build_lift_rcnn, build_lift_vitdet_backbone
from .feature_spec import FeatureSpec
from .features import FeatureExtractor, upsampled_features, whole_patches
from .meta_arch import GeneralizedRCNN, LiFTPretraining
from .pyramid import LiFTFeaturePyramid
from .upsamplers import (
    BilinearUpsample,
    ExternalUpsampler,
    FeatureUpsampler,
    LazyUpsampler,
    LiFT,
    LiFTPlus,
    build_upsampler,
    load_lift,
    register_upsampler,
    save_lift,
)

__all__ = [
    "BilinearUpsample",
    "ExternalUpsampler",
    "FeatureExtractor",
    "FeatureSpec",
    "FeatureUpsampler",
    "GeneralizedRCNN",
    "LazyUpsampler",
    "LiFT",
    "LiFTFeaturePyramid",
    "LiFTPlus",
    "LiFTPretraining",
    "NamedViT",
    "PlainViT",
    "TimmViT",
    "ViT",
    "add_lift_config",
    "build_lift_rcnn",
    "build_lift_vitdet_backbone",
    "build_upsampler",
    "find_vit",
    "load_lift",
    "register_upsampler",
    "save_lift",
    "upsampled_features",
    "whole_patches",
]
