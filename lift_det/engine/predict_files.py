"""Prediction on files: pictures and videos with what was found drawn in, and one JSON in COCO's format."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detectron2.structures import Instances
from PIL import Image
from torch import nn
from tqdm import tqdm

from lift_det.data import DatasetError
from lift_det.data.image_files import InputFile, find_files
from lift_det.data.images import read_rgb
from lift_det.data.video import VideoReader, VideoWriter
from lift_det.files import write_atomically
from lift_det.modeling import GeneralizedRCNN
from lift_det.visualization import draw_detections

from .prediction_file import PredictionFile

JSON_NAME = "predictions.json"
#: suffixes of pictures that keep their name; those of other formats get ".jpg" behind it
_PICTURE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
#: the JSON is written so often on the way, in seconds: a run that is killed loses no more
_WRITE_PERIOD = 60.0

_T = TypeVar("_T")


@dataclass
class PredictedFiles:
    """What :func:`predict_files` did.

    Attributes:
        json_file: the predictions.
        num_images: predicted images, frames of videos among them.
        num_detections: in all of them.
        seconds: from the first image to the last: reading, the model and drawing.
        model_seconds: of these, the model.
        failures: what could not be read, or not to its end, and why.
    """

    json_file: str
    num_images: int = 0
    num_detections: int = 0
    seconds: float = 0.0
    model_seconds: float = 0.0
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
    """Runs a predictor on images and videos, and leaves pictures, videos and ``predictions.json`` in a folder.

    A picture has the name of its file below the folder that all inputs have in common (``.jpg`` is appended to formats
    that are neither JPEG nor PNG, ``.mp4`` to videos of other formats), so none takes another's place. In the JSON each
    frame of a video is an image, with ``video`` and ``frame``, its number from 0. What cannot be read is in its
    ``info.unreadable`` and in the result, and stops nothing. Whatever does stop the run, the JSON then has all images
    that were predicted, and ``info.complete`` is false.

    Args:
        predictor: a :class:`lift_det.Predictor`.
        inputs: files, folders and patterns; see :func:`lift_det.data.image_files.find_files`.
        output: the folder, made if need be.
        pictures: draw them; else the JSON alone.
        batch_size: images in a batch.
        every: of videos, the first of so many frames.

    Raises:
        FileNotFoundError: the inputs name no image and no video.
        ValueError: a picture would be written over its input, or a number is not positive.
        OSError: the output cannot be written.
    """
    if min(batch_size, every) < 1:
        raise ValueError(f"batch_size={batch_size}, every={every}: expected positive numbers.")
    files, failures = find_files(inputs, exclude=output)
    if not files:
        raise FileNotFoundError("No image and no video: " + "; ".join(f"'{name}': {why}" for name, why in failures))
    targets = _targets(files, Path(output)) if pictures else {}
    os.makedirs(output, exist_ok=True)
    with _rle_masks(predictor.model):
        run = _Run(predictor, Path(output), targets, batch_size, every, failures)
        return run.predict(files)


class _Run:
    """One call of :func:`predict_files`."""

    def __init__(
        self,
        predictor: Any,
        output: Path,
        targets: dict[str, Path],
        batch_size: int,
        every: int,
        failures: list[tuple[str, str]],
    ) -> None:
        self._predictor = predictor
        self._targets = targets
        self._batch_size = batch_size
        self._every = every
        self._file = PredictionFile(output / JSON_NAME, predictor.class_names, predictor.category_ids)
        self._result = PredictedFiles(self._file.path, failures=failures)
        self._written = time.monotonic()

    def predict(self, files: Sequence[InputFile]) -> PredictedFiles:
        start = time.perf_counter()
        complete = False
        try:
            with tqdm(total=len(files), unit="image") as self._bar:
                self._predict_images([file for file in files if not file.is_video])
                for file in files:
                    if file.is_video:
                        self._predict_video(file)
            complete = True
        finally:
            self._write(complete)
        self._result.num_images, self._result.num_detections = self._file.num_images, self._file.num_detections
        self._result.seconds = time.perf_counter() - start
        return self._result

    def _predict_images(self, files: Iterable[InputFile]) -> None:
        for batch in _batches(self._readable(files), self._batch_size):
            for (file, image), instances in zip(batch, self._detect([image for _, image in batch]), strict=True):
                self._file.add(file.name, instances)
                if file.path in self._targets:
                    picture = draw_detections(image, instances, self._predictor.metadata)
                    _write_picture(self._targets[file.path], picture)
                self._step()

    def _readable(self, files: Iterable[InputFile]) -> Iterator[tuple[InputFile, np.ndarray]]:
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
            # it stands for one image until it is opened
            self._bar.total += max(1, -(-reader.num_frames // self._every)) - 1
            if file.path in self._targets:
                self._targets[file.path].parent.mkdir(parents=True, exist_ok=True)
                writer = VideoWriter(self._targets[file.path], reader.fps / self._every)
            for batch in _batches(reader.frames(self._every), self._batch_size):
                for (number, frame), instances in zip(batch, self._detect([frame for _, frame in batch]), strict=True):
                    self._file.add(file.name, instances, video=file.name, frame=number)
                    if writer is not None:
                        writer.write(draw_detections(frame, instances, self._predictor.metadata, enlarge=False))
                    self._step()
        except DatasetError as error:
            self._result.failures.append((file.path, str(error)))
        finally:
            if reader is not None:
                reader.close()
            if writer is not None:
                writer.close()

    def _detect(self, images: list[np.ndarray]) -> list[Instances]:
        start = time.perf_counter()
        # as Pillow's, which know the order of their channels, whatever the predictor takes arrays for
        outputs = self._predictor([Image.fromarray(image) for image in images])
        instances = [output["instances"].to("cpu") for output in outputs]
        self._result.model_seconds += time.perf_counter() - start
        return instances

    def _step(self) -> None:
        self._bar.update()
        if time.monotonic() - self._written > _WRITE_PERIOD:
            self._write(complete=False)

    def _write(self, complete: bool) -> None:
        unreadable = [{"file": name, "reason": reason} for name, reason in self._result.failures]
        self._file.write(complete=complete, unreadable=unreadable)
        self._written = time.monotonic()


def _targets(files: Sequence[InputFile], output: Path) -> dict[str, Path]:
    """Where each file's picture goes, by its path."""
    sources = {os.path.realpath(file.path) for file in files}
    targets: dict[str, Path] = {}
    taken: set[str] = set()
    for file in files:
        suffix = os.path.splitext(file.name)[1].lower()
        name = file.name
        if suffix != ".mp4" if file.is_video else suffix not in _PICTURE_FORMATS:
            name += ".mp4" if file.is_video else ".jpg"
        while name.lower() in taken:  # "a.gif" beside "a.gif.jpg"; and systems that do not tell A from a
            name += Path(name).suffix
        taken.add(name.lower())
        target = output / name
        if os.path.realpath(target) in sources:
            raise ValueError(
                f"The picture of '{file.path}' would be written over the input '{target}': name another output folder."
            )
        targets[file.path] = target
    return targets


def _write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image, format_ = Image.fromarray(picture), _PICTURE_FORMATS[path.suffix.lower()]
    write_atomically(path, lambda file: image.save(file, format_, quality=92))


@contextmanager
def _rle_masks(model: nn.Module) -> Iterator[None]:
    """Lets a detector give run-length encoded masks, if it can: a hundred bitmasks of a photograph are gigabytes."""
    if not isinstance(model, GeneralizedRCNN):
        yield
        return
    before, model.mask_format = model.mask_format, "rle"
    try:
        yield
    finally:
        model.mask_format = before


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
