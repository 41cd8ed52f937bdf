"""Restricted unpickler for files of numpy arrays, such as those of detectron2's model zoo."""

from __future__ import annotations

import os
import pickle

import numpy as np
import torch
from torch import Tensor


def read_arrays(path: str | os.PathLike) -> object:
    """Reads a pickle of containers, numbers, strings and numpy arrays, which become CPU tensors.

    Raises an exception if the file is broken, refers to other classes or functions, or has arrays of other types.
    """
    with open(path, "rb") as file:
        return _arrays_to_tensors(_Unpickler(file, encoding="latin1").load())  # latin1: arrays pickled by Python 2


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        # numpy 2 has renamed numpy.core, Python 3 __builtin__
        qualified = f"{module}.{name}".replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if qualified not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}; only containers, numbers, strings and numpy arrays are read"
            )
        return _ALLOWED[qualified]


# Replacements for numpy's classes, which accept any type and size from a file and can corrupt memory.


class _Dtype:
    def __init__(self, code: str) -> None:
        self.numpy = np.dtype(code)
        if self.numpy.kind not in "biuf":
            raise pickle.UnpicklingError(f"arrays of type '{code}' are not read, only numbers")

    def __setstate__(self, state: tuple) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    tensor: Tensor

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.tensor = _tensor(raw, dtype, shape, "F" if fortran else "C")


def _tensor(raw: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> Tensor:
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
    return torch.from_numpy(array.astype(dtype.numpy.newbyteorder("=")))


# Only functions without defaults and built-in types, because a pickle may set attributes of these objects.
_ALLOWED = {
    "collections.OrderedDict": dict,
    "numpy.ndarray": "an argument of _reconstruct",
    "numpy.dtype": lambda code, align, copy: _Dtype(code),
    "numpy.core.multiarray._reconstruct": lambda kind, shape, dtype: _Array(),
    "numpy.core.multiarray.scalar": lambda dtype, raw: _tensor(raw, dtype, (), "C"),
    "numpy.core.numeric._frombuffer": lambda raw, dtype, shape, order: _tensor(raw, dtype, shape, order),
    "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # bytes in protocol 2
    "builtins.bytes": lambda: b"",  # empty bytes in protocol 2
}


def _arrays_to_tensors(value: object) -> object:
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict):
        return {key: _arrays_to_tensors(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_arrays_to_tensors(item) for item in value]
    return value
