"""Flags and torchrun; that both start trainings is in test_train_tools.py."""

import pytest

from lift_det.engine import launch


def test_torchrun_and_flags_contradict_each_other(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for counts in ((2,), (1, 2), (1, 1, 1)):
        with pytest.raises(ValueError, match="--num-gpus"):
            launch(pytest.fail, *counts)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="4.* 2"):
        launch(pytest.fail, 1)
