"""The tool behind the table of `lift-det configs`: a process for each config, and no work twice."""

import json
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
NAME = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_writes_what_it_measures_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)  # the scripts import each other by the folder that they are in
    from measure_configs import main

    path = tmp_path / "measurements.json"
    path.write_text('{"COCO/no_more.py": {}}')
    command = ["--only", NAME, "--threads", "1", "--output", str(path)]
    main(command)
    assert NAME in capsys.readouterr().out
    (measured,) = json.loads(path.read_text()).values()
    assert measured["strides"] == [4, 8, 16, 32] and measured["runs"] == 3
    assert 1e8 < measured["peak_memory"] < 2e9  # of a fresh process
    # what is measured stays, even where it is made up
    path.write_text(json.dumps({NAME: {**measured, "seconds": 123.0}}))
    main(command)
    assert json.loads(path.read_text())[NAME]["seconds"] == 123
