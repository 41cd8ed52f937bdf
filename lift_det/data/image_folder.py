"""Unlabeled images in folders, for training LiFT."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import build_detection_test_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import ToIterableDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.utils.comm import get_rank, get_world_size, shared_random_seed
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.logger import log_first_n
from PIL import Image
from torch.utils import data as torchdata
from torchvision import transforms as T

from .errors import DatasetError
from .image_files import walk
from .images import read_rgb

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


class ImageFolder(torchdata.Dataset):
    """The images below one or more folders as square uint8 tensors, sorted by path.

    In training, :meth:`sample` returns augmented images, which depend only on the sample's number and the seed. In
    evaluation, images are resized to ``image_size`` on the short side (bicubic, antialiased) and center-cropped. Files
    that cannot be read are skipped with a warning.
    """

    def __init__(
        self,
        root: str | os.PathLike | Sequence[str | os.PathLike],
        image_size: int | Sequence[int],
        train: bool = True,
        *,
        crop: str = "resized",
        crop_scale: tuple[float, float] = (0.25, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        color_jitter: Mapping[str, float] | None = None,
        views: int = 0,
        holdout: int = 0,
    ) -> None:
        """
        Args:
            root: one or more folders, searched recursively. Hidden files and folders are ignored.
            image_size: side of the returned images in pixels; of several sizes, each training batch has a random one.
            train: whether to augment images.
            crop: ``"resized"`` (torchvision's ``RandomResizedCrop``), ``"square"`` (resize the short side, then
                ``RandomCrop``) or ``"center"`` (resize the short side, then ``CenterCrop``).
            crop_scale, crop_ratio: ranges of ``"resized"``: share of the image's area, and width / height.
            flip: probability of a horizontal flip.
            color_jitter: arguments of torchvision's ``ColorJitter`` (LiFT's authors use 0.2 for each), and
                ``probability``, that of applying it (default: 1).
            views: number of augmented versions of each image, which makes features cacheable: epoch e shows version
                e modulo ``views``. 0 augments every sample differently.
            holdout: every ``holdout``-th image is only used in evaluation, the others only in training. 0 uses all
                images in both.

        Raises:
            DatasetError: a folder does not exist or has no image.
            ValueError: an argument is out of range.
        """
        self.image_sizes = (image_size,) if isinstance(image_size, int) else tuple(image_size)
        if not self.image_sizes or min(self.image_sizes) < 1:
            raise ValueError(f"image_size must be positive, got {image_size}.")
        if len(self.image_sizes) > 1 and (views or not train):
            raise ValueError(f"views and evaluation need a single image_size, got {self.image_sizes}.")
        if views < 0:
            raise ValueError(f"views must not be negative, got {views}.")
        if not train:
            crop, flip, color_jitter = "center", 0.0, None
        options = (crop, tuple(crop_scale), tuple(crop_ratio), flip, color_jitter)
        self._transforms = {size: _transform(size, *options) for size in self.image_sizes}
        self.train = train
        self.views = views
        self.roots = [Path(r).expanduser() for r in ([root] if isinstance(root, (str, os.PathLike)) else root)]
        # Nested folders must not repeat files.
        self.files: list[str] = list(dict.fromkeys(file for r in self.roots for file in _find_images(r)))
        if not self.files:
            raise DatasetError("Expected at least one image folder, got an empty list.")
        if holdout:
            if not 2 <= holdout <= len(self.files):
                raise ValueError(f"holdout must be from 2 to the number of images, {len(self.files)}; got {holdout}.")
            self.files = [file for i, file in enumerate(self.files) if (i % holdout == 0) is not train]
        self._order: tuple[tuple[int, int], torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a file, or the next one that can be read; in training with the augmentation of view 0 and seed 0.

        Returns:
            ``image``: uint8 (3, image_size, image_size) in RGB; ``file_name``; ``index``: of the file; ``view`` if the
            dataset has ``views``.

        Raises:
            DatasetError: no file can be read.
        """
        return self._read_next(range(len(self))[index])

    def sample(self, number: int, seed: int, batch_size: int) -> dict[str, Any]:
        """Returns a sample of the training stream. Each epoch has every image once, in random order.

        Args:
            number: index in the stream, ``iteration * batch_size`` plus the position in the batch.
            seed: seed of the stream.
            batch_size: total batch size of all processes.
        """
        epoch, position = divmod(number, len(self))
        index = int(self._epoch_order(seed, epoch)[position])
        if self.views:
            return self._read_next(index, view=epoch % self.views, seed=seed)
        generator = torch.Generator().manual_seed(_hash("size", seed, number // batch_size))
        choice = int(torch.randint(len(self.image_sizes), (), generator=generator))
        return self._read_next(index, number=number, seed=seed, size=self.image_sizes[choice])

    def read(
        self, index: int, *, number: int | None = None, view: int = 0, seed: int = 0, size: int | None = None
    ) -> dict[str, Any] | None:
        """Reads a file as ``dataset[index]`` does; returns None if it cannot be read.

        The augmentation depends on ``seed`` and ``number``; if ``number`` is None, on ``seed``, ``index`` and ``view``.
        """
        file_name = self.files[index]
        array, reason = read_rgb(file_name)
        if array is None:
            message = f"Skipping '{file_name}', which cannot be read: {reason}."
            log_first_n(logging.WARNING, message, name=f"detectron2.{__name__}", key="message")
            return None
        key = ("view", seed, index, view) if number is None else ("sample", seed, number)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed GPUs, which are not forked.
            torch.default_generator.manual_seed(_hash(*key))
            image = self._transforms[size or self.image_sizes[0]](Image.fromarray(array))
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        item = {"image": tensor, "file_name": file_name, "index": index}
        return {**item, "view": view} if self.views else item

    def _read_next(self, index: int, **options: Any) -> dict[str, Any]:
        for step in range(len(self)):
            item = self.read((index + step) % len(self), **options)
            if item is not None:
                return item
        raise DatasetError(
            f"None of the {len(self)} image files below {', '.join(map(str, self.roots))} can be read; the first is "
            f"'{self.files[0]}': {read_rgb(self.files[0])[1]}. Fetch them again, or use another folder."
        )

    def _epoch_order(self, seed: int, epoch: int) -> torch.Tensor:
        if self._order is None or self._order[0] != (seed, epoch):
            generator = torch.Generator().manual_seed(_hash("order", seed, epoch))
            self._order = ((seed, epoch), torch.randperm(len(self), generator=generator))
        return self._order[1]


def build_image_folder_loader(
    dataset: ImageFolder,
    total_batch_size: int,
    num_workers: int = 0,
    train: bool | None = None,
    seed: int | None = None,
) -> torchdata.DataLoader:
    """Builds a loader for detectron2's trainers or for an evaluation, whose batches are lists of the dataset's dicts.

    The training stream depends only on the seed and the total batch size, not on the numbers of workers and processes
    or on interruptions. It neither uses nor changes the global random state.

    Args:
        dataset: the images.
        total_batch_size: batch size summed over all processes; a multiple of their number.
        num_workers: data loading workers of each process.
        train: True for an infinite shuffled stream that starts at the trainer's iteration, False for every readable
            image once, in order. None takes ``dataset.train``.
        seed: seed of the training stream. None or a negative number draws one, so ``--resume`` changes the stream.

    Raises:
        DatasetError: while loading, no file can be read.
        ValueError: ``total_batch_size`` is not a positive multiple of the number of processes.
    """
    world_size = get_world_size()
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ValueError(
            f"total_batch_size must be a positive multiple of the {world_size} processes, got {total_batch_size}."
        )
    batch_size = total_batch_size // world_size
    if dataset.train if train is None else train:
        seed = shared_random_seed() if seed is None or seed < 0 else int(seed)
        return torchdata.DataLoader(
            _SampleStream(dataset, seed, total_batch_size),
            batch_sampler=_SampleNumbers(total_batch_size, get_rank() * batch_size, batch_size),
            num_workers=num_workers,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),  # otherwise the loader draws from the global one
        )
    images = _ReadableImages(dataset, batch_size)
    return build_detection_test_loader(images, mapper=None, batch_size=batch_size, num_workers=num_workers)


class _SampleStream(torchdata.Dataset):
    """The training samples of an ``ImageFolder``, by number."""

    def __init__(self, folder: ImageFolder, seed: int, batch_size: int) -> None:
        self.folder, self.seed, self.batch_size = folder, seed, batch_size

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.folder.sample(number, self.seed, self.batch_size)


class _SampleNumbers(torchdata.Sampler[list[int]]):
    """Batches of sample numbers for one process, starting at the trainer's current iteration."""

    def __init__(self, total_batch_size: int, offset: int, batch_size: int) -> None:
        self.total_batch_size, self.offset, self.batch_size = total_batch_size, offset, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        # Not a generator function, because it would only run when the first batch is requested.
        iteration = get_event_storage().iter if has_event_storage() else 0
        starts = itertools.count(iteration * self.total_batch_size + self.offset, self.total_batch_size)
        return (list(range(start, start + self.batch_size)) for start in starts)


class _ReadableImages(torchdata.IterableDataset):
    """The readable images of an ``ImageFolder``, distributed over processes and workers."""

    def __init__(self, folder: ImageFolder, batch_size: int) -> None:
        self.folder = folder
        # Each worker in turn gets a whole batch, so the order does not depend on the number of workers.
        sampler = InferenceSampler(len(folder))
        self.indices = ToIterableDataset(range(len(folder)), sampler, shard_chunk_size=batch_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        any_readable = False
        for index in self.indices:
            item = self.folder.read(index)
            if item is not None:
                any_readable = True
                yield item
        if not any_readable:
            self.folder[0]  # raises a DatasetError if no image of the folder is readable


def _transform(
    size: int, crop: str, scale: Sequence[float], ratio: Sequence[float], flip: float, jitter: Mapping | None
) -> T.Compose:
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"Expected 0 < min <= max for crop_scale (max <= 1) and crop_ratio, got {tuple(scale)} and {tuple(ratio)}."
        )
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must be a probability from 0 to 1, got {flip}.")
    bicubic = T.InterpolationMode.BICUBIC
    crops = {
        "resized": [T.RandomResizedCrop(size, scale, ratio, bicubic)],
        "square": [T.Resize(size, bicubic), T.RandomCrop(size)],
        "center": [T.Resize(size, bicubic), T.CenterCrop(size)],
    }
    if crop not in crops:
        raise ValueError(f"crop must be one of {', '.join(crops)}, got {crop!r}.")
    steps = [*crops[crop], T.RandomHorizontalFlip(flip)]
    if jitter is not None:
        options = dict(jitter)
        probability = options.pop("probability", 1.0)
        steps.append(T.RandomApply([T.ColorJitter(**options)], probability))
    return T.Compose(steps)


def _hash(*key: int | str) -> int:
    """Returns a seed of 32 bits, all that torch's CPU generator uses, which differs for neighboring numbers."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "little")


def _find_images(root: Path) -> list[str]:
    if not root.is_dir():
        raise DatasetError(
            f"The image folder '{root.absolute()}' {'is not a folder' if root.exists() else 'is missing'}."
        )
    files = sorted(walk(str(root), EXTENSIONS))
    if not files:
        raise DatasetError(f"The image folder '{root}' has no image at any depth: expected {', '.join(EXTENSIONS)}.")
    return files
