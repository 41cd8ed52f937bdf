"""Datasets: loading and checking of COCO-format annotations, image folders, and a synthetic dataset.

Importing registers ``lift_det_synthetic_{train,val}``, ``coco_2017_train_overfit8`` and ``coco_2017_val_first2`` with
detectron2; it reads no file.
"""

from .coco_check import check_coco
from .coco_findings import CocoCheck, CocoFinding
from .dataset_dicts import get_dataset_dicts
from .dataset_mapper import DatasetMapper
from .errors import DatasetError
from .image_folder import ImageFolder, build_image_folder_loader
from .own_coco import load_own_coco, parse_dataset, write_own_coco
from .register import register_all, register_coco_subset
from .synthetic_coco import write_synthetic_coco

register_all()

__all__ = [
    "CocoCheck",
    "CocoFinding",
    "DatasetError",
    "DatasetMapper",
    "ImageFolder",
    "build_image_folder_loader",
    "check_coco",
    "get_dataset_dicts",
    "load_own_coco",
    "parse_dataset",
    "register_coco_subset",
    "write_own_coco",
    "write_synthetic_coco",
]
