"""Configs for your own data."""

from .detector import check_own_coco, fit_config, own_coco, use_dataset
from .pretraining import pretraining_config

__all__ = ["check_own_coco", "fit_config", "own_coco", "pretraining_config", "use_dataset"]
