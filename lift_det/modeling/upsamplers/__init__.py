"""What can fill the slot between ViT and pyramid. A new upsampler is a file here and a line below."""

from .base import FeatureUpsampler, register_upsampler, resize, scaled_size
from .bilinear import BilinearUpsample
from .build import LazyUpsampler, build_upsampler, fit_upsampler
from .external import ExternalUpsampler
from .files import load_lift, save_lift
from .lift import LiFT
from .lift_plus import LiFTPlus

__all__ = [
    "BilinearUpsample",
    "ExternalUpsampler",
    "FeatureUpsampler",
    "LazyUpsampler",
    "LiFT",
    "LiFTPlus",
    "build_upsampler",
    "fit_upsampler",
    "load_lift",
    "register_upsampler",
    "resize",
    "save_lift",
    "scaled_size",
]
