"""Reading state dicts from files."""

from __future__ import annotations

import argparse
import contextlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .arrays import read_arrays

# Where trainers put the weights in a checkpoint; the first that has tensors is used.
_STATE_DICT_KEYS = ("model", "state_dict", "teacher", "student", "model_state", "module")

#: Key of an upsampler's settings in a state dict's ``_metadata``, where torch keeps module versions.
METADATA_KEY = "lift"


class CheckpointError(RuntimeError):
    """Raised for a checkpoint that cannot be read or does not fit."""


def read_state_dict(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors of a ``.safetensors``, ``.pkl`` or ``torch.save`` file (any other suffix) onto the CPU.

    Code in the file is never run: ``torch.save`` files are read with ``weights_only=True``, and ``.pkl`` files with an
    unpickler that is restricted to containers and numeric arrays.

    Returns:
        ``(state_dict, metadata)``: the tensors without wrappers such as ``{"model": {...}}``, and the metadata of a
        safetensors file or of the upsampler in a checkpoint.

    Raises:
        CheckpointError: the file is missing or broken, has no tensors, or holds other Python objects.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read(path, _read_safetensors)
    loaded = read_checkpoint(path)
    state, metadata = _unwrap(loaded)
    if not state:
        keys = f" with keys {list(loaded)[:5]}" if isinstance(loaded, Mapping) else ""
        raise CheckpointError(
            f"'{path}' holds no state dict: expected names mapped to tensors, found {type(loaded).__name__}{keys}."
        )
    return state, metadata


def read_checkpoint(path: str | os.PathLike) -> object:
    """Reads everything in a ``.pkl`` or ``torch.save`` file; see :func:`read_state_dict`. Arrays become tensors."""
    path = Path(path)
    # some torch.save files have the suffix .pkl
    is_pickle = path.suffix == ".pkl" and not (path.is_file() and zipfile.is_zipfile(path))
    return _read(path, read_arrays if is_pickle else _torch_load)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint at '{path}' (working directory: '{Path.cwd()}'). Check the path."
        )
    try:
        return read(path)
    except Exception as error:  # a broken file can raise anything
        raise CheckpointError(
            f"'{path}' ({path.stat().st_size} bytes) cannot be read as a checkpoint of tensors: {error}\n"
            "It is incomplete, or holds Python objects, which are never run here. Download it again, or save its state "
            "dict alone with torch.save(state_dict, path)."
        ) from error


def _torch_load(path: Path) -> object:
    # DINO's training checkpoints contain their argparse.Namespace; torch < 2.5 cannot allow it
    allow = getattr(torch.serialization, "safe_globals", None)
    with allow([argparse.Namespace]) if allow else contextlib.nullcontext():
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})


def _unwrap(loaded: object) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not isinstance(loaded, Mapping):
        return {}, {}
    # wrappers first, because training checkpoints also have tensors beside them, such as random states
    for key in _STATE_DICT_KEYS:
        inner, metadata = _unwrap(loaded.get(key))
        if inner:
            return inner, metadata
    found = [entry[METADATA_KEY] for entry in getattr(loaded, "_metadata", {}).values() if METADATA_KEY in entry]
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    return tensors, dict(found[0]) if len(found) == 1 else {}


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Removes ``prefix`` from every name if all names have it."""
    if state_dict and all(name.startswith(prefix) for name in state_dict):
        return {name[len(prefix) :]: value for name, value in state_dict.items()}
    return dict(state_dict)
