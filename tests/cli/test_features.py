"""`lift-det features` on files as they come."""

import cv2
import matplotlib.backends.backend_agg
import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from detectron2.config import LazyConfig
from matplotlib.backend_bases import MouseButton, MouseEvent

from lift_det import FeatureExtractor, model_zoo
from lift_det.cli import main
from lift_det.engine.trained_model import build_without_weights
from lift_det.modeling import LiFT, find_vit, save_lift

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small ViT's file, and a LiFT for its features."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), folder / "vit.pth")
    net = find_vit(str(folder / "vit.pth"), "vit_tiny_patch16_224").build()
    save_lift(LiFT(192, 16), folder / "lift.safetensors", FeatureExtractor(net).feature_spec().to_metadata())
    save_lift(
        LiFT(192, 16), folder / "keys.safetensors", FeatureExtractor(net, facet="key").feature_spec().to_metadata()
    )
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "photo.png"
    path.parent.mkdir()
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    return path


def _run(*arguments, vit=None):
    named = ["--backbone", vit / "vit.pth", "--architecture", "vit_tiny_patch16_224"] if vit else []
    return main(["features", *map(str, (*arguments, *named)), "--device", "cpu"])


def test_draws_what_can_be_read_and_names_the_rest(vit, photo, tmp_path, capsys):
    (photo.parent / "broken.jpg").write_text("no image")
    cv2.imwrite(str(photo.with_suffix(".jpg")), np.zeros((20, 10, 3), np.uint8))
    arguments = ["--lift", vit / "lift.safetensors", "--point", "80,50", "--size", "64", "--output", tmp_path / "out"]
    assert _run(photo.parent, tmp_path / "absent.jpg", *arguments, vit=vit) == 1
    printed = capsys.readouterr()
    assert "1 done" in printed.out and "3 could not be" in printed.out
    for part in (
        "broken.jpg: ",
        "absent.jpg: there is no such file",
        "outside the image of 10×20",
    ):
        assert part in printed.err
    # photo.jpg and photo.png do not take each other's place
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["photo.png.npz", "photo.png.png"]
    with np.load(tmp_path / "out" / "photo.png.npz") as arrays:
        assert arrays["image"].shape == (64, 64, 3) and arrays["original_size"].tolist() == [60, 90]
        assert arrays["vit"].shape == (192, 2, 2) and arrays["similarity_lift"].shape == (4, 4)
        np.testing.assert_allclose(arrays["lift"], arrays["bilinear"], atol=1e-5)  # untrained
        assert arrays["similarity_true"][3, 3] == pytest.approx(1)


def test_without_a_lift_and_of_another_facet(vit, photo, tmp_path):
    arguments = ["--facet", "key", "--layer", "0", "--size", "96", "--steps", "2", "--output", tmp_path]
    assert _run(photo, *arguments, vit=vit) == 0
    with np.load(tmp_path / "photo.npz") as arrays:
        assert set(arrays) == {"vit", "bilinear", "true", "image", "original_size"}
        assert arrays["true"].shape == (192, 4, 8) and arrays["vit"].shape == (192, 1, 2)


def test_a_lift_of_the_papers_authors(vit, photo, tmp_path, capsys):
    torch.save(dict(LiFT(192, 16, residual=False).state_dict()), tmp_path / "lift.pth")
    arguments = ["--lift", tmp_path / "lift.pth", "--size", "64", "--output", tmp_path / "out"]
    assert _run(photo, *arguments, vit=vit) == 1
    assert "does not say patch_size and residual" in capsys.readouterr().err
    assert _run(photo, *arguments, "--paper-patch-size", 16, vit=vit) == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["lift"].shape == arrays["true"].shape


def test_an_image_is_not_overwritten(vit, photo, capsys):
    before = photo.read_bytes()
    assert _run(photo, "--size", "64", "--output", photo.parent, vit=vit) == 1
    assert "name another --output" in capsys.readouterr().err
    assert photo.read_bytes() == before and list(photo.parent.iterdir()) == [photo]


def test_of_a_trained_detector(photo, tmp_path):
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.py")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    torch.save({"model": build_without_weights(cfg).state_dict()}, tmp_path / "model_final.pth")
    assert _run(photo, "--from", tmp_path, "--size", "64", "--output", tmp_path / "out") == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["lift"].shape == arrays["true"].shape == (128, 6, 10)


def test_explains_what_is_wrong(vit, photo, tmp_path, capsys):
    def error(code, *arguments, **named):
        assert _run(photo, *arguments, "--output", tmp_path / "out", **named) == code
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "name one ViT" in error(2)
    assert "name one ViT" in error(2, "--from", tmp_path, vit=vit)
    assert "belong to --backbone" in error(2, "--from", tmp_path, "--layer", 0)
    assert "belong to --from" in error(2, "model.x=1", vit=vit)
    assert "expected X,Y" in error(2, "--point", "12", vit=vit)
    assert "have to be positive" in error(2, "--steps", 0, vit=vit)
    assert "config.yaml" in error(1, "--from", tmp_path)
    assert "facet: trained with 'key', given 'token'" in error(1, "--lift", vit / "keys.safetensors", vit=vit)


def test_a_click_needs_a_window(vit, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plt, "_backend_mod", None)
    plt.switch_backend("agg")
    arguments = ["--click", "--size", "64", "--output", tmp_path / "out"]
    assert _run(photo, *arguments, vit=vit) == 2
    assert "--point X,Y" in capsys.readouterr().err

    # as if agg had one: the click comes while matplotlib waits for it
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg

    def click(self):
        x, y = self.figure.axes[0].transData.transform((12.7, 34.2))
        for name in ("button_press_event", "button_release_event"):
            self.callbacks.process(name, MouseEvent(name, self, x, y, MouseButton.LEFT))

    monkeypatch.setattr(canvas, "required_interactive_framework", "test")
    monkeypatch.setattr(canvas, "flush_events", click)
    assert _run(photo, *arguments, vit=vit) == 0
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        assert arrays["point"].tolist() == [12, 34]
    assert plt.get_fignums() == []
