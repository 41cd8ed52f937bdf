"""Pickles of numpy arrays, as detectron2's model zoo has them, read without running anything that is in them."""

from __future__ import annotations

import math
import os
import pickle
from collections import OrderedDict

import torch
from torch import Tensor

# numpy's codes of the types that weights come in
_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
# numpy 2 has moved what older pickles name
_ARRAY = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
_BUFFER = {("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")}
_BYTES = {("builtins", "bytes"), ("__builtin__", "bytes")}


def read_arrays(path: str | os.PathLike) -> object:
    """Reads a pickle of containers, numbers, strings and numpy arrays; arrays and numpy scalars become CPU tensors.

    No function or class that a file names is looked up: arrays are put together here, from their bytes.

    Raises:
        pickle.UnpicklingError: the file names anything else, or an array of objects or of an unknown type.
        Exception: whatever unpickling a broken file comes to.
    """
    with open(path, "rb") as file:
        return _finish(_Unpickler(file, encoding="latin1").load())  # latin1: numpy arrays that Python 2 pickled


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        # a pickle can set attributes of what it is given here: functions are made anew each time
        key = (module, name)
        if key == ("collections", "OrderedDict"):
            return OrderedDict
        if key == ("numpy", "ndarray"):
            return "numpy.ndarray"  # an argument of _reconstruct, which has one use here
        if key == ("numpy", "dtype"):
            return lambda code, *flags: _Dtype(code)
        if key in _ARRAY:
            return lambda *arguments: _Array()
        if key in _SCALAR:
            return lambda dtype, raw: _tensor(raw, dtype, ())
        if key in _BUFFER:
            return lambda raw, dtype, shape, order: _tensor(raw, dtype, shape, fortran=order == "F")
        if key == ("_codecs", "encode"):  # bytes, in pickles of protocol 2 from Python 3
            return lambda text, encoding: text.encode("latin1")
        if key in _BYTES:
            return lambda: b""  # in pickles of protocol 2, with no argument: an empty array's
        raise pickle.UnpicklingError(
            f"the file asks for {module}.{name}; only containers, numbers, strings and numpy arrays are read"
        )


class _Dtype:
    def __init__(self, code: str) -> None:
        if code not in _TYPES:
            raise pickle.UnpicklingError(f"arrays of numpy type '{code}' are not read, only {', '.join(_TYPES)}")
        self.torch = _TYPES[code]

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", "|", "="):
            raise pickle.UnpicklingError(f"arrays of byte order '{state[1]}' are not read, only little-endian ones")


class _Array:
    tensor: Tensor | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.tensor = _tensor(raw, dtype, shape, fortran=fortran)


def _tensor(raw: bytes | str, dtype: _Dtype, shape: tuple[int, ...], fortran: bool = False) -> Tensor:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array has no type")
    data = bytearray(raw.encode("latin1") if isinstance(raw, str) else raw)
    if len(data) != math.prod(shape) * dtype.torch.itemsize:
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(data)} bytes")
    flat = torch.frombuffer(data, dtype=dtype.torch) if data else torch.empty(0, dtype=dtype.torch)
    return flat.view(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran else flat.view(shape)


def _finish(value: object) -> object:
    if isinstance(value, _Array):
        if value.tensor is None:
            raise pickle.UnpicklingError("an array has no content")
        return value.tensor
    if isinstance(value, dict):
        return {key: _finish(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finish(item) for item in value]
    return value
