"""Data sets: a synthetic COCO, unlabelled image folders, subsets of COCO, and loading that says what is wrong.

Importing registers ``lift_det_synthetic_{train,val}``, ``coco_2017_train_overfit8`` and ``coco_2017_val_first2`` with
detectron2, and does nothing else: nothing is opened or drawn.
"""

from .dataset_dicts import get_dataset_dicts
from .dataset_mapper import DatasetMapper
from .errors import DatasetError
from .image_folder import ImageFolder, build_image_folder_loader
from .register import register_all, register_coco_subset
from .synthetic_coco import write_synthetic_coco

register_all()

__all__ = [
    "DatasetError",
    "DatasetMapper",
    "ImageFolder",
    "build_image_folder_loader",
    "get_dataset_dicts",
    "register_coco_subset",
    "write_synthetic_coco",
]
