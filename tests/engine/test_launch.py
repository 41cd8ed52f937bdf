"""Flags and torchrun; that both start trainings is in test_train_tools.py."""

import pytest

from lift_det.engine import launch


@pytest.mark.parametrize("flags", [{"num_gpus": 2}, {"num_machines": 2}, {"machine_rank": 1}])
def test_torchrun_and_flags_contradict_each_other(flags, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ValueError, match="Inside torchrun leave out --num-gpus"):
        launch(pytest.fail, **flags)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="--nproc-per-node 4: this machine has 2 GPUs"):
        launch(pytest.fail)


def test_one_process_is_this_one():
    seen = []
    launch(lambda *args: seen.append(args), args=("a", 1))
    assert seen == [("a", 1)]
