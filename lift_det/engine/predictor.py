"""Prediction for single images and batches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import detectron2.data.transforms as T
import numpy as np
import PIL.Image
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import Metadata, MetadataCatalog, detection_utils
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn

from lift_det import config
from lift_det.data import DatasetError
from lift_det.data.images import read_rgb, to_rgb

from .trained_model import load_model, read_output_folder

Image: TypeAlias = "np.ndarray | str | os.PathLike | PIL.Image.Image"

ARRAY_FORMATS = ("RGB", "BGR")


class Predictor:
    """Runs a trained detector on images of any size and format, like detectron2's ``DefaultPredictor``.

    The test augmentations of the config are applied. Boxes and masks are in pixels of the original image. ::

        predictor = lift_det.Predictor.from_folder("output/my_detector", score_threshold=0.5)
        instances = predictor("photo.jpg")["instances"]
        outputs = predictor(["photo.jpg", PIL.Image.open("other.png")])  # a batch

    Attributes:
        model: the detector, in evaluation mode.
        class_names, category_ids: names and dataset ids of the classes, in the order of ``pred_classes``.
        metadata: for detectron2's ``Visualizer``.

    Args:
        cfg: a LazyConfig, a yacs config, the path of either, or a name in ``lift_det.model_zoo``.
        weights: a checkpoint of the config's model.
        device: ``"cuda"`` or ``"cpu"``. By default a GPU if there is one.
        score_threshold: smallest score of detections. By default that of the config (0.05 for ViTDet).
        array_format: channel order of colour arrays, ``"RGB"`` or ``"BGR"`` (OpenCV). Only needed for these.
        mask_format: see :func:`lift_det.engine.load_model`.

    Raises:
        ValueError: ``array_format`` is unknown, the config has no test augmentations or a dataset with another number
            of classes, or the model has no score threshold.
        CheckpointError: the weights are missing, broken, or do not fit the model.
        lift_det.config.ConfigNotFoundError: the config does not exist.
    """

    def __init__(
        self,
        cfg: DictConfig | CfgNode | str | os.PathLike,
        weights: str | os.PathLike,
        *,
        device: str | None = None,
        score_threshold: float | None = None,
        array_format: str | None = None,
        mask_format: str | None = "bitmask",
    ) -> None:
        if array_format not in (None, *ARRAY_FORMATS):
            raise ValueError(f"array_format: expected one of {ARRAY_FORMATS}, got {array_format!r}.")
        if not isinstance(cfg, (DictConfig, CfgNode)):
            cfg = config.load(cfg)
        self._array_format = array_format
        self._augmentations, self._image_format, largest = _input_options(cfg)
        self._fit = T.ResizeShortestEdge(largest, largest) if largest else None
        self.model = load_model(cfg, weights, device, mask_format)
        if score_threshold is not None:
            _set_score_threshold(self.model, score_threshold)
        self.metadata, self.category_ids = _classes_of(cfg, _num_classes(self.model))
        self.class_names = tuple(self.metadata.thing_classes)

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike, weights: str | os.PathLike | None = None, **kwargs: Any
    ) -> Predictor:
        """Creates a predictor from the output folder of a training; see :func:`lift_det.engine.read_output_folder`.

        The config in the folder can call any function. Only use folders that you trust.
        """
        return cls(*read_output_folder(folder, weights), **kwargs)

    @torch.no_grad()
    def __call__(self, images: Image | Sequence[Image]) -> dict[str, Instances] | list[dict[str, Instances]]:
        """Detects objects in one image or in a list of images.

        Args:
            images: paths, Pillow images of any mode, or uint8 arrays: (H, W, 3) in ``array_format``, (H, W) for grey,
                or (H, W, 4), whose alpha channel is ignored. Paths and Pillow images are rotated by their EXIF
                orientation. A list is one batch. Its images do not affect each other if the model pads to a square
                (``square_pad``).

        Returns:
            ``{"instances": Instances}`` on the model's device, as in detectron2; for a list of images, a list.

        Raises:
            ValueError: an array has a wrong shape or dtype, or has colours and no ``array_format`` was set.
            DatasetError: a file cannot be read.
        """
        if isinstance(images, (list, tuple)):
            return self.model([self._input(self._read(image)) for image in images]) if images else []
        return self.model([self._input(self._read(images))])[0]

    def _read(self, image: Image) -> np.ndarray:
        """(H, W, 3) uint8 in RGB."""
        if isinstance(image, np.ndarray):
            return _array_to_rgb(image, self._array_format)
        if isinstance(image, PIL.Image.Image):
            return to_rgb(image)
        array, reason = read_rgb(image)
        if array is None:
            raise DatasetError(f"'{os.fspath(image)}' cannot be read: {reason}.")
        return array

    def _input(self, image: np.ndarray) -> dict[str, Any]:
        """Returns the model's input for an RGB image, as the config's mapper does for a file."""
        height, width = image.shape[:2]
        aug_input = _AugInput(image if self._image_format == "RGB" else image[:, :, ::-1])
        T.AugmentationList(self._augmentations)(aug_input)
        if self._fit is not None and max(aug_input.image.shape[:2]) > self._fit.max_size:
            self._fit(aug_input)  # the model does not take images larger than its square
        pixels = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}


class _AugInput(T.AugInput):
    """Resizes to at least one pixel. detectron2 resizes the short side of a very long image to 0."""

    def transform(self, tfm: T.Transform) -> None:
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(tfm.new_h, 1), max(tfm.new_w, 1)
        super().transform(tfm)


def _array_to_rgb(array: np.ndarray, array_format: str | None) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        hint = " For a batch give a list of images." if array.ndim == 4 else ""
        raise ValueError(
            f"Expected a uint8 image of shape (H, W, 3), (H, W) or (H, W, 4), got {array.dtype} of shape "
            f"{array.shape}.{hint}"
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array_format is None:
        raise ValueError(
            "The channel order of the array is unknown: set Predictor(..., array_format='BGR') for images from OpenCV, "
            "array_format='RGB' for others."
        )
    return array[:, :, :3] if array_format == "RGB" else array[:, :, 2::-1]


def _input_options(cfg: DictConfig | CfgNode) -> tuple[list[T.Augmentation], str, int]:
    """Returns test augmentations, the model's channel order, and the side of the square that it pads to (or 0)."""
    if isinstance(cfg, CfgNode):
        augmentations, image_format = detection_utils.build_augmentation(cfg, is_train=False), cfg.INPUT.FORMAT
        square_pad = cfg.MODEL.get("SIMPLE_FPN", {}).get("SQUARE_PAD", 0)
    else:
        mapper = cfg.get("dataloader", {}).get("test", {}).get("mapper")
        if mapper is None or "augmentations" not in mapper or "image_format" not in mapper:
            raise ValueError(
                "The config has no dataloader.test.mapper with `augmentations` and `image_format`; see detectron2's "
                "configs/common/data/coco.py."
            )
        augmentations = [instantiate(augmentation) for augmentation in mapper.augmentations]
        image_format, square_pad = mapper.image_format, cfg.model.get("backbone", {}).get("square_pad", 0)
    if image_format not in ARRAY_FORMATS:
        raise ValueError(f"The config's image format is '{image_format}', expected one of {ARRAY_FORMATS}.")
    return augmentations, image_format, square_pad


