"""Reading state dicts from files without running code in them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .arrays import read_arrays

# Where the common trainers put the weights inside a checkpoint, in the order they are looked for.
_STATE_DICT_KEYS = ("model", "state_dict", "teacher", "student", "model_state", "module")

#: under this name an upsampler's settings and features stand beside its tensors, where torch keeps module versions
METADATA_KEY = "lift"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: the message says what was expected, what came and what to do."""


def read_state_dict(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors of a ``.safetensors``, a ``.pkl`` or a ``torch.save`` file (any other name) onto the CPU.

    A file cannot run code here: those of ``torch.save`` are read with ``weights_only=True``, and detectron2's ``.pkl``
    (``{"model": {name: numpy array}}``) with an unpickler that knows containers and plain arrays, and nothing else.

    Args:
        path: the file. A wrapping such as ``{"model": {...}}`` or ``{"state_dict": {...}}`` is taken off.

    Returns:
        ``(state_dict, metadata)``; metadata is what a safetensors file carries beside its tensors, or what an
        upsampler in a checkpoint has beside its own, else empty.

    Raises:
        CheckpointError: the file is missing, is not a checkpoint, is broken, or would have to run code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        _check_there(path)
        return _read_safetensors(path)
    loaded = read_checkpoint(path)
    state, metadata = _unwrap(loaded)
    if not state:
        raise CheckpointError(
            f"'{path}' holds no state dict: expected names mapped to tensors, "
            f"found {type(loaded).__name__}{f' with keys {list(loaded)[:5]}' if isinstance(loaded, Mapping) else ''}."
        )
    return state, metadata


def read_checkpoint(path: str | os.PathLike) -> object:
    """Reads all that a ``.pkl`` or a ``torch.save`` file holds, arrays as tensors, without running anything in it.

    Raises:
        CheckpointError: the file is missing, is broken, or would have to run code.
    """
    path = Path(path)
    _check_there(path)
    try:
        # torch.save's zip files have been given this ending, too
        is_pickle = path.suffix == ".pkl" and not zipfile.is_zipfile(path)
        return read_arrays(path) if is_pickle else _torch_load(path)
    except Exception as error:
        raise CheckpointError(
            f"'{path}' ({path.stat().st_size} bytes) could not be read as a checkpoint of tensors: {error}\n"
            "It may be cut off, or hold Python objects, which are never run here: download it again, or save its "
            "state dict alone with torch.save(state_dict, path)."
        ) from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint at '{path}' (looked from '{Path.cwd()}'). Put the file there, or name another."
        )


def _torch_load(path: Path) -> object:
    # DINO's training checkpoints hold their command line, a class of plain attributes; torch < 2.5 cannot be told so
    allow = getattr(torch.serialization, "safe_globals", None)
    with allow([argparse.Namespace]) if allow else contextlib.nullcontext():
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"'{path}' ({path.stat().st_size} bytes) is not a whole safetensors file: {error}. Download it again."
        ) from error


def _unwrap(loaded: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a checkpoint, and the metadata of an upsampler among them."""
    if not isinstance(loaded, Mapping):
        return {}, {}
    # wrappings first: beside them training checkpoints hold loose tensors, such as random states
    for key in _STATE_DICT_KEYS:
        inner, metadata = _unwrap(loaded.get(key))
        if inner:
            return inner, metadata
    found = [entry[METADATA_KEY] for entry in getattr(loaded, "_metadata", {}).values() if METADATA_KEY in entry]
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    return tensors, dict(found[0]) if len(found) == 1 else {}


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Takes ``prefix`` off every name if all names have it, else returns the names as they are."""
    if state_dict and all(name.startswith(prefix) for name in state_dict):
        return {name[len(prefix) :]: value for name, value in state_dict.items()}
    return dict(state_dict)
