"""Tables of one evaluation and of several."""

import json
import math

from lift_det.evaluation import comparison_table, result_table, write_comparison
from lift_det.results import EvaluationResult

NAN = math.nan


def detector(name="a", dataset="pets", **kwargs):
    # sorted by name, as in metrics.json
    bbox = {"AP": 30.0, "AP-cat": 40.0, "AP-dog": 20.0, "AP-emu": NAN, "AP50": 50.0, "APl": NAN, "APs": 9.0}
    segm = {"AP": 25.0, "AP-cat": 35.0, "AP-dog": 15.0, "AP-emu": NAN, "AP50": 45.0, "APl": NAN, "APs": 8.0}
    return EvaluationResult(name, {"segm": segm, "bbox": bbox}, dataset, **kwargs)


def cells(table):
    """The rows of Markdown tables, by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


def test_table_of_one_detector():
    rows = cells(result_table(detector(objects={"cat": 2, "dog": 3, "emu": 0})))
    assert rows[""] == ["AP", "AP50", "APs", "APl"]
    assert rows["boxes"] == ["30.0", "50.0", "9.0", "–"] and rows["masks"] == ["25.0", "45.0", "8.0", "–"]
    assert rows["class"] == ["AP, boxes", "AP, masks", "objects"]
    assert rows["cat"] == ["40.0", "35.0", "2"] and rows["emu"] == ["–", "–", "0"]
    assert cells(result_table(detector()))["cat"] == ["40.0", "35.0"]
    # without predictions there are no figures of classes
    rows = cells(result_table(EvaluationResult("a", {"bbox": {"AP": NAN, "AP50": NAN}}, objects={"cat": 2})))
    assert rows["boxes"] == ["–", "–"] and "cat" not in rows


def test_comparison_has_differences_and_empty_cells(tmp_path):
    figures = {"AP": 28.75, "AP50": 49.99, "APl": 12.0, "AP-cat": 41.0, "AP-yak": 5.0}
    results = [detector(), EvaluationResult("b", {"bbox": figures}, dataset="pets")]
    table = comparison_table(results)
    rows = cells(table)
    assert rows[""] == ["a", "b"] and table.startswith("|")
    names = ["AP", "AP50", "APs", "APl", "AP-cat", "AP-dog", "AP-emu", "AP-yak"]
    assert [name for name in rows if name.startswith("bbox")] == [f"bbox/{name}" for name in names]
    assert rows["bbox/AP"] == ["30.0", "28.8 (-1.2)"] and rows["segm/AP"] == ["25.0", ""]
    assert rows["bbox/APl"] == ["–", "12.0"] and rows["bbox/AP-cat"] == ["40.0", "41.0 (+1.0)"]
    assert rows["bbox/AP-dog"] == ["20.0", ""] and rows["bbox/AP-yak"] == ["", "5.0"]
    assert write_comparison(results, tmp_path) == [str(tmp_path / f"comparison.{end}") for end in ("md", "json")]
    assert (tmp_path / "comparison.md").read_text().rstrip() == table
    written = json.loads((tmp_path / "comparison.json").read_text())["results"]
    assert [one["name"] for one in written] == ["a", "b"] and written[0]["figures"]["bbox"]["APl"] is None


def test_comparison_names_different_data():
    def note(*results):
        return comparison_table(results).split("|")[0].strip()

    assert note(detector(num_images=9), detector("b", num_images=9)) == note(detector(dataset=None)) == ""
    assert "a: pets, 9 images; b: pets, 8 images" in note(detector(num_images=9), detector("b", num_images=8))
    assert "a: pets; b: wild" in note(detector(), detector("b", "wild"))


def test_lifts():
    results = [
        EvaluationResult(name, {"cosine_2x": {"bilinear": 0.8, "lift": value}, "error_reduction_2x": {"lift": 50.0}})
        for name, value in (("first", 0.9), ("second", 0.925))
    ]
    rows = cells(comparison_table(results))
    assert rows["cosine_2x/lift"] == ["0.9000", "0.9250 (+0.0250)"]
    assert rows["error_reduction_2x/lift"] == ["50.0", "50.0 (+0.0)"]
    assert cells(result_table(results[0]))["cosine_2x/bilinear"] == ["0.8000"]
