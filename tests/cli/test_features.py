"""`lift-det features` on files of many kinds."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lift_det.cli import main
from lift_det.modeling import LiFT


@pytest.fixture
def photo(inputs, tmp_path):
    (tmp_path / "photos").mkdir()
    return Path(shutil.copy(inputs / "photo.png", tmp_path / "photos"))


def run(*arguments, vit=None):
    named = ["--backbone", vit / "vit.pth", "--architecture", "vit_tiny_patch16_224"] if vit else []
    return main(["features", *map(str, (*arguments, *named)), "--device", "cpu"])


def test_files_that_cannot_be_read_are_listed(inputs, photo, tmp_path, capsys):
    (photo.parent / "broken.jpg").write_text("no image")
    cv2.imwrite(str(photo.with_suffix(".jpg")), np.zeros((20, 10, 3), np.uint8))  # the point is outside
    arguments = [
        "--lift",
        inputs / "token.safetensors",
        "--point",
        "80,50",
        "--size",
        "64",
        "--output",
        tmp_path / "out",
    ]
    assert run(photo.parent, tmp_path / "absent.jpg", *arguments, vit=inputs) == 1
    errors = capsys.readouterr().err
    assert all(name in errors for name in ("broken.jpg", "absent.jpg", "photo.jpg", "10×20"))
    # photo.jpg and photo.png keep their suffixes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo.png.npz", "photo.png.png"]
    with np.load(tmp_path / "out" / "photo.png.npz") as arrays:
        assert arrays["image"].shape == (64, 64, 3) and arrays["original_size"].tolist() == [60, 90]
        assert arrays["vit"].shape == (192, 2, 2) and arrays["similarity_lift"].shape == (4, 4)
        np.testing.assert_allclose(arrays["lift"], arrays["bilinear"], atol=1e-5)  # untrained
        assert arrays["similarity_true"][3, 3] == pytest.approx(1)


def test_layer_and_facet(inputs, photo, tmp_path):
    def maps(*arguments):
        assert run(photo, *arguments, "--size", "96", "--output", tmp_path, vit=inputs) == 0
        with np.load(tmp_path / "photo.npz") as arrays:
            return dict(arrays)

    first = maps("--facet", "key", "--layer", "0", "--upsample", "2")
    assert set(first) == {"vit", "bilinear", "true", "image", "original_size"}
    assert first["true"].shape == (192, 4, 8) and first["vit"].shape == (192, 1, 2)
    last = maps("--lift", inputs / "key.safetensors", "--layer", "11")  # by default those of the LiFT
    assert last["lift"].shape == first["true"].shape and not np.allclose(last["true"], first["true"])


def test_a_lift_of_the_papers_authors(inputs, photo, tmp_path, capsys):
    torch.save(dict(LiFT(192, 16, residual=False).state_dict()), tmp_path / "lift.pth")
    arguments = ["--lift", tmp_path / "lift.pth", "--size", "64", "--output", tmp_path / "out"]
    assert run(photo, *arguments, vit=inputs) == 1
    assert "patch_size" in capsys.readouterr().err
    assert run(photo, *arguments, "--paper-patch-size", 16, vit=inputs) == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["lift"].shape == arrays["true"].shape


def test_of_a_trained_detector(photo, detector_folder, tmp_path):
    assert run(photo, "--from", detector_folder, "--size", "64", "--output", tmp_path / "out") == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["lift"].shape == arrays["true"].shape == (32, 6, 10)
