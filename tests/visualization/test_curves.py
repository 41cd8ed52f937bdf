"""Curves of trainings and bars of evaluations, read from the figures and from the pictures that were written."""

import json
import math

import cv2
import numpy as np
import pytest

from lift_det.results import EvaluationResult
from lift_det.visualization import plot_comparison, plot_reconstruction, plot_training

LOSSES = ("loss_cls", "loss_mask")


def write(folder, iterations, evaluations=(), **more):
    """A training that logs these iterations; its losses are its iterations, so that curves can be checked."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"iteration": i, "total_loss": 2.0 * i, **dict.fromkeys(LOSSES, float(i)), "lr": 0.1, **more}
        for i in iterations
    ]
    lines += [{"iteration": i, "bbox/AP": 20.0 + i, "segm/AP": 10.0 + i} for i in evaluations]
    (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def check_picture(path, figure):
    """It decodes, in the figure's size, and each panel has colours in it."""
    picture = cv2.imread(str(path))
    height, width = picture.shape[:2]
    assert (width, height) == tuple(int(side) for side in figure.get_size_inches() * 120)
    saturation = np.ptp(picture.astype(int), axis=2)
    for axes in figure.axes:
        box = axes.get_position()
        inside = saturation[
            int((1 - box.y1) * height) : int((1 - box.y0) * height), int(box.x0 * width) : int(box.x1 * width)
        ]
        assert (inside > 60).sum() > 20, axes.get_title()


def test_one_training(tmp_path):
    folder = write(tmp_path / "run", range(9, 500, 10), evaluations=(100, 300, 500))
    figure = plot_training([folder], tmp_path / "new" / "plot.png")
    axes = panels(figure)
    assert list(axes) == ["total_loss", *LOSSES, "AP, boxes", "AP, masks", "learning rate"]
    faint, smooth = axes["total_loss"].lines
    assert faint.get_alpha() < 0.5
    assert faint.get_xydata().tolist() == [[i, 2.0 * i] for i in range(9, 500, 10)]
    # a straight line stays one, but for its ends
    assert np.allclose(smooth.get_ydata()[5:-5], faint.get_ydata()[5:-5])
    (boxes,) = axes["AP, boxes"].lines
    assert boxes.get_xydata().tolist() == [[100, 120], [300, 320], [500, 520]]
    check_picture(tmp_path / "new" / "plot.png", figure)


def test_several_trainings_share_panels_and_differ_in_colour(tmp_path):
    folders = [write(tmp_path / name, range(9, 100, 10)) for name in "abc"]
    write(folders[2], range(9, 50, 10), evaluations=(50,), loss_extra=1.0)
    figure = plot_training(folders, tmp_path / "plot.png")
    axes = panels(figure)
    assert len({line.get_color() for line in axes["total_loss"].lines}) == 3
    # what only the third has is in the third's colour
    (third,) = axes["loss_extra"].lines
    assert third.get_color() == axes["total_loss"].lines[2].get_color() == axes["AP, boxes"].lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    check_picture(tmp_path / "plot.png", figure)


def test_a_resumed_training_is_one_curve(tmp_path):
    folder = write(tmp_path, [9, 19, 29, 39, 19, 29])
    (curve,) = panels(plot_training([folder], tmp_path / "plot.png"))["loss_cls"].lines
    assert curve.get_xdata().tolist() == [9, 19, 29]


def test_little_to_draw(tmp_path):
    figure = plot_training([write(tmp_path, [9])], tmp_path / "plot.png")
    assert list(panels(figure)) == ["total_loss", *LOSSES, "learning rate"], "no evaluation has no panel"
    check_picture(tmp_path / "plot.png", figure)
    (tmp_path / "metrics.json").write_text(
        '{"iteration": 9, "total_loss": NaN}\n{"iteration": 19, "total_loss": 2.0}\n'
    )
    assert list(panels(plot_training([tmp_path], tmp_path / "plot.png"))) == ["total_loss"]
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "time": 1.0}\n')
    with pytest.raises(ValueError, match="to draw"):
        plot_training([tmp_path], tmp_path / "plot.png")


