import os
import pickle
import resource

import numpy as np
import pytest
import torch
from torch import nn

from lift_det.checkpoint import CheckpointError
from lift_det.engine import Checkpointer


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_files_cannot_run_code(suffix, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    data = {"model": {"weight": np.zeros((3, 2), np.float32), "evil": Evil()}}
    path = tmp_path / f"file.{suffix}"
    torch.save(data, path) if suffix == "pth" else path.write_bytes(pickle.dumps(data))
    with pytest.raises((CheckpointError, pickle.UnpicklingError)):
        Checkpointer(nn.Linear(2, 3)).load(str(path))
    assert not (tmp_path / "ran").exists()


def test_reads_detectron2s_pickles(tmp_path):
    weights = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.ones(3, np.float32)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "someone"}))
    model = nn.Linear(2, 3)
    Checkpointer(model).load(str(tmp_path / "model.pkl"))
    assert torch.equal(model.weight, torch.arange(6.0).view(3, 2))
    # heuristics match parts of names
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"model": {f"0.{k}": v for k, v in weights.items()}}))
    deep = nn.Sequential(nn.Sequential(nn.Linear(2, 3)))
    Checkpointer(deep).load(f"{tmp_path}/other.pkl?matching_heuristics=True")
    assert torch.equal(deep[0][0].bias, torch.ones(3))


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    """A limit on the size of files fails in the middle of writing, as a full disk does."""
    model = nn.Linear(1000, 100)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    before = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="model_0000002.pth.*model_0000001.pth"):
            checkpointer.save("model_0000002")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert torch.equal(torch.load(checkpointer.get_checkpoint_file())["model"]["weight"], before)
    (tmp_path / "ordinary").touch()  # the checkpoint has the same permissions
    assert (tmp_path / "model_0000001.pth").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
