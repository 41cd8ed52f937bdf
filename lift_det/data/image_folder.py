"""Photographs without labels, from a folder of any depth: what LiFT is trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import InferenceSampler, TrainingSampler
from detectron2.utils.comm import get_world_size
from PIL import Image
from torch.utils import data as torchdata
from torchvision import transforms

from .errors import DatasetError
from .images import read_rgb

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

logger = logging.getLogger(f"detectron2.{__name__}")


class ImageFolder(torchdata.Dataset):
    """Images below a folder as square uint8 tensors, in the order of their paths.

    For training a random part of the image is cut out, resized and flipped at random (torch's generator decides, which
    detectron2 seeds in every worker). For evaluation the image is resized to ``image_size`` on its short side and its
    centre is cut out. Both resize bicubically, with antialiasing.

    A file that cannot be read is warned about once and counted, and never ends a run while another can be read.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        image_size: int,
        train: bool = True,
        crop_scale: tuple[float, float] = (0.25, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        """
        Args:
            root: searched at any depth, links followed; hidden files and folders are passed over.
            image_size: side of the returned images in pixels.
            train: random crops and flips; otherwise always the centre.
            crop_scale: in training, the smallest and largest share of the image's area that is cut out.
            crop_ratio: in training, the smallest and largest width / height of that part.

        Raises:
            DatasetError: the folder does not exist, or holds no image file.
            ValueError: ``image_size`` is not positive.
        """
        if image_size < 1:
            raise ValueError(f"image_size must be positive, got {image_size}.")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.train = train
        self.files: list[str] = _find_images(self.root)
        # Shared memory: what one worker finds broken, all of them and the main process know.
        self._broken = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()
        bicubic = transforms.InterpolationMode.BICUBIC
        if train:
            steps = [
                transforms.RandomResizedCrop(image_size, scale=crop_scale, ratio=crop_ratio, interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
            ]
        else:
            steps = [transforms.Resize(image_size, interpolation=bicubic), transforms.CenterCrop(image_size)]
        self._transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_broken(self) -> int:
        """How many files have been found unreadable so far, by all workers."""
        return int(self._broken.sum())

    def read(self, index: int) -> dict[str, Any] | None:
        """Reads one file: the dict of :meth:`__getitem__`, or None (and a warning, the first time) if it is broken."""
        file_name = self.files[index]
        if self._broken[index]:
            return None
        image, reason = read_rgb(file_name)
        if image is None:
            self._broken[index] = True
            logger.warning(
                "Skipping '%s', which cannot be read: %s (%d of %d files so far).",
                *(file_name, reason, self.num_broken, len(self)),
            )
            return None
        cropped = np.array(self._transform(Image.fromarray(image)))
        return {"image": torch.from_numpy(cropped).permute(2, 0, 1).contiguous(), "file_name": file_name}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a file, or the next one that can be read.

        Returns:
            ``image``: uint8 (3, image_size, image_size) in RGB, ``file_name``: the path of the file it came from.

        Raises:
            DatasetError: no file of the folder can be read.
            IndexError: there is no such index.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"Index {index} is out of range for {len(self)} images.")
        for step in range(len(self)):
            item = self.read((index + step) % len(self))
            if item is not None:
                return item
        raise DatasetError(
            f"None of the {len(self)} image files below '{self.root}' can be read; the first is '{self.files[0]}': "
            f"{read_rgb(self.files[0])[1]}. Fetch or unpack them again, or name another folder."
        )


class _ReadableImages(torchdata.IterableDataset):
    """The images of an ``ImageFolder`` that can be read, each once, shared out to ranks and workers."""

    class _Reader(torchdata.Dataset):
        def __init__(self, folder: ImageFolder) -> None:
            self.folder = folder

        def __getitem__(self, index: int) -> dict[str, Any] | None:
            return self.folder.read(index)

    def __init__(self, folder: ImageFolder, batch_size: int) -> None:
        self.folder = folder
        # Whole batches go to each worker in turn, so that the order is the same however many there are.
        self.items = ToIterableDataset(self._Reader(folder), InferenceSampler(len(folder)), shard_chunk_size=batch_size)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        readable = 0
        for item in self.items:
            if item is not None:
                readable += 1
                yield item
        if not readable:
            self.folder[0]  # raises if nothing can be read; else it was only this worker's share


def build_image_folder_loader(
    dataset: ImageFolder,
    total_batch_size: int,
    num_workers: int = 0,
    train: bool | None = None,
    seed: int | None = None,
) -> torchdata.DataLoader:
    """Builds a loader for detectron2's trainers or for an evaluation.

    Args:
        dataset: the images.
        total_batch_size: images in a batch over all processes; a multiple of their number, as in detectron2.
        num_workers: processes that read images, for each process that trains.
        train: an endless shuffled stream of full batches; otherwise every readable image once, in order, the last
            batch as large as it comes. None takes ``dataset.train``.
        seed: of the shuffle, and of crops and flips where there are workers (without workers those follow the
            process's own torch generator). None draws one that all processes share.

    Returns:
        A loader whose batches are lists of the dataset's dicts.

    Raises:
        DatasetError: while reading, no file can be read.
        ValueError: ``total_batch_size`` is not a positive multiple of the number of processes.
    """
    world_size = get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ValueError(
            f"total_batch_size must be a positive multiple of the {world_size} processes, got {total_batch_size}."
        )
    if dataset.train if train is None else train:
        return build_detection_train_loader(
            dataset,
            mapper=None,
            sampler=TrainingSampler(len(dataset), seed=seed),
            total_batch_size=total_batch_size,
            aspect_ratio_grouping=False,  # all images are squares of one size
            num_workers=num_workers,
            seed=seed,
        )
    batch_size = total_batch_size // world_size
    return build_detection_test_loader(
        _ReadableImages(dataset, batch_size), mapper=None, batch_size=batch_size, num_workers=num_workers
    )


def _find_images(root: Path) -> list[str]:
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DatasetError(
            f"The image folder '{root}' {problem} (looked from '{Path.cwd()}'). Expected a folder with images "
            f"({', '.join(EXTENSIONS)}) at any depth: name another, or put the images there."
        )
    files = []
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would lead round in circles
            subfolders.clear()
            continue
        seen.add(real)
        # In order, so that of two ways to the same folder it is always the same one that is taken.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        # Hidden files too: archives from a Mac bring a "._photo.jpg" that is none.
        files += [
            os.path.join(folder, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    if not files:
        raise DatasetError(
            f"The image folder '{root}' holds no image at any depth: expected files that end in "
            f"{', '.join(EXTENSIONS)} (upper case too). Put images there, or name another folder."
        )
    return sorted(files)
