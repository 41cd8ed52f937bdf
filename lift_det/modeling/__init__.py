"""Models: LiFT, the ViTs, the pyramid that joins them, and the detector around it."""

from .agreement import check_lift, same_weights, weights_fingerprint
from .build import add_lift_config, build_lift_rcnn, build_lift_vitdet_backbone
from .features import FeatureExtractor
from .lift import BilinearUpsample, FeatureUpsampler, LiFT, load_lift, save_lift
from .named_vit import NamedViT, find_vit
from .pyramid import LiFTFeaturePyramid
from .rcnn import GeneralizedRCNN
from .timm_vit import TimmViT
from .vit import ViT

__all__ = [
    "BilinearUpsample",
    "FeatureExtractor",
    "FeatureUpsampler",
    "GeneralizedRCNN",
    "LiFT",
    "LiFTFeaturePyramid",
    "NamedViT",
    "TimmViT",
    "ViT",
    "add_lift_config",
    "build_lift_rcnn",
    "build_lift_vitdet_backbone",
    "check_lift",
    "find_vit",
    "load_lift",
    "same_weights",
    "save_lift",
    "weights_fingerprint",
]
