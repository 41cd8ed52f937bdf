"""`lift-det features` on files of many kinds."""

import cv2
import numpy as np
import pytest
import torch

from lift_det import FeatureExtractor
from lift_det.cli import main
from lift_det.modeling import LiFT, find_vit, save_lift


@pytest.fixture(scope="module")
def vit(vit_file):
    """A folder with a ViT's weights and two LiFTs for its features."""
    net = find_vit(str(vit_file), "vit_tiny_patch16_224").build()
    for facet in ("token", "key"):
        spec = FeatureExtractor(net, facet=facet).feature_spec()
        save_lift(LiFT(192, 16), vit_file.parent / f"{facet}.safetensors", spec.to_metadata())
    return vit_file.parent


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    return path


def run(*arguments, vit=None):
    named = ["--backbone", vit / "vit.pth", "--architecture", "vit_tiny_patch16_224"] if vit else []
    return main(["features", *map(str, (*arguments, *named)), "--device", "cpu"])


def test_files_that_cannot_be_read_are_listed(vit, photo, tmp_path, capsys):
    (photo.parent / "broken.jpg").write_text("no image")
    cv2.imwrite(str(photo.with_suffix(".jpg")), np.zeros((20, 10, 3), np.uint8))  # the point is outside
    arguments = ["--lift", vit / "token.safetensors", "--point", "80,50", "--size", "64", "--output", tmp_path / "out"]
    assert run(photo.parent, tmp_path / "absent.jpg", *arguments, vit=vit) == 1
    errors = capsys.readouterr().err
    assert all(name in errors for name in ("broken.jpg", "absent.jpg", "photo.jpg", "10×20"))
    # photo.jpg and photo.png keep their suffixes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo.png.npz", "photo.png.png"]
    with np.load(tmp_path / "out" / "photo.png.npz") as arrays:
        assert arrays["image"].shape == (64, 64, 3) and arrays["original_size"].tolist() == [60, 90]
        assert arrays["vit"].shape == (192, 2, 2) and arrays["similarity_lift"].shape == (4, 4)
        np.testing.assert_allclose(arrays["lift"], arrays["bilinear"], atol=1e-5)  # untrained
        assert arrays["similarity_true"][3, 3] == pytest.approx(1)


def test_layer_and_facet(vit, photo, tmp_path):
    def maps(*arguments):
        assert run(photo, *arguments, "--size", "96", "--output", tmp_path, vit=vit) == 0
        with np.load(tmp_path / "photo.npz") as arrays:
            return dict(arrays)

    first = maps("--facet", "key", "--layer", "0", "--upsample", "2")
    assert set(first) == {"vit", "bilinear", "true", "image", "original_size"}
    assert first["true"].shape == (192, 4, 8) and first["vit"].shape == (192, 1, 2)
    last = maps("--lift", vit / "key.safetensors", "--layer", "11")  # by default those of the LiFT
    assert last["lift"].shape == first["true"].shape and not np.allclose(last["true"], first["true"])
    assert run(photo, "--lift", vit / "key.safetensors", "--layer", "0", "--output", tmp_path, vit=vit) == 1


def test_a_lift_of_the_papers_authors(vit, photo, tmp_path, capsys):
    torch.save(dict(LiFT(192, 16, residual=False).state_dict()), tmp_path / "lift.pth")
    arguments = ["--lift", tmp_path / "lift.pth", "--size", "64", "--output", tmp_path / "out"]
    assert run(photo, *arguments, vit=vit) == 1
    assert "patch_size" in capsys.readouterr().err
    assert run(photo, *arguments, "--paper-patch-size", 16, vit=vit) == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["lift"].shape == arrays["true"].shape


def test_an_image_is_not_overwritten(vit, photo, capsys):
    before = photo.read_bytes()
    assert run(photo, "--size", "64", "--output", photo.parent, vit=vit) == 1
    assert "--output" in capsys.readouterr().err
    assert photo.read_bytes() == before and list(photo.parent.iterdir()) == [photo]


def test_of_a_trained_detector(photo, detector_folder, tmp_path):
    assert run(photo, "--from", detector_folder, "--size", "64", "--output", tmp_path / "out") == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["lift"].shape == arrays["true"].shape == (32, 6, 10)


@pytest.mark.parametrize(
    ("arguments", "with_vit", "code", "part"),
    [
        ([], False, 2, "--backbone"),
        (["--from", "FOLDER"], True, 2, "--from"),
        (["--from", "FOLDER", "--layer", "0"], False, 2, "--layer"),
        (["model.x=1"], True, 2, "--from"),
        (["--point", "12"], True, 2, "'12'"),
        (["--upsample", "0"], True, 2, "--upsample"),
        (["--from", "FOLDER"], False, 1, "config.yaml"),
        (["--lift", "LIFT", "--facet", "token"], True, 1, "facet"),
    ],
)
def test_wrong_commands(vit, photo, tmp_path, capsys, arguments, with_vit, code, part):
    places = {"FOLDER": tmp_path, "LIFT": vit / "key.safetensors"}
    arguments = [places.get(argument, argument) for argument in arguments]
    assert run(photo, *arguments, "--output", tmp_path / "out", vit=vit if with_vit else None) == code
    assert part in capsys.readouterr().err and not (tmp_path / "out").exists()
