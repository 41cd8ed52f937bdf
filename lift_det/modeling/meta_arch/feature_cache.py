"""Cache of a frozen ViT's feature maps on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lift_det.files import write_atomically

logger = logging.getLogger(f"detectron2.{__name__}")


class FeatureCache:
    """Stores feature maps in half precision, in one file for each image.

    File names are hashes of everything that the maps depend on, so that processes and trainings can share a folder.
    Files are never deleted.

    Args:
        folder: created if needed.
        net: the ViT with its weights.
        settings: all else that the features depend on: layer, facet, image statistics.
    """

    def __init__(self, folder: str | os.PathLike, net: nn.Module, settings: Mapping[str, str]) -> None:
        self.folder = Path(folder).expanduser() / _hash_module(net, settings)[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._full = False

    def maps(
        self, images: Sequence[Tensor], options: tuple[object, ...], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, list[Tensor]]:
        """Returns the float32 maps of a batch by name, for each image.

        Args:
            images: of any shape and dtype.
            options: all else that the maps depend on, such as their sizes.
            compute: returns the maps of the whole batch, (N, ...) each. Called unless all images are in the cache.
        """
        paths = [self._path(image, options) for image in images]
        found = [self._read(path) for path in paths]
        if None in found:
            # always the whole batch, because rounding depends on its size, and a resumed training may find a part
            maps = compute()
            for i, path in enumerate(paths):
                if found[i] is None:
                    found[i] = self._write(path, {name: value[i] for name, value in maps.items()})
        return {name: [maps[name] for maps in found] for name in found[0]}

    def _path(self, image: Tensor, options: tuple[object, ...]) -> Path:
        found = hashlib.sha256(repr((options, tuple(image.shape), str(image.dtype))).encode())
        found.update(image.detach().cpu().contiguous().numpy().tobytes())
        key = found.hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if not path.is_file():
            return None
        try:
            return {name: value.float() for name, value in safetensors.torch.load(path.read_bytes()).items()}
        except (safetensors.SafetensorError, ValueError, OSError) as error:
            logger.warning("'%s' is broken (%s): these features are computed again.", path, error)
            return None

    def _write(self, path: Path, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Writes maps, unless they exceed the range of half precision, and returns them as :meth:`_read` does."""
        half = {name: value.half() for name, value in maps.items()}
        if not all(value.isfinite().all() for value in half.values()):
            return maps
        if not self._full:
            data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in half.items()})
            try:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, lambda file: file.write(data))
            except OSError as error:
                self._full = True
                logger.warning(
                    "Features cannot be cached in '%s': %s. The training computes them each time instead. Free disk "
                    "space, or use another folder (model.feature_cache).",
                    *(self.folder, error),
                )
        return {name: value.float() for name, value in half.items()}


def _hash_module(module: nn.Module, settings: Mapping[str, str]) -> str:
    found = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, value in module.state_dict().items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        # as bytes, because numpy has no bfloat16
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
