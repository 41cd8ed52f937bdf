"""Curves of trainings, checked in the figure's lines and in the written picture."""

import json
import math

import cv2
import numpy as np
import pytest

from lift_det.visualization import plot_training


def write(folder, lines):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def write_training(folder, evaluations=(), **more):
    """A training whose losses are its iterations."""
    lines = [{"iteration": i, "total_loss": 2.0 * i, "lr": 0.1, **more} for i in range(9, 500, 10)]
    lines += [{"iteration": i, "bbox/AP": 20.0 + i, "segm/AP": 10.0 + i} for i in evaluations]
    return write(folder, lines)


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_one_training(tmp_path):
    folder = write_training(tmp_path / "run", evaluations=(100, 300, 500), loss_cls=1.0)
    figure = plot_training([folder], tmp_path / "new" / "plot.png")
    axes = panels(figure)
    assert list(axes) == ["total_loss", "loss_cls", "AP, boxes", "AP, masks", "learning rate"]
    faint, smooth = axes["total_loss"].lines
    assert faint.get_xydata().tolist() == [[i, 2.0 * i] for i in range(9, 500, 10)]
    # a straight line stays one, except at its ends
    assert np.allclose(smooth.get_ydata()[3:-3], faint.get_ydata()[3:-3])
    (boxes,) = axes["AP, boxes"].lines
    assert boxes.get_xydata().tolist() == [[100, 120], [300, 320], [500, 520]]
    picture = cv2.imread(str(tmp_path / "new" / "plot.png"))
    assert (np.ptp(picture.astype(int), axis=2) > 60).sum() > 1000  # coloured


def test_several_trainings_share_panels_and_differ_in_colour(tmp_path):
    folders = [write_training(tmp_path / name) for name in "abc"]
    write_training(folders[2], evaluations=(50,), loss_extra=1.0)
    figure = plot_training(folders, tmp_path / "plot.png")
    axes = panels(figure)
    colours = [line.get_color() for line in axes["total_loss"].lines]
    assert len(set(colours)) == 3
    for title in ("loss_extra", "AP, boxes"):
        assert {line.get_color() for line in axes[title].lines if len(line.get_xdata())} == {colours[-1]}, title
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]


def test_a_single_line_or_nothing_to_draw_and_other_formats(tmp_path):
    folder = write(tmp_path, [{"iteration": 9, "total_loss": math.nan}])
    assert list(panels(plot_training([folder], tmp_path / "plot.svg"))) == ["total_loss"]
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    with pytest.raises(ValueError, match="xyz"):
        plot_training([folder], tmp_path / "plot.xyz")
    with pytest.raises(ValueError, match=tmp_path.name):
        plot_training([write(tmp_path, [{"iteration": 9, "time": 1.0}])], tmp_path / "plot.png")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "plot.svg"}


def test_training_of_a_lift(tmp_path):
    lines = [{"iteration": i, "total_loss": 1.0} for i in (9, 19)]
    lines += [{"iteration": i, "cosine_2x/bilinear": 0.8, "cosine_2x/lift": 0.9} for i in (10, 20)]
    figure = plot_training([write(tmp_path, lines)], tmp_path / "plot.png")
    assert [title.split()[0] for title in panels(figure)] == ["total_loss", "cosine_2x"]
    curves = [(line.get_ydata().tolist(), line.get_linestyle()) for line in figure.axes[1].lines]
    assert curves == [([0.9, 0.9], "-"), ([0.8, 0.8], "--")]
