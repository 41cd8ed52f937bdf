"""A whole detector as ONNX: what it finds, number for number, on images in which it finds more or less."""

import pytest
import torch

from lift_det.engine import load_model, read_output_folder
from lift_det.export import DetectorModule, export_detector
from tests.engine.tiny_detector import IMAGE_SIZE, tiny_config, write_output_folder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    cfg = tiny_config()
    cfg.model.roi_heads.box_predictor.test_score_thresh = 0.6
    folder = write_output_folder(tmp_path_factory.mktemp("detector") / "output", cfg)
    return DetectorModule(load_model(*read_output_folder(folder), "cpu"))


def test_finds_what_the_detector_finds(module, tmp_path):
    torch.manual_seed(1)
    scales = (0, 40, 120, 255)  # of the contrast
    images = [torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE) * scale for scale in scales]
    with torch.no_grad():
        expected = [module(image) for image in images]
    assert len({len(boxes) for boxes, *_ in expected}) > 1, "all alike: the numbers could be constants"
    path = tmp_path / "detector.onnx"
    results = export_detector(module, path, images)
    assert len(results) == 4 and max(result.absolute for result in results) < 1e-3  # boxes in pixels

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["boxes", "scores", "classes", "masks"]
    image = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE) * 200
    given = [torch.from_numpy(x) for x in session.run(None, {"images": image.numpy()})]
    with torch.no_grad():
        found = module(image)
    assert given[3].shape[1:] == (1, 28, 28)
    for a, b in zip(given, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (facts["kind"], facts["classes"], facts["size"]) == ("detector", "4", "64 x 64 pixels")


def test_images_in_which_nothing_could_be_compared(module, tmp_path):
    module.detector.roi_heads.box_predictor.test_score_thresh, before = (
        2.0,
        module.detector.roi_heads.box_predictor.test_score_thresh,
    )
    with pytest.raises(ValueError, match="finds nothing in these images"):
        export_detector(module, tmp_path / "x.onnx", [torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)])
    module.detector.roi_heads.box_predictor.test_score_thresh = before
    with pytest.raises(ValueError, match="of one size"):
        export_detector(module, tmp_path / "x.onnx", [torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 64)])
    with pytest.raises(ValueError, match="not a Linear"):
        DetectorModule(torch.nn.Linear(1, 1))
