"""Prediction for single images and batches, from a LazyConfig or yacs, or from a training's output folder alone."""

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
from detectron2.utils.colormap import colormap
from omegaconf import DictConfig
from torch import nn

from lift_det import config
from lift_det.data import DatasetError
from lift_det.data.images import read_rgb, to_rgb

from .trained_model import load_model, read_output_folder

Image: TypeAlias = "np.ndarray | str | os.PathLike | PIL.Image.Image"

ARRAY_FORMATS = ("RGB", "BGR")


class Predictor:
    """A trained detector for images as they come: what detectron2's ``DefaultPredictor`` is for a yacs config.

    An image goes through the test augmentations of the config and comes out as it would in its evaluation; boxes and
    masks are in pixels of the image that was given. ::

        predictor = lift_det.Predictor.from_folder("output/my_detector", score_threshold=0.5)
        instances = predictor("photo.jpg")["instances"]
        outputs = predictor(["photo.jpg", PIL.Image.open("other.png")])  # a batch

    Attributes:
        model: the detector, in evaluation mode.
        class_names: in the order of ``pred_classes``.
        category_ids: of the data set, in the same order.
        metadata: for detectron2's ``Visualizer``: ``thing_classes`` and ``thing_colors``.
    """

    def __init__(
        self,
        cfg: DictConfig | CfgNode | str | os.PathLike,
        weights: str | os.PathLike,
        *,
        device: str | None = None,
        score_threshold: float | None = None,
        array_format: str | None = None,
    ) -> None:
        """
        Args:
            cfg: a LazyConfig, yacs's, the path of either, or a name in ``lift_det.model_zoo``.
            weights: a checkpoint of that config's model.
            device: ``"cuda"`` or ``"cpu"``; None takes a GPU where there is one.
            score_threshold: detections below are left out; None is the config's (0.05 in ViTDet's).
            array_format: the order of the channels in arrays, ``"RGB"`` (Pillow, matplotlib, imageio) or ``"BGR"``
                (OpenCV). Has to be said only for colour arrays: files and Pillow images know theirs.

        Raises:
            ValueError: another ``array_format``, a config that does not say how images get into its model, one whose
                data set has another number of classes, or a score threshold for a model that has none.
            CheckpointError: the weights are missing, broken or another model's.
            lift_det.config.ConfigNotFoundError: there is no such config.
        """
        if array_format not in (None, *ARRAY_FORMATS):
            raise ValueError(f"array_format: expected one of {ARRAY_FORMATS}, got {array_format!r}.")
        if not isinstance(cfg, (DictConfig, CfgNode)):
            cfg = config.load(cfg)
        self._array_format = array_format
        self._augmentations, self._image_format, largest = _input_of(cfg)
        self._fit = T.ResizeShortestEdge(largest, largest) if largest else None
        self.model = load_model(cfg, weights, device)
        if score_threshold is not None:
            _set_score_threshold(self.model, score_threshold)
        self.metadata, self.category_ids = _classes_of(cfg, _num_classes(self.model))
        self.class_names = tuple(self.metadata.thing_classes)

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike, weights: str | os.PathLike | None = None, **kwargs: Any
    ) -> Predictor:
        """A predictor from the output folder of a training, the one of ``metrics.json``.

        Args:
            folder: see :func:`lift_det.engine.read_output_folder`: its config is code.
            weights: in place of the folder's best or last checkpoint.
            kwargs: as the constructor's.

        Raises:
            FileNotFoundError: the folder lacks a config or a checkpoint; and what the constructor raises.
        """
        return cls(*read_output_folder(folder, weights), **kwargs)

    @torch.no_grad()
    def __call__(self, images: Image | Sequence[Image]) -> dict[str, Instances] | list[dict[str, Instances]]:
        """Detects objects in one image, or in a list of them at once.

        Args:
            images: each of any size and one of

                - an array, uint8 (H, W, 3), its channels in ``array_format``; (H, W) is grey; of (H, W, 4) the fourth,
                  alpha, is left out;
                - the path of a file, read by Pillow, turned the way its EXIF orientation says;
                - a Pillow image of any mode, turned the same way.

                A list goes through the model as one batch. Its images do not change each other's results where the
                model pads to a square (``square_pad``); padding to the largest of a batch can.

        Returns:
            ``{"instances": Instances}`` as detectron2's models give it, on the model's device; for a list, a list.

        Raises:
            ValueError: an array of another shape, dtype or without ``array_format``.
            DatasetError: a file that cannot be read.
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
        """What the model takes of an RGB image: as the config's mapper makes it of a file."""
        height, width = image.shape[:2]
        given = _AugInput(image if self._image_format == "RGB" else image[:, :, ::-1])
        T.AugmentationList(self._augmentations)(given)
        if self._fit is not None and max(given.image.shape[:2]) > self._fit.max_size:
            self._fit(given)  # the evaluation of such an image would end in an error
        pixels = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}


