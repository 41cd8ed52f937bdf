"""Feature maps of a frozen ViT on disk, so that a training computes each of them once."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lift_det.files import write_atomically

logger = logging.getLogger(f"detectron2.{__name__}")


class FeatureCache:
    """Maps on disk in half precision, a file for each image, found by what they depend on.

    A file's name is the hash of the ViT's weights, of what is taken from it (layer, facet, norm, image statistics), of
    the image's pixels and of the sizes: what changes any of these is another file, never a wrong one. Files are written
    under a temporary name and then renamed, so that a kill leaves no partial file, and several processes and trainings
    can share a folder. Nothing is ever deleted: delete the folder when you need the space.
    """

    def __init__(self, folder: str | os.PathLike, owner: str) -> None:
        """
        Args:
            folder: made if it is not there.
            owner: what the maps come from, as :func:`digest` of the ViT and its settings.
        """
        self.folder = Path(folder).expanduser() / owner[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._full = False

    def key(self, image: Tensor, how: tuple[object, ...]) -> str:
        """The name of the maps of ``image`` (any shape and dtype); ``how`` says at which sizes they were computed."""
        found = hashlib.sha256(repr((how, tuple(image.shape), str(image.dtype))).encode())
        found.update(image.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The maps that :meth:`put` kept, as float32, or None."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return {name: value.float() for name, value in safetensors.torch.load(path.read_bytes()).items()}
        except (safetensors.SafetensorError, ValueError, OSError) as error:
            # not by a kill of ours: a disk's fault. What can be computed again is no reason to end a training.
            logger.warning("'%s' is broken (%s): these features are computed again.", path, error)
            return None

    def put(self, key: str, maps: Mapping[str, Tensor]) -> None:
        """Keeps maps; where the disk is full, warns once and keeps no more."""
        if self._full:
            return
        path = self._path(key)
        data = safetensors.torch.save({name: value.detach().half().cpu().contiguous() for name, value in maps.items()})
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, lambda file: file.write(data))
        except OSError as error:
            self._full = True
            logger.warning(
                "Features cannot be kept in '%s': %s. Training goes on, and computes the features it does not find "
                "each time: make space, or name another folder (model.feature_cache).",
                *(self.folder, error),
            )

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def digest(module: nn.Module, settings: Mapping[str, str]) -> str:
    """A hash of all parameters and buffers of a module, to the bit, and of ``settings``."""
    found = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, value in module.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        # viewed as bytes: numpy does not know bfloat16
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
