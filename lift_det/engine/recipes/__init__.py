"""Configs made from what a user has: own data in COCO's format for a detector, images for LiFT's training."""

from .detector import fit_config
from .own_data import check_own_coco, own_coco, use_dataset
from .pretraining import pretraining_config

__all__ = ["check_own_coco", "fit_config", "own_coco", "pretraining_config", "use_dataset"]
