"""Tables of one evaluation and of several."""

import json
import math

import pytest

from lift_det.evaluation import comparison_table, result_table, write_comparison
from lift_det.results import EvaluationResult

NAN = math.nan


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


def test_lifts_are_compared_with_lifts():
    results = [
        EvaluationResult(name, {"cosine_2x": {"bilinear": 0.8, "lift": value}, "error_reduction_2x": {"lift": 50.0}})
        for name, value in (("first", 0.9), ("second", 0.925))
    ]
    rows = cells(comparison_table(results))
    assert rows["cosine_2x/lift"] == ["0.9000", "0.9250 (+0.0250)"]
    assert rows["error_reduction_2x/lift"] == ["50.0", "50.0 (+0.0)"]
    assert cells(result_table(results[0]))["cosine_2x/bilinear"] == ["0.8000"]
    with pytest.raises(ValueError, match=r"'a' \(detector\), 'first' \(LiFT\)"):
        comparison_table([detection(), results[0]])
    with pytest.raises(ValueError, match="got none"):
        comparison_table([])


def test_comparisons_are_written(tmp_path):
    results = [detection(), detection("b")]
    markdown, data = write_comparison(results, tmp_path / "compared")
    assert (tmp_path / "compared/comparison.md").read_text().rstrip() == comparison_table(results)
    assert [one["name"] for one in json.loads((tmp_path / "compared/comparison.json").read_text())["results"]] == [
        "a",
        "b",
    ]
    assert {markdown, data} == {str(tmp_path / "compared" / f"comparison.{ending}") for ending in ("md", "json")}
