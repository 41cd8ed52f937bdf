"""Prediction on image and video files."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from lift_det.data import DatasetError
from lift_det.data.image_files import InputFile, find_files
from lift_det.data.images import read_rgb
from lift_det.data.video import VideoReader, VideoWriter
from lift_det.evaluation import instances_to_coco_json, with_category_ids
from lift_det.files import write_atomically, write_text_atomically
from lift_det.visualization import draw_detections

JSON_NAME = "predictions.json"
#: to drawings of images in other formats, ".jpg" is appended
_PICTURE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
#: seconds between two writes of the JSON
_WRITE_PERIOD = 60.0

_T = TypeVar("_T")


@dataclass
class PredictedFiles:
    """The result of :func:`predict_files`."""

    json_file: str
    #: including frames of videos
    num_images: int = 0
    num_detections: int = 0
    #: total time, including reading and drawing
    seconds: float = 0.0
    model_seconds: float = 0.0
    #: (file, reason) of each file that could not be read to its end
    failures: list[tuple[str, str]] = field(default_factory=list)


def predict_files(
    predictor: Any,
    inputs: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    pictures: bool = True,
    batch_size: int = 1,
    every: int = 1,
) -> PredictedFiles:
    """Runs a predictor on images and videos, and writes drawings and ``predictions.json`` to a folder.

    Drawings have the names of their files, relative to the common folder of all inputs. ``.jpg`` is appended to images
    that are neither JPEG nor PNG, ``.mp4`` to videos that are not MP4.

    ``predictions.json`` is a dataset in COCO's format with a ``score`` in each annotation and masks as RLE. Each frame
    of a video is an image with the keys ``video`` and ``frame`` (from 0). Unreadable files are listed in
    ``info.unreadable``. After an interruption the file has all images so far, and ``info.complete`` is false.

    Args:
        predictor: a :class:`lift_det.Predictor`; ``mask_format="rle"`` saves time and memory.
        inputs: files, folders and patterns; see :func:`lift_det.data.image_files.find_files`.
        output: folder, created if needed.
        pictures: whether to write drawings.
        batch_size: images in a batch.
        every: use every n-th frame of a video.

    Raises:
        FileNotFoundError: the inputs have no image and no video.
        ValueError: a drawing would overwrite an input, or a number is not positive.
        OSError: the output cannot be written.
    """
    if min(batch_size, every) < 1:
        raise ValueError(f"batch_size={batch_size}, every={every}: expected positive numbers.")
    files, failures = find_files(inputs, exclude=output)
    if not files:
        raise FileNotFoundError("No image and no video: " + "; ".join(f"'{name}': {why}" for name, why in failures))
    targets = _targets(files, Path(output)) if pictures else {}
    os.makedirs(output, exist_ok=True)
    result = PredictedFiles(os.path.join(output, JSON_NAME), failures=failures)
    _Run(predictor, targets, batch_size, every, result).predict(files)
    return result


class _Run:
    """One call of :func:`predict_files`."""

    def __init__(
        self, predictor: Any, targets: dict[str, Path], batch_size: int, every: int, result: PredictedFiles
    ) -> None:
        self._predictor = predictor
        self._targets = targets
        self._batch_size = batch_size
        self._every = every
        self._result = result
        self._last_write = time.monotonic()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._to_category = dict(enumerate(predictor.category_ids))

    def predict(self, files: Sequence[InputFile]) -> None:
        start = time.perf_counter()
        images = [file for file in files if not file.is_video]
        videos = [file for file in files if file.is_video]
        complete = False
        try:
            # the number of frames of a video is not known in advance
            with tqdm(total=None if videos else len(images), unit="image") as self._bar:
                self._predict_images(images)
                for video in videos:
                    self._predict_video(video)
            complete = True
        finally:
            self._write(complete)
        self._result.num_images, self._result.num_detections = len(self._images), len(self._annotations)
        self._result.seconds = time.perf_counter() - start

    def _predict_images(self, files: Iterable[InputFile]) -> None:
        for batch in _batches(self._read_images(files), self._batch_size):
            for (file, image), instances in zip(batch, self._detect([image for _, image in batch]), strict=True):
                if file.path in self._targets:
                    picture = draw_detections(image, instances, self._predictor.metadata)
                    _write_picture(self._targets[file.path], picture)
                self._add(file.name, instances)

    def _read_images(self, files: Iterable[InputFile]) -> Iterator[tuple[InputFile, np.ndarray]]:
        for file in files:
            image, reason = read_rgb(file.path)
            if image is None:
                self._result.failures.append((file.path, reason))
                self._bar.update()
            else:
                yield file, image

    def _predict_video(self, file: InputFile) -> None:
        reader = writer = None
        try:
            reader = VideoReader(file.path)
            if file.path in self._targets:
                self._targets[file.path].parent.mkdir(parents=True, exist_ok=True)
                writer = VideoWriter(self._targets[file.path], reader.fps / self._every)
            for batch in _batches(reader.frames(self._every), self._batch_size):
                for (number, frame), instances in zip(batch, self._detect([frame for _, frame in batch]), strict=True):
                    if writer is not None:
                        writer.write(draw_detections(frame, instances, self._predictor.metadata, enlarge=False))
                    self._add(file.name, instances, video=file.name, frame=number)
        except DatasetError as error:
            self._result.failures.append((file.path, str(error)))
        finally:
            for open_file in filter(None, (reader, writer)):
                open_file.close()

    def _detect(self, images: list[np.ndarray]) -> list[Instances]:
        start = time.perf_counter()
        # Pillow images, because the predictor's array_format may be BGR
        outputs = self._predictor([Image.fromarray(image) for image in images])
        instances = [output["instances"].to("cpu") for output in outputs]
        self._result.model_seconds += time.perf_counter() - start
        return instances

    def _add(self, name: str, instances: Instances, **extra: Any) -> None:
        """Adds an image and its detections to the JSON."""
        height, width = (int(side) for side in instances.image_size)
        image = {"id": len(self._images) + 1, "file_name": name, "width": width, "height": height, **extra}
        self._images.append(image)
        for result in with_category_ids(instances_to_coco_json(instances, image["id"]), self._to_category):
            _, _, box_width, box_height = result["bbox"]
            rle = result.get("segmentation")
            area = box_width * box_height if rle is None else float(mask_util.area(rle))
            self._annotations.append({"id": len(self._annotations) + 1, **result, "area": area, "iscrowd": 0})
        self._bar.update()
        if time.monotonic() - self._last_write > _WRITE_PERIOD:
            self._write(complete=False)

    def _write(self, complete: bool) -> None:
        names = zip(self._predictor.category_ids, self._predictor.class_names, strict=True)
        unreadable = [{"file": name, "reason": reason} for name, reason in self._result.failures]
        content = {
            "info": {"complete": complete, "unreadable": unreadable},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": id_, "name": name} for id_, name in names],
        }
        write_text_atomically(self._result.json_file, json.dumps(content))
        self._last_write = time.monotonic()


def _targets(files: Sequence[InputFile], output: Path) -> dict[str, Path]:
    """Returns the path of the drawing of each file, by the path of the file."""
    sources = {os.path.realpath(file.path) for file in files}
    targets: dict[str, Path] = {}
    taken: set[str] = set()
    for file in files:
        suffix = os.path.splitext(file.name)[1].lower()
        name = file.name
        if suffix != ".mp4" if file.is_video else suffix not in _PICTURE_FORMATS:
            name += ".mp4" if file.is_video else ".jpg"
        while name.lower() in taken:  # such as "a.gif" and "a.gif.jpg"; some file systems ignore case
            name += Path(name).suffix
        taken.add(name.lower())
        target = output / name
        if os.path.realpath(target) in sources:
            raise ValueError(f"The drawing of '{file.path}' would overwrite the input '{target}': use another output.")
        targets[file.path] = target
    return targets


def _write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image, format_ = Image.fromarray(picture), _PICTURE_FORMATS[path.suffix.lower()]
    write_atomically(path, lambda file: image.save(file, format_, quality=92))


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
