import os
import pickle
import resource

import numpy as np
import pytest
import torch
from torch import nn

from lift_det.checkpoint import CheckpointError, read_state_dict
from lift_det.engine import Checkpointer, ClippedAdamW
from lift_det.files import write_atomically


class Counter:
    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_saves_what_upstream_reads(tmp_path):
    model, counter = nn.Linear(2, 3), Counter()
    counter.count = 7
    Checkpointer(model, str(tmp_path), counter=counter).save("model_0000007", iteration=7)
    other, other_counter = nn.Linear(2, 3), Counter()
    checkpointer = Checkpointer(other, str(tmp_path), counter=other_counter)
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000007.pth")
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 7
    assert torch.equal(model.weight, other.weight) and other_counter.count == 7


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_files_cannot_run_code(suffix, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    data = {"model": {"weight": np.zeros((3, 2), np.float32), "evil": Evil()}, "__author__": "someone"}
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(pickle.dumps(data))
    if suffix == "pth":
        torch.save(data, path)
    with pytest.raises((CheckpointError, pickle.UnpicklingError)):
        Checkpointer(nn.Linear(2, 3)).load(str(path))
    assert not (tmp_path / "ran").exists()


def test_reads_detectron2s_pickles(tmp_path):
    weights = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.ones(3, np.float32)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "someone"}))
    model = nn.Linear(2, 3)
    Checkpointer(model).load(str(tmp_path / "model.pkl"))
    assert torch.equal(model.weight, torch.arange(6.0).view(3, 2))
    # with heuristics names need not be whole
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"model": {f"0.{k}": v for k, v in weights.items()}}))
    deep = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    Checkpointer(deep).load(f"{tmp_path}/other.pkl?matching_heuristics=True")
    assert torch.equal(deep[0][0].bias, torch.ones(3))


def test_failure_while_saving_leaves_the_last_one_whole(tmp_path, monkeypatch):
    model = nn.Linear(2, 3)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = model.weight.detach().clone()
    nn.init.zeros_(model.weight)

    def full_disk(data, file):
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save("model")
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]
    assert torch.equal(torch.load(tmp_path / "model.pth")["model"]["weight"], before)


def test_a_full_disk_is_said_and_the_last_checkpoint_is_whole(tmp_path):
    """With files limited in size, which fails in the middle of writing as a full disk does."""
    model = nn.Linear(1000, 100)
    checkpointer = Checkpointer(model, str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="could not be written. Make space.* from the beginning"):
            checkpointer.save("model_0000001")
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        checkpointer.save("model_0000001")
        before = model.weight.detach().clone()
        nn.init.zeros_(model.weight)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="model_0000001.pth', which is whole"):
            checkpointer.save("model_0000002")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert torch.equal(torch.load(checkpointer.get_checkpoint_file())["model"]["weight"], before)


def test_permissions_are_those_of_an_ordinary_file(tmp_path):
    write_atomically(tmp_path / "atomic", lambda file: file.write(b"x"))
    (tmp_path / "ordinary").write_bytes(b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_unreadable_files_are_named(tmp_path):
    torch.save(nn.Linear(200, 30).state_dict(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "pickled.pth")
    for name, message in [
        ("cut.pth", "may be cut off"),
        ("cut.safetensors", "not a whole safetensors file"),
        ("empty.pth", "holds no state dict"),
        ("pickled.pth", "never run here"),
    ]:
        with pytest.raises(CheckpointError, match=message) as error:
            read_state_dict(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"epoch": 1, "state_dict": {"model": s}}]
)
def test_wrappings_come_off(tmp_path, wrap):
    torch.save(wrap({"a": torch.ones(2)}), tmp_path / "x.pth")
    assert read_state_dict(tmp_path / "x.pth")[0].keys() == {"a"}


def test_loose_tensors_beside_the_weights_are_passed_over(tmp_path):
    torch.save({"best": torch.ones(1), "state_dict": {"a": torch.ones(2)}, "rng": torch.ones(3)}, tmp_path / "x.pth")
    assert read_state_dict(tmp_path / "x.pth")[0].keys() == {"a"}


def test_clipped_adamw_refuses_what_it_cannot_clip():
    with pytest.raises(ValueError, match="fused"):
        ClippedAdamW(nn.Linear(2, 2).parameters(), fused=True)


def test_clipped_adamw_is_adamw_on_clipped_gradients():
    torch.manual_seed(0)
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.load_state_dict(a.state_dict())
    clipped = ClippedAdamW([{"params": [p]} for p in a.parameters()], lr=0.1, max_norm=0.5)
    plain = torch.optim.AdamW(b.parameters(), lr=0.1)
    for scale in (100.0, 0.001, 10.0):
        for model, optimizer in ((a, clipped), (b, plain)):
            optimizer.zero_grad()
            (scale * model(torch.ones(1, 4)).sum()).backward()
            if optimizer is plain:
                torch.nn.utils.clip_grad_norm_(b.parameters(), 0.5)
            optimizer.step()
    assert torch.equal(a.weight, b.weight)
