"""A whole detector as ONNX."""

import pytest
import torch

from lift_det.engine import load_model, read_output_folder
from lift_det.export import export_detector
from tests.engine.tiny_detector import IMAGE_SIZE, tiny_config, write_output_folder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    cfg = tiny_config()
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.6
    folder = write_output_folder(tmp_path_factory.mktemp("detector") / "output", cfg)
    return load_model(*read_output_folder(folder), "cpu")


def detect(detector, image):
    """detectron2's own inference on an RGB image (1, 3, H, W), before masks are pasted."""
    image = image[0] if detector.input_format == "RGB" else image[0].flip(0)
    with torch.no_grad():
        (found,) = detector.inference([{"image": image}], do_postprocess=False)
    return found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks


def test_finds_what_the_detector_finds(detector, tmp_path):
    torch.manual_seed(1)
    images = [torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE) * contrast for contrast in (0, 40, 120, 255)]
    assert len({len(detect(detector, image)[0]) for image in images}) > 1, "the number of objects could be a constant"
    path = tmp_path / "detector.onnx"
    results = export_detector(detector, path, images)
    assert len(results) == 4 and max(result.absolute for result in results) < 1e-3  # boxes in pixels

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE) * 200
    outputs = session.run(["boxes", "scores", "classes", "masks"], {"images": image.numpy()})
    for output, expected in zip(outputs, detect(detector, image), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-3, rtol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (metadata["kind"], metadata["classes"], metadata["size"]) == ("detector", "4", "64 x 64 pixels")


def test_what_cannot_be_exported(detector, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="32, 64"):
        export_detector(detector, tmp_path / "x.onnx", [torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 64)])
    with pytest.raises(ValueError, match="Linear"):
        export_detector(torch.nn.Linear(1, 1), tmp_path / "x.onnx", [torch.zeros(1, 3, 64, 64)])
    monkeypatch.setattr(detector.roi_heads.box_predictor, "test_score_thresh", 2.0)
    with pytest.raises(ValueError, match="nothing"):
        export_detector(detector, tmp_path / "x.onnx", [torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)])
