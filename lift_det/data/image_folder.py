"""Photographs, with or without labels, from folders of any depth: what LiFT is trained on."""

from __future__ import annotations

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
from PIL import Image
from torch.utils import data as torchdata

from .augmentation import Augmentation, ColorJitter, seeded_generator
from .errors import DatasetError
from .image_files import walk
from .images import read_rgb

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

logger = logging.getLogger(f"detectron2.{__name__}")


class ImageFolder(torchdata.Dataset):
    """Images below one or more folders as square uint8 tensors, in the order of their paths.

    In training an endless stream of numbered samples is made of them (:meth:`sample`): the number decides which image,
    which part of it, whether it is mirrored, and its colours. Nothing else does, so the stream can be taken up at any
    number, by any number of processes.

    For evaluation the image is resized to ``image_size`` on its short side, bicubically with antialiasing, and its
    centre is cut out.

    A file that cannot be read is warned about once (by each process, and again where two workers come upon it at the
    same moment) and counted, and never ends a run while another can be read.
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
        color_jitter: ColorJitter | Mapping[str, float] | None = None,
        views: int = 0,
        holdout: int = 0,
    ) -> None:
        """
        Args:
            root: a folder, or several, whose images follow each other. Each is searched at any depth, links followed;
                hidden files and folders are passed over.
            image_size: side of the returned images in pixels. Of several, each batch in training gets one at random.
            train: augment as follows; otherwise always the centre, unchanged.
            crop: ``"resized"`` cuts out a part of random size and shape and resizes it; ``"square"`` resizes the short
                side to ``image_size`` and cuts a square out at a random place, so that the resolution stays;
                ``"center"`` takes the middle one of these.
            crop_scale: of ``"resized"``, the smallest and largest share of the image's area that is cut out.
            crop_ratio: of ``"resized"``, the smallest and largest width / height of that part.
            flip: probability of the mirror image.
            color_jitter: ``brightness``, ``contrast``, ``saturation``, ``hue`` (strengths as in torchvision's
                ``ColorJitter``, each 0 where not given) and ``probability`` (1). LiFT's authors' release has
                0.2 for each of the four, applied to every image. None leaves colours as they are.
            views: how many versions of each image exist. 0: each sample is augmented anew. Otherwise epoch e shows
                version e modulo ``views`` of every image, and a model can keep what it has computed for one: the dicts
                then have a ``view``.
            holdout: keeps every ``holdout``-th image, in the order of the paths, for evaluation, where there is no
                folder for it: in training they are left out, in evaluation they alone are taken. 0 takes all images.

        Raises:
            DatasetError: a folder does not exist, or holds no image file.
            ValueError: a number out of range, an unknown crop, or several sizes with ``views`` or in evaluation.
        """
        self.image_sizes = (image_size,) if isinstance(image_size, int) else tuple(image_size)
        if not self.image_sizes or min(self.image_sizes) < 1:
            raise ValueError(f"image_size must be positive, got {image_size}.")
        if len(self.image_sizes) > 1 and (views or not train):
            raise ValueError(f"An evaluation, or a number of views, needs one image_size, got {self.image_sizes}.")
        if views < 0:
            raise ValueError(f"views must not be negative, got {views}.")
        augmentation = Augmentation(
            crop, tuple(crop_scale), tuple(crop_ratio), float(flip), ColorJitter.of(color_jitter)
        )
        self.roots = [Path(r).expanduser() for r in ([root] if isinstance(root, (str, os.PathLike)) else root)]
        self.train = train
        self.views = views
        self.augmentation = augmentation if train else Augmentation("center", flip=0.0)
        # A folder named inside another one counts once.
        self.files: list[str] = list(dict.fromkeys(file for r in self.roots for file in _find_images(r)))
        if not self.files:
            raise DatasetError("No image folder is named: give at least one.")
        if holdout:
            if not 2 <= holdout <= len(self.files):
                raise ValueError(f"holdout={holdout} of {len(self.files)} images: expected 2 up to their number.")
            self.files = [file for i, file in enumerate(self.files) if (i % holdout == 0) is not train]
        # Shared memory: what one worker finds broken, all of them and the main process know.
        self._broken = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()
        self._order: tuple[tuple[int, int], torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_broken(self) -> int:
        """How many files have been found unreadable so far, by all workers."""
        return int(self._broken.sum())

    def sample(self, number: int, seed: int, batch_size: int) -> dict[str, Any]:
        """A sample of the training stream, which shows every image once in each epoch of ``len(self)`` samples.

        Args:
            number: from 0; ``iteration · batch_size + place in the batch``.
            seed: of the whole stream.
            batch_size: over all processes; it matters where a batch draws one of several sizes.

        Returns:
            The dict of :meth:`__getitem__`. Where the image cannot be read, the next one that can takes its place.

        Raises:
            DatasetError: no file can be read.
        """
        epoch, position = divmod(number, len(self))
        index = int(self._epoch_order(seed, epoch)[position])
        size = self.image_sizes[0]
        if len(self.image_sizes) > 1:
            generator = seeded_generator("size", seed, number // batch_size)
            size = self.image_sizes[int(torch.randint(len(self.image_sizes), (), generator=generator))]
        view = epoch % self.views if self.views else 0
        return self._read_next(index, number=None if self.views else number, view=view, seed=seed, size=size)

    def read(
        self, index: int, *, number: int | None = None, view: int = 0, seed: int = 0, size: int | None = None
    ) -> dict[str, Any] | None:
        """Reads one file, and nothing else in its place.

        Args:
            index: of the file.
            number: of the sample that decides the augmentation; None: ``index`` and ``view`` decide it.
            view: which version of the image.
            seed: of the augmentation.
            size: of the square in pixels; None takes ``image_size`` (the first of them).

        Returns:
            The dict of :meth:`__getitem__`, or None (and a warning, the first time) if the file is broken.
        """
        file_name = self.files[index]
        if self._broken[index]:
            return None
        array, reason = read_rgb(file_name)
        if array is None:
            self._broken[index] = True
            logger.warning(
                "Skipping '%s', which cannot be read: %s (%d of %d files so far).",
                *(file_name, reason, self.num_broken, len(self)),
            )
            return None
        key = ("view", seed, index, view) if number is None else ("sample", seed, number)
        image = self.augmentation(Image.fromarray(array), size or self.image_sizes[0], seeded_generator(*key))
        item = {
            "image": torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(),
            "file_name": file_name,
            "index": index,
        }
        return {**item, "view": view} if self.views else item

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a file (in training the first view of seed 0), or the next one that can be read.

        Returns:
            ``image``: uint8 (3, image_size, image_size) in RGB, ``file_name``: the path of the file it came from,
            ``index``: of that file, and with ``views`` also ``view``.

        Raises:
            DatasetError: no file can be read.
            IndexError: there is no such index.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"Index {index} is out of range for {len(self)} images.")
        return self._read_next(index % len(self))

    def _read_next(self, index: int, **how: Any) -> dict[str, Any]:
        for step in range(len(self)):
            item = self.read((index + step) % len(self), **how)
            if item is not None:
                return item
        roots = ", ".join(f"'{root}'" for root in self.roots)
        raise DatasetError(
            f"None of the {len(self)} image files below {roots} can be read; the first is '{self.files[0]}': "
            f"{read_rgb(self.files[0])[1]}. Fetch or unpack them again, or name another folder."
        )

    def _epoch_order(self, seed: int, epoch: int) -> torch.Tensor:
        # One is kept: numbers come in order, so the next sample is nearly always of the same epoch.
        if self._order is None or self._order[0] != (seed, epoch):
            order = torch.randperm(len(self), generator=seeded_generator("order", seed, epoch))
            self._order = ((seed, epoch), order)
        return self._order[1]


class _SampleStream(torchdata.Dataset):
    """The training samples of an ``ImageFolder`` by their numbers."""

    def __init__(self, folder: ImageFolder, seed: int, batch_size: int) -> None:
        self.folder = folder
        self.seed = seed
        self.batch_size = batch_size

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.folder.sample(number, self.seed, self.batch_size)


class SampleNumbers(torchdata.Sampler[list[int]]):
    """One process's part of each global batch, as numbers of samples, endlessly.

    Iteration i has the numbers i · B to (i + 1) · B - 1, of which rank r of W takes the r-th W-th. Iterating starts at
    the iteration at which detectron2's trainer is, so that ``--resume`` goes on where the run was.
    """

    def __init__(self, total_batch_size: int, rank: int, world_size: int) -> None:
        """
        Args:
            total_batch_size: B, a multiple of ``world_size``.
            rank: of this process.
            world_size: W, the number of processes.
        """
        self.total_batch_size = total_batch_size
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        # Asked for here and not in the generator, which runs only when the first batch is asked for. The trainer makes
        # the iterator in its first step; outside a trainer there is no storage and the stream starts at its beginning.
        return self._batches(get_event_storage().iter if has_event_storage() else 0)

    def _batches(self, iteration: int) -> Iterator[list[int]]:
        share = self.total_batch_size // self.world_size
        while True:
            start = iteration * self.total_batch_size + self.rank * share
            yield list(range(start, start + share))
            iteration += 1


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

    In training the stream is a function of ``seed`` and ``total_batch_size`` alone: neither workers nor processes nor
    an interruption change it, and no global random state is read or moved.

    Args:
        dataset: the images.
        total_batch_size: images in a batch over all processes; a multiple of their number, as in detectron2.
        num_workers: processes that read images, for each process that trains.
        train: an endless shuffled stream of full batches that starts at the trainer's iteration; otherwise every
            readable image once, in order, the last batch as large as it comes. None takes ``dataset.train``.
        seed: of the stream in training; configs give ``"${train.seed}"``. None, or a negative number as in detectron2,
            draws one that all processes share: then ``--resume`` goes on with another stream.

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
        if seed is None or seed < 0:
            seed = shared_random_seed()
        return torchdata.DataLoader(
            _SampleStream(dataset, int(seed), total_batch_size),
            batch_sampler=SampleNumbers(total_batch_size, get_rank(), world_size),
            num_workers=num_workers,
            collate_fn=trivial_batch_collator,
            # The loader draws its workers' seeds, which nothing here reads; from the global generator without this.
            generator=torch.Generator(),
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
    files = sorted(walk(str(root), EXTENSIONS))
    if not files:
        raise DatasetError(
            f"The image folder '{root}' holds no image at any depth: expected files that end in "
            f"{', '.join(EXTENSIONS)} (upper case too). Put images there, or name another folder."
        )
    return files
