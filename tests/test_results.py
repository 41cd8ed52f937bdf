"""What metrics.json says after kills and restarts, and results as files."""

import json
import logging
import math

import pytest

from lift_det.results import (
    EvaluationResult,
    class_figures,
    count_objects,
    folder_names,
    overall_figures,
    read_metrics,
    recorded_result,
    write_result,
)

NAN = math.nan


def loss(iteration, value, **more):
    return {"iteration": iteration, "total_loss": value, "lr": 0.1, **more}


def write(folder, *lines):
    """Lines of metrics.json; a str is written as it is."""
    folder.mkdir(exist_ok=True)
    text = "".join(line if isinstance(line, str) else f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.json").write_text(text, encoding="utf-8")
    return folder


def test_lines_come_in_the_order_of_iterations(tmp_path):
    # detectron2 writes an evaluation between two losses after the later one
    folder = write(tmp_path, loss(19, 3.0), loss(39, 2.0), {"iteration": 29, "bbox/AP": 5.0}, loss(59, 1.0))
    assert [line["iteration"] for line in read_metrics(folder)] == [19, 29, 39, 59]


def test_later_lines_win_after_a_restart(tmp_path):
    abandoned = [loss(59, 9.0), {"iteration": 49, "bbox/AP": 99.0}, loss(79, 9.0)]
    folder = write(tmp_path, loss(19, 3.0), loss(39, 2.0), *abandoned, loss(45, 1.5), loss(65, 1.0))
    lines = read_metrics(folder)
    assert [(line["iteration"], line["total_loss"]) for line in lines] == [(19, 3.0), (39, 2.0), (45, 1.5), (65, 1.0)]
    assert not any("bbox/AP" in line for line in lines)
    # started anew in the same folder
    folder = write(tmp_path, loss(19, 3.0), loss(39, 2.0), loss(9, 4.0))
    assert [line["iteration"] for line in read_metrics(folder)] == [9]


def test_an_evaluation_that_is_done_again_wins(tmp_path):
    folder = write(tmp_path, loss(9, 1.0), {"iteration": 10, "bbox/AP": 1.0}, {"iteration": 10, "bbox/AP": 2.0})
    assert read_metrics(folder)[-1]["bbox/AP"] == 2.0


def test_a_cut_line_is_left_out_with_a_warning(tmp_path, caplog):
    half = json.dumps(loss(39, 2.0))[:20]
    with caplog.at_level(logging.WARNING):
        assert len(read_metrics(write(tmp_path, loss(19, 3.0), half))) == 1
    assert "line 2 is not whole" in caplog.text
    # a resumed training goes on behind the half line
    lines = read_metrics(write(tmp_path, loss(19, 3.0), half, loss(39, 2.5), loss(59, 1.0)))
    assert [line["total_loss"] for line in lines] == [3.0, 2.5, 1.0]


@pytest.mark.parametrize("content", ["", "\n", '{"iteration": 1, "tot', "5\n", "[]\n", '{"total_loss": 1.0}\n'])
def test_a_file_without_a_whole_line_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="no whole line"):
        read_metrics(write(tmp_path, content))


def test_folders_without_metrics_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metrics\.json in it"):
        read_metrics(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_metrics(tmp_path / "absent")


def test_the_last_evaluation_is_read(tmp_path):
    first = {"iteration": 50, "bbox/AP": 1.0, "segm/AP": 1.0}
    last = {"iteration": 100, "bbox/AP": 2.0, "bbox/AP-a/b c": NAN, "segm/AP": 3.0, "fast_rcnn/cls_accuracy": 0.5}
    result = recorded_result(write(tmp_path / "run", first, last, loss(119, 1.0)), dataset="val")
    assert (result.name, result.iteration, result.dataset) == ("run", 100, "val")
    assert result.figures["segm"] == {"AP": 3.0}
    assert result.figures["bbox"].keys() == {"AP", "AP-a/b c"} and result.figures.keys() == {"bbox", "segm"}
    with pytest.raises(ValueError, match="no evaluation is recorded"):
        recorded_result(write(tmp_path, loss(19, 3.0)))


def test_an_evaluation_of_a_lift_is_read(tmp_path):
    line = {"cosine_2x/bilinear": 0.8, "cosine_2x/lift": 0.9, "error_reduction_2x/lift": 50.0, "iteration": 100}
    figures = recorded_result(write(tmp_path, loss(99, 1.0), line)).figures
    assert figures == {"cosine_2x": {"bilinear": 0.8, "lift": 0.9}, "error_reduction_2x": {"lift": 50.0}}


def test_figures_of_all_classes_and_of_each():
    figures = {"AP-cat": 40.0, "AP75": 3.0, "APl": NAN, "AP": 1.0, "AR": 5.0, "AP50": 2.0}
    assert list(overall_figures(figures)) == ["AP", "AP50", "AP75", "APl", "AR"]
    assert class_figures(figures) == {"cat": 40.0}


def test_folders_get_short_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_names(["output/a/", "output/b"]) == ["a", "b"]
    assert folder_names(["x/run", "y/run"]) == ["x/run", "y/run"]
    assert folder_names(["."]) == [tmp_path.name]
    with pytest.raises(ValueError, match="named twice"):
        folder_names(["a", tmp_path / "a"])


def test_objects_are_counted_without_crowds():
    records = [
        {"annotations": [{"category_id": 1}, {"category_id": 1, "iscrowd": 1}, {"category_id": 0, "iscrowd": 0}]},
        {"annotations": []},
        {"annotations": [{"category_id": 1}]},
    ]
    assert count_objects(records, ["cat", "dog", "emu"]) == {"cat": 1, "dog": 2, "emu": 0}


def test_results_are_written_as_strict_json(tmp_path):
    figures = {"bbox": {"AP": 30.0, "APl": NAN, "AP-cat": 40.0}, "segm": {"AP": 25.0}}
    result = EvaluationResult("a", figures, num_images=4, objects={"cat": 2}, weights="model_final.pth")
    path = write_result(result, tmp_path / "new" / "inference")
    assert [file.name for file in (tmp_path / "new" / "inference").iterdir()] == ["evaluation.json"]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "new/inference/evaluation.json").read_text(), parse_constant=refuse)
    assert path.endswith("evaluation.json")
    assert content["figures"]["bbox"]["APl"] is None and content["figures"]["bbox"]["AP"] == 30.0
    assert content["num_images"] == 4 and content["versions"].keys() == {"lift_det", "detectron2", "torch"}