class _AugInput(T.AugInput):
    """detectron2's, with room for a line: its resizing makes 0 pixels of the short side of a long enough image."""

    def transform(self, tfm: T.Transform) -> None:
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(tfm.new_h, 1), max(tfm.new_w, 1)
        super().transform(tfm)


def _array_to_rgb(array: np.ndarray, array_format: str | None) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        hint = " A batch is a list of images." if array.ndim == 4 else ""
        raise ValueError(
            f"Expected an image as uint8 from 0 to 255 of shape (H, W, 3), (H, W) or (H, W, 4), got {array.dtype} of "
            f"shape {array.shape}.{hint}"
        )
    if channels == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array_format is None:
        raise ValueError(
            "An array does not say the order of its colours: give Predictor(..., array_format='BGR') for images from "
            "OpenCV (cv2.imread, cv2.VideoCapture), array_format='RGB' for those from Pillow, matplotlib or imageio."
        )
    return array[:, :, :3] if array_format == "RGB" else array[:, :, 2::-1]


def _input_of(cfg: DictConfig | CfgNode) -> tuple[list[T.Augmentation], str, int]:
    """The test augmentations, the order of the model's channels, and the side of the square it pads to (0: none)."""
    if isinstance(cfg, CfgNode):
        augmentations, image_format = detection_utils.build_augmentation(cfg, is_train=False), cfg.INPUT.FORMAT
        square_pad = cfg.MODEL.get("SIMPLE_FPN", {}).get("SQUARE_PAD", 0)
    else:
        mapper = cfg.get("dataloader", {}).get("test", {}).get("mapper")
        if mapper is None or "augmentations" not in mapper or "image_format" not in mapper:
            raise ValueError(
                "The config does not say how an image gets into its model: expected dataloader.test.mapper with "
                "`augmentations` and `image_format`, as detectron2's configs/common/data/coco.py has it."
            )
        augmentations = [instantiate(augmentation) for augmentation in mapper.augmentations]
        image_format, square_pad = mapper.image_format, cfg.model.get("backbone", {}).get("square_pad", 0)
    if image_format not in ARRAY_FORMATS:
        raise ValueError(f"The config's image format is '{image_format}': Predictor knows {ARRAY_FORMATS}.")
    return augmentations, image_format, square_pad


def _set_score_threshold(model: nn.Module, threshold: float) -> None:
    # the attribute of detectron2's box predictors (a cascade has three) and of its one-stage detectors
    heads = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    if not heads:
        raise ValueError(f"score_threshold={threshold}: no part of {type(model).__name__} has a `test_score_thresh`.")
    for head in heads:
        head.test_score_thresh = threshold


def _num_classes(model: nn.Module) -> int:
    holder = getattr(model, "roi_heads", model)
    if not isinstance(getattr(holder, "num_classes", None), int):
        raise ValueError(f"{type(model).__name__} is no detector: expected `num_classes` in it or in its `roi_heads`.")
    return holder.num_classes


def _classes_of(cfg: DictConfig | CfgNode, num_classes: int) -> tuple[Metadata, tuple[int, ...]]:
    """Names and colours of the classes, and their ids in the data set that the config is evaluated on.

    They are the config's own where it states them, as `lift-det train` does, else those that detectron2 knows the data
    set by, else numbers.
    """
    yacs = isinstance(cfg, CfgNode)
    stated = {} if yacs else cfg.dataloader.test.get("dataset", {})
    names = cfg.DATASETS.TEST if yacs else stated.get("names") or ()
    name = names if isinstance(names, str) else next(iter(names), "")
    known = MetadataCatalog.get(name) if name in MetadataCatalog else Metadata()  # get() would make one
    if stated.get("thing_classes"):
        class_names, ids = stated.thing_classes, stated.get("category_ids")
    else:
        class_names = known.get("thing_classes") or [f"class {i}" for i in range(num_classes)]
        to_class = known.get("thing_dataset_id_to_contiguous_id", {})
        ids = sorted(to_class, key=to_class.__getitem__)
    ids = ids or range(len(class_names))
    if len(class_names) != num_classes or len(ids) != num_classes:
        raise ValueError(
            f"The model has {num_classes} classes, the data set '{name}' of the config {len(class_names)} names and "
            f"{len(ids)} ids: is dataloader.test.dataset (DATASETS.TEST in yacs) the one it was trained on?"
        )
    palette = colormap(rgb=True).astype(int).tolist()
    colours = [palette[i % len(palette)] for i in range(num_classes)]
    if "thing_classes" not in stated:
        colours = known.get("thing_colors", colours)
    return Metadata(thing_classes=list(class_names), thing_colors=colours), tuple(ids)
