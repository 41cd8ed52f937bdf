"""tools/make_detections.py and tools/benchmark_evaluation.py."""

import json
import runpy
import sys

from tests.evaluation.coco_predictions import TOOLS, perturbed_detections


def test_tools_write_and_compare(annotations, tmp_path, monkeypatch, capsys):
    path, output = tmp_path / "annotations.json", tmp_path / "detections.json"
    path.write_text(json.dumps(annotations))
    for tool, option in (("make_detections.py", "--per-image=20"), ("benchmark_evaluation.py", "--rounds=1")):
        monkeypatch.setattr(sys, "argv", [tool, str(path), str(output), option])
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    assert json.loads(output.read_text()) == perturbed_detections(annotations, per_image=20)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if ", hotcoco" in line]
    assert [row[1].strip() for row in rows if len(row) > 6] == ["bbox, hotcoco", "segm, hotcoco"]
    assert all(float(row[5]) <= 1e-12 and float(row[6]) <= 1e-12 for row in rows if len(row) > 6)