def test_a_lifts_training(tmp_path):
    lines = [{"iteration": i, "total_loss": 1.0, "loss_full_from_half": 0.5} for i in (9, 19)]
    lines += [
        {"iteration": i, "cosine_2x/bilinear": 0.8, "cosine_2x/lift": 0.9, "cosine_4x/lift": 0.7} for i in (10, 20)
    ]
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    figure = plot_training([tmp_path], tmp_path / "plot.png")
    axes = panels(figure)
    assert list(axes) == ["total_loss", "loss_full_from_half", "cosine_2x", "cosine_4x"]
    assert [line.get_ydata().tolist() for line in axes["cosine_2x"].lines] == [[0.8, 0.8], [0.9, 0.9]]
    assert [text.get_text() for text in axes["cosine_2x"].texts] == ["bilinear 0.800", "LiFT 0.900"]
    check_picture(tmp_path / "plot.png", figure)


def test_smoothing_keeps_constants_and_gaps(tmp_path):
    noise = np.random.default_rng(0).normal(size=500)
    lines = [{"iteration": i, "total_loss": 3.0, "loss_noise": value} for i, value in enumerate(noise)]
    lines[20]["total_loss"] = math.nan
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    axes = panels(plot_training([tmp_path], tmp_path / "plot.png"))
    constant, smooth = (axes[name].lines[-1].get_ydata() for name in ("total_loss", "loss_noise"))
    assert np.isnan(constant[20]) and np.allclose(np.delete(constant, 20), 3.0)
    assert smooth.std() < 0.25 * noise.std()


def test_other_endings(tmp_path):
    folder = write(tmp_path, [9, 19])
    plot_training([folder], tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(ValueError, match="not supported"):
        plot_training([folder], tmp_path / "plot.xyz")
    assert not (tmp_path / "plot.xyz").exists()


def _result(name, ap, **classes):
    figures = {"AP": ap, "AP50": ap + 10, "APl": math.nan, **{f"AP-{key}": value for key, value in classes.items()}}
    return EvaluationResult(name, {"bbox": figures, "segm": {**figures, "AP": ap - 5}}, dataset="pets")


def test_comparison_of_detectors(tmp_path):
    results = [_result("a", 30.0, cat=40.0, dog=20.0, emu=math.nan), _result("b", 35.0, cat=50.0, yak=5.0)]
    figure = plot_comparison(results, tmp_path / "comparison.png")
    boxes, masks, box_classes, _ = figure.axes
    assert [[bar.get_height() for bar in bars][:2] for bars in boxes.containers] == [[30.0, 40.0], [35.0, 45.0]]
    assert [bars[0].get_height() for bars in masks.containers] == [25.0, 30.0]
    assert [label.get_text() for label in box_classes.get_yticklabels()] == ["cat", "dog", "yak"]
    first, second = (line.get_xdata() for line in box_classes.lines)
    assert np.array_equal(first, [40.0, 20.0, np.nan], equal_nan=True)
    assert np.array_equal(second, [50.0, np.nan, 5.0], equal_nan=True)
    check_picture(tmp_path / "comparison.png", figure)


def test_comparison_without_classes_and_of_lifts(tmp_path):
    figure = plot_comparison([_result("a", 30.0), _result("b", 35.0)], tmp_path / "comparison.png")
    assert len(figure.axes) == 2
    lifts = [EvaluationResult(n, {"cosine_2x": {"bilinear": 0.8, "lift": v}}) for n, v in (("a", 0.9), ("b", 0.95))]
    figure = plot_comparison(lifts, tmp_path / "comparison.png")
    (axes,) = figure.axes
    assert [bars[1].get_height() for bars in axes.containers] == pytest.approx([0.1, 0.05])
    check_picture(tmp_path / "comparison.png", figure)
    with pytest.raises(ValueError, match="detectors, or of LiFTs"):
        plot_comparison([lifts[0], _result("c", 1.0)], tmp_path / "other.png")


def test_errors_of_reconstruction(tmp_path):
    errors = {"bilinear": [0.2, 0.3], "LiFT": [0.1, math.nan]}
    figure = plot_reconstruction(errors, ["2x", "4x"], tmp_path / "reconstruction.png")
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert np.array_equal(heights, list(errors.values()), equal_nan=True)
    assert [text.get_text() for text in axes.texts] == ["0.200", "0.300", "0.100", ""]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2x", "4x"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bilinear", "LiFT"]
    check_picture(tmp_path / "reconstruction.png", figure)
