"""Files of weights cannot run code, and detectron2's pickles of numpy arrays are read all the same."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling.backbone.vit import ViT as UpstreamViT
from safetensors.torch import save_file

from lift_det.checkpoint import CheckpointError, read_state_dict
from lift_det.modeling import ViT


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_arrays_come_as_they_were(protocol: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "float32": generator.standard_normal((3, 4, 2)).astype(np.float32),
        "float16": generator.standard_normal(5).astype(np.float16),
        "float64": generator.standard_normal((2, 2)),
        "fortran": np.asfortranarray(generator.standard_normal((3, 4, 5)).astype(np.float32)),
        "strided": generator.standard_normal((6, 4)).astype(np.float32)[::2, 1:],
        "int64": np.arange(6).reshape(2, 3),
        "bool": np.array([True, False]),
        "uint8": np.arange(250, 256, dtype=np.uint8),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "zero_dimensional": np.array(2.5, dtype=np.float32),
        "scalar": np.float32(1.5),
    }
    arrays["the same again"] = arrays["float32"]
    file = {"model": collections.OrderedDict(arrays), "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(file, protocol=protocol))
    state, metadata = read_state_dict(tmp_path / "x.pkl")
    assert metadata == {} and state.keys() == arrays.keys()
    for name, array in arrays.items():
        expected = torch.from_numpy(np.array(array))
        assert state[name].dtype == expected.dtype
        assert torch.equal(state[name], expected), name


def test_detectron2s_pickle_of_a_vit(tmp_path: Path) -> None:
    kwargs = dict(img_size=32, embed_dim=16, depth=1, num_heads=2, use_rel_pos=True, pretrain_img_size=32)
    source = UpstreamViT(**kwargs).eval()
    model = {f"backbone.net.{k}": v.numpy() for k, v in source.state_dict().items()}
    model["roi_heads.box.weight"] = np.zeros(3, dtype=np.float32)
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2"}, protocol=2))
    ours = ViT(**kwargs, checkpoint=tmp_path / "model_final.pkl").eval()
    x = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)["last_feat"], source(x)["last_feat"], atol=1e-5, rtol=1e-5)


def test_torch_saves_file_may_be_called_a_pickle(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.arange(3)}}, tmp_path / "x.pkl")
    assert read_state_dict(tmp_path / "x.pkl")[0]["a"].tolist() == [0, 1, 2]


class Attack:
    """Unpickled, it calls a function of the machine's."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.bin"])
@pytest.mark.parametrize("place", ["whole", "in an array", "beside"])
def test_code_is_refused_and_not_run(name: str, place: str, tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match=r"never run here") as error:
        read_state_dict(path)
    assert name in str(error.value) and not mark.exists()
    if name == "x.pkl":
        refused = "type 'O8'" if place == "in an array" else f"asks for {os.system.__module__}.system"
        assert refused in str(error.value)
        pickle.loads(path.read_bytes())  # it would have
        assert mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Attack(eval, "1"), r"builtin(s|__)\.eval"),
        (Attack(getattr, "a", "upper"), r"builtin(s|__)\.getattr"),
        (torch.nn.Linear(1, 1), "asks for"),
        ({"a": np.array(["x"], dtype=object)}, "type 'O8'"),
        ({"a": np.array(["text"])}, "type 'U4'"),
        ({"a": np.zeros(1, dtype=[("x", "f4")])}, "type 'V4'"),
        ({"a": np.zeros(2, dtype=">f4")}, "byte order '>'"),
    ],
)
def test_everything_but_plain_arrays_is_refused(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": content}, protocol=2))
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "x.pkl")


def test_an_array_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps({"model": {"a": np.zeros(3, dtype=np.float32)}}, protocol=2)
    assert data.count(b"K\x03\x85") == 1  # the shape, (3,)
    (tmp_path / "x.pkl").write_bytes(data.replace(b"K\x03\x85", b"K\x7f\x85"))
    with pytest.raises(CheckpointError, match=r"an array of shape \(127,\) has 12 bytes"):
        read_state_dict(tmp_path / "x.pkl")


def test_files_cut_off_are_refused(tmp_path: Path) -> None:
    state = {"a": torch.randn(40, 50), "b": torch.randn(300)}
    torch.save(state, tmp_path / "x.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "x.safetensors")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}))
    for name in ("x.pth", "old.pth", "x.safetensors", "x.pkl"):
        whole = (tmp_path / name).read_bytes()
        assert read_state_dict(tmp_path / name)[0].keys() == state.keys()
        for part in (0, 1, 20, len(whole) // 2, len(whole) - 5):
            (tmp_path / name).write_bytes(whole[:part])
            with pytest.raises(CheckpointError, match=f"{name}.*{part} bytes"):
                read_state_dict(tmp_path / name)
