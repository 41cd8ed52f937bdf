"""Meta architectures: the detector and LiFT's self-supervised training."""

from .lift_pretraining import LiFTPretraining
from .rcnn import GeneralizedRCNN

__all__ = ["GeneralizedRCNN", "LiFTPretraining"]
