"""What metrics.json says after kills and restarts, and tables of one evaluation and of several."""

import json
import logging
import math

import pytest

from lift_det.evaluation import (
    EvaluationResult,
    comparison_table,
    count_objects,
    folder_names,
    read_metrics,
    recorded_result,
    result_table,
    write_comparison,
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


def detection(name="a", **kwargs):
    figures = {
        "bbox": {"AP": 30.0, "AP50": 50.0, "APl": NAN, "AP-cat": 40.0, "AP-dog": 20.0, "AP-emu": NAN},
        "segm": {"AP": 25.0, "AP50": 45.0, "APl": NAN, "AP-cat": 35.0, "AP-dog": 15.0, "AP-emu": NAN},
    }
    return EvaluationResult(name, figures, **{"dataset": "pets", **kwargs})


def cells(table):
    """The rows of a Markdown table, by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


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


def test_table_of_one_result():
    table = result_table(detection(objects={"dog": 3, "cat": 2, "emu": 0}))
    rows = cells(table)
    assert rows["boxes"] == ["30.0", "50.0", "–"] and rows["masks"] == ["25.0", "45.0", "–"]
    assert rows["cat"] == ["2", "40.0", "35.0"]
    assert list(rows).index("dog") < list(rows).index("cat"), "not in class order"
    assert "emu" not in rows and table.endswith("Not one object of: emu.")
    # without counts
    assert cells(result_table(detection()))["cat"] == ["40.0", "35.0"]
    # a model that finds nothing has no figures of classes
    empty = EvaluationResult("a", {"bbox": {"AP": NAN, "AP50": NAN}}, objects={"cat": 2})
    rows = cells(result_table(empty))
    assert rows["boxes"] == ["–", "–"] and not {"class", "cat"} & rows.keys()


def test_comparison_has_differences_and_empty_cells():
    second = EvaluationResult(
        "b", {"bbox": {"AP": 28.75, "AP50": 49.99, "APl": 12.0, "AP-cat": 41.0, "AP-yak": 5.0}}, dataset="pets"
    )
    table = comparison_table([detection(), second])
    boxes, masks = table.split("### Masks")
    rows = cells(boxes)
    assert rows[""] == ["a", "b"]
    assert rows["AP"] == ["30.0", "28.8 (-1.2)"] and rows["AP50"] == ["50.0", "50.0 (+0.0)"]
    assert rows["APl"] == ["–", "12.0"], "a difference from NaN"
    assert rows["cat"] == ["40.0", "41.0 (+1.0)"] and rows["dog"] == ["20.0", ""] and rows["yak"] == ["", "5.0"]
    assert cells(masks)["AP"] == ["25.0", ""]
    assert "**Not the same classes**: not every data set has dog, emu, yak." in table
    assert "Not the same data" not in table


def test_comparison_says_what_is_not_the_same_data():
    def notes(*results):
        return comparison_table(results).split("###")[0]

    same = detection(num_images=9), detection("b", num_images=9)
    assert notes(*same) == ""
    nothing_found = EvaluationResult("b", {"bbox": {"AP": NAN}}, dataset="pets", objects={"cat": 1, "dog": 1, "emu": 0})
    assert notes(detection(), nothing_found) == ""
    assert "a: pets; b: wild" in notes(detection(), detection("b", dataset="wild"))
    assert "a: pets (9 images); b: pets (8 images)" in notes(detection(num_images=9), detection("b", num_images=8))
    assert "a: pets; b: data not known" in notes(detection(), detection("b", dataset=None))
    assert "Not known whether" in notes(detection(dataset=None), detection("b", dataset=None))


def test_objects_stand_in_a_comparison_of_the_same_data():
    objects = {"cat": 2, "dog": 3, "emu": 0}
    assert "cat (2)" in cells(comparison_table([detection(objects=objects), detection("b", objects=objects)]))
    assert "cat" in cells(comparison_table([detection(objects=objects), detection("b")]))


def test_lifts_are_compared_with_lifts(tmp_path):
    for name, value in (("first", 0.9), ("second", 0.925)):
        line = {"cosine_2x/bilinear": 0.8, "cosine_2x/lift": value, "error_reduction_2x/lift": 50.0, "iteration": 100}
        write(tmp_path / name, loss(99, 1.0), line)
    results = [recorded_result(tmp_path / name, dataset="photos") for name in ("first", "second")]
    rows = cells(comparison_table(results))
    assert rows["cosine_2x/lift"] == ["0.9000", "0.9250 (+0.0250)"]
    assert rows["error_reduction_2x/lift"] == ["50.0", "50.0 (+0.0)"]
    assert cells(result_table(results[0]))["cosine_2x/bilinear"] == ["0.8000"]
    with pytest.raises(ValueError, match=r"'a' \(detector\), 'first' \(LiFT\)"):
        comparison_table([detection(), results[0]])
    with pytest.raises(ValueError, match="got none"):
        comparison_table([])


def test_results_are_written_as_strict_json(tmp_path):
    result = detection(num_images=4, objects={"cat": 2}, weights="model_final.pth")
    path = write_result(result, tmp_path / "new" / "inference")
    assert [file.name for file in (tmp_path / "new" / "inference").iterdir()] == ["evaluation.json"]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "new/inference/evaluation.json").read_text(), parse_constant=refuse)
    assert path.endswith("evaluation.json")
    assert content["figures"]["bbox"]["APl"] is None and content["figures"]["bbox"]["AP"] == 30.0
    assert content["num_images"] == 4 and content["versions"].keys() == {"lift_det", "detectron2", "torch"}

    markdown, data = write_comparison([result, detection("b")], tmp_path / "compared")
    assert (tmp_path / "compared/comparison.md").read_text().rstrip() == comparison_table([result, detection("b")])
    assert [one["name"] for one in json.loads((tmp_path / "compared/comparison.json").read_text())["results"]] == [
        "a",
        "b",
    ]
    assert {markdown, data} == {str(tmp_path / "compared" / f"comparison.{ending}") for ending in ("md", "json")}
