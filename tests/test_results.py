"""metrics.json after kills and restarts, and evaluation.json."""

import json
import logging
import math
from pathlib import Path

import pytest

from lift_det.results import EvaluationResult, folder_names, read_metrics, recorded_result, write_result

NAN = math.nan


def loss(iteration, value):
    return {"iteration": iteration, "total_loss": value, "lr": 0.1}


def write(folder, *lines):
    """Writes lines of metrics.json; a str as it is."""
    folder.mkdir(exist_ok=True)
    text = "".join(line if isinstance(line, str) else f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    return folder


def test_later_lines_replace_earlier_ones_after_a_restart(tmp_path):
    evaluation = {"iteration": 29, "bbox/AP": 5.0}  # detectron2 may write it after losses of later iterations
    lines = [loss(19, 3.0), loss(39, 2.0), evaluation]
    abandoned = [loss(59, 9.0), {"iteration": 49, "bbox/AP": 99.0}, loss(79, 9.0)]
    metrics = read_metrics(write(tmp_path, *lines, *abandoned, loss(45, 1.5), loss(65, 1.0)))
    assert metrics == [loss(19, 3.0), evaluation, loss(39, 2.0), loss(45, 1.5), loss(65, 1.0)]
    # restarted from the beginning, and evaluated twice
    twice = ({"iteration": 9, "bbox/AP": ap} for ap in (1, 2))
    assert read_metrics(write(tmp_path, *lines, loss(9, 4.0), *twice)) == [{**loss(9, 4.0), "bbox/AP": 2}]


def test_incomplete_lines_are_skipped_with_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    half = json.dumps(loss(39, 2.0))[:20]
    # a resumed training goes on behind the half line
    assert read_metrics(write(tmp_path, loss(19, 3.0), half, loss(39, 2.5), loss(59, 1.0)))[0] == loss(19, 3.0)
    with caplog.at_level(logging.WARNING):
        assert read_metrics(write(tmp_path, loss(19, 3.0), half)) == [loss(19, 3.0)]
    assert "line 2" in caplog.text


@pytest.mark.parametrize("content", ["", '{"iteration": 1, "tot', "5\n", '{"total_loss": 1.0}\n', None])
def test_folders_without_a_complete_line(tmp_path, content):
    folder = tmp_path if content is None else write(tmp_path, content)
    with pytest.raises(FileNotFoundError if content is None else ValueError, match=str(folder / r"metrics\.json")):
        read_metrics(folder)


def test_the_last_evaluation_is_read(tmp_path):
    first = {"iteration": 50, "bbox/AP": 1.0, "segm/AP": 1.0}
    last = {"iteration": 100, "bbox/AP": 2.0, "bbox/AP-a/b c": NAN, "segm/AP": 3.0, "fast_rcnn/cls_accuracy": 0.5}
    result = recorded_result(write(tmp_path / "run", first, last, loss(119, 1.0)), dataset="val")
    assert (result.name, result.iteration, result.dataset) == ("run", 100, "val")
    assert result.figures.keys() == {"bbox", "segm"} and result.figures["segm"] == {"AP": 3.0}
    assert result.figures["bbox"] == pytest.approx({"AP": 2.0, "AP-a/b c": NAN}, nan_ok=True)
    lift = {"iteration": 9, "cosine_2x/lift": 0.9, "rel_l2_4x/lift": 0.5, "error_reduction_2x/lift": 50.0}
    figures = recorded_result(write(tmp_path, lift)).figures
    assert figures == {"cosine_2x": {"lift": 0.9}, "rel_l2_4x": {"lift": 0.5}, "error_reduction_2x": {"lift": 50.0}}
    with pytest.raises(ValueError, match=str(tmp_path)):
        recorded_result(write(tmp_path, loss(19, 3.0)))


def test_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_names(["output/a/", "output/b"]) == ["a", "b"]
    assert folder_names(["x/run", "y/run"]) == ["x/run", "y/run"]
    assert folder_names(["."]) == [tmp_path.name]
    with pytest.raises(ValueError, match=str(tmp_path / "a")):
        folder_names(["a", tmp_path / "a"])


def test_results_are_written_as_strict_json(tmp_path):
    figures = {"bbox": {"AP": 30.0, "APl": NAN}, "segm": {"AP": 25.0}}
    path = write_result(EvaluationResult("a", figures, num_images=4, objects={"cat": 2}), tmp_path / "new" / "folder")
    content = json.loads(Path(path).read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    assert content["figures"] == {"bbox": {"AP": 30.0, "APl": None}, "segm": {"AP": 25.0}}
    assert (content["num_images"], content["objects"]) == (4, {"cat": 2})
    assert content["versions"].keys() == {"lift_det", "detectron2", "torch"}
