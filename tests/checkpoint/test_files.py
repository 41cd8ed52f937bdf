"""Reading checkpoint files: pickles of numpy arrays, broken files, and files that would run code."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lift_det.checkpoint import CheckpointError, read_state_dict


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_arrays(protocol: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "float32": generator.standard_normal((3, 4, 2)).astype(np.float32),
        "float16": generator.standard_normal(5).astype(np.float16),
        "big_endian": np.arange(3, dtype=">f8"),
        "fortran": np.asfortranarray(generator.standard_normal((3, 4, 5)).astype(np.float32)),
        "strided": generator.standard_normal((6, 4)).astype(np.float32)[::2, 1:],
        "int64": np.arange(6).reshape(2, 3),
        "bool": np.array([True, False]),
        "uint8": np.arange(250, 256, dtype=np.uint8),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "zero_dimensional": np.array(2.5, dtype=np.float32),
        "scalar": np.float32(1.5),
    }
    arrays["repeated"] = arrays["float32"]
    file = {"model": collections.OrderedDict(arrays), "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(file, protocol=protocol))
    state, metadata = read_state_dict(tmp_path / "x.pkl")
    assert metadata == {} and state.keys() == arrays.keys()
    for name, array in arrays.items():
        array = np.array(array)
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert state[name].dtype == expected.dtype
        assert torch.equal(state[name], expected), name


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.bin"])
@pytest.mark.parametrize("place", ["whole", "in an array", "beside"])
def test_code_is_not_run(name: str, place: str, tmp_path: Path) -> None:
    mark = tmp_path / "was_run"
    attack = Attack(os.system, f"touch '{mark}'")
    if place == "in an array":
        attack = np.array([attack], dtype=object)
    content = attack if place == "whole" else {"model": {"a": attack, "b": np.zeros(2, dtype=np.float32)}}
    if place == "beside":
        content = {"model": {"b": np.zeros(2, dtype=np.float32)}, "args": attack}
    path = tmp_path / name
    if name == "x.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=name):
        read_state_dict(path)
    assert not mark.exists()
    if name == "x.pkl":
        pickle.loads(path.read_bytes())
        assert mark.exists(), "the attack does not work at all"


@pytest.mark.parametrize(
    "content",
    [
        Attack(eval, "1"),
        Attack(getattr, "a", "upper"),
        Attack(np.ndarray, (2,), "O"),  # uninitialised pointers
        Attack(np.ndarray, (2,), "f4"),  # uninitialised memory
        Attack(np.dtype, "O", False, True),
        Attack(np.frombuffer, b"1234", "u1"),
        torch.nn.Linear(1, 1),
        {"a": np.array(["x"], dtype=object)},
        {"a": np.array(["text"])},
        {"a": np.zeros(1, dtype=[("x", "f4")])},
    ],
)
def test_only_arrays_of_numbers_are_read(content: object, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": content, "b": np.zeros(1)}, protocol=2))
    with pytest.raises(CheckpointError, match=r"x\.pkl"):
        read_state_dict(tmp_path / "x.pkl")


def test_truncated_files(tmp_path: Path) -> None:
    state = {"a": torch.randn(40, 50), "b": torch.randn(300)}
    torch.save(state, tmp_path / "x.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "x.safetensors")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    torch.save({"model": state}, tmp_path / "zip.pkl")
    for name in ("x.pth", "old.pth", "x.safetensors", "x.pkl", "zip.pkl"):
        whole = (tmp_path / name).read_bytes()
        assert read_state_dict(tmp_path / name)[0].keys() == state.keys()
        for part in (0, 1, 20, len(whole) // 2, len(whole) - 5):
            (tmp_path / name).write_bytes(whole[:part])
            with pytest.raises(CheckpointError, match=f"{name}.*{part} bytes"):
                read_state_dict(tmp_path / name)
    data = pickle.dumps({"a": np.zeros(3, dtype=np.float32)}, protocol=2)
    (tmp_path / "x.pkl").write_bytes(data.replace(b"K\x03\x85", b"K\x7f\x85"))  # an array of shape (127,)
    with pytest.raises(CheckpointError, match="127"):
        read_state_dict(tmp_path / "x.pkl")