def _set_score_threshold(model: nn.Module, threshold: float) -> None:
    # detectron2's box predictors (three in a cascade) and one-stage detectors have this attribute
    heads = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    if not heads:
        raise ValueError(f"score_threshold={threshold}: no part of {type(model).__name__} has a `test_score_thresh`.")
    for head in heads:
        head.test_score_thresh = threshold


def _num_classes(model: nn.Module) -> int:
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if not isinstance(num_classes, int):
        raise ValueError(
            f"{type(model).__name__} is not a detector: neither it nor its `roi_heads` have `num_classes`."
        )
    return num_classes


def _classes_of(cfg: DictConfig | CfgNode, num_classes: int) -> tuple[Metadata, tuple[int, ...]]:
    """Returns names and category ids of the classes: from the config, else the MetadataCatalog, else numbers."""
    stated = {} if isinstance(cfg, CfgNode) else cfg.dataloader.test.get("dataset", {})
    names = cfg.DATASETS.TEST if isinstance(cfg, CfgNode) else stated.get("names") or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    registered = MetadataCatalog.get(name) if name in MetadataCatalog else Metadata()  # get() would register it
    if stated.get("thing_classes"):
        class_names, ids = stated.thing_classes, stated.get("category_ids")
    else:
        class_names = registered.get("thing_classes") or [f"class {i}" for i in range(num_classes)]
        to_class = registered.get("thing_dataset_id_to_contiguous_id", {})
        ids = sorted(to_class, key=to_class.__getitem__)
    ids = ids or range(len(class_names))
    if len(class_names) != num_classes or len(ids) != num_classes:
        raise ValueError(
            f"The model has {num_classes} classes, but the config's dataset '{name}' has {len(class_names)} names and "
            f"{len(ids)} ids. Set dataloader.test.dataset (yacs: DATASETS.TEST) to a dataset of the model's classes."
        )
    metadata = Metadata(thing_classes=list(class_names))
    if "thing_classes" not in stated and registered.get("thing_colors"):
        metadata.thing_colors = registered.thing_colors
    return metadata, tuple(ids)
