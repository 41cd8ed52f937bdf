"""ONNX files of tiny models, in onnxruntime beside torch."""

import importlib.util

import pytest
import torch

from lift_det import FeatureExtractor, TimmViT, __version__
from lift_det.export import BackboneModule, ExportError, FeaturesModule, LiFTModule, export_onnx
from lift_det.modeling import GeneralizedRCNN
from tests.export.tiny_models import extractor, lift, pyramid, timm_vit, vit

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def _sides(value):
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def test_vit_and_lift_equal_torch_on_three_sizes_in_one_file(tmp_path):
    """Sizes where positions are as they are, enlarged and reduced; a rectangle and a batch."""
    module = FeaturesModule(extractor())
    path = tmp_path / "features.onnx"
    sizes = [(56, 56), (84, 140), (42, 28)]
    results = export_onnx(module, path, sizes)
    assert [result.shape[2:] for result in results] == sizes and results[1].shape[0] == 2
    assert max(result.absolute for result in results) < 1e-4

    # not by the exporter's own eyes alone
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.rand(3, 3, 98, 70) * 255
    (given,) = session.run(None, {"images": images.numpy()})
    net = module.extractor
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (net.pixel_mean, net.pixel_std))
    with torch.no_grad():
        expected = net((images - mean) / std)["last_feat"]
    assert given.shape == (3, 192, 14, 10)
    assert (torch.from_numpy(given) - expected).abs().max() < 1e-4

    model = onnx.load(path)
    (entry,), (result,) = model.graph.input, model.graph.output
    assert entry.name == "images" and result.name == "features" and _sides(entry)[1] == 3
    assert all(isinstance(_sides(entry)[i], str) for i in (0, 2, 3))
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["lift_det_version"] == __version__ and facts["opset"] == "18" and facts["kind"] == "features"
    assert (facts["patch_size"], facts["channels"], facts["steps"]) == ("14", "192", "1")
    assert facts["pixel_mean"] == "127.5 127.5 127.5" and "multiples of 14 pixels" in facts["size"]
    assert (facts["lift.network"], facts["lift.pool"]) == ("trunk", "3")


@pytest.mark.slow
def test_fast_backbone_with_windows_equals_torch_on_three_sizes_in_one_file(tmp_path):
    module = BackboneModule(pyramid(vit(), input_scale=0.5), MEAN, STD)
    results = export_onnx(module, tmp_path / "backbone.onnx", [(96, 64)])
    assert len({result.shape[2:] for result in results}) == 3
    assert max(result.absolute for result in results) < 1e-4
    model = onnx.load(tmp_path / "backbone.onnx")
    assert [value.name for value in model.graph.output] == ["p3", "p4", "p5"]
    assert not {node.domain for node in model.graph.node} - {"", "ai.onnx"}


def test_what_does_not_agree_is_not_kept(tmp_path):
    path = tmp_path / "lift.onnx"
    path.write_text("what was there")
    with pytest.raises(ExportError, match="was not kept:\n.*pixels: largest difference"):
        export_onnx(LiFTModule(lift(8, 8)), path, [(32, 32)], dynamic=False, tolerance=0.0)
    assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("sizes", "dynamic", "message"),
    [
        ([(56, 60)], True, "multiples of 14 from 28"),
        ([(14, 56)], True, "multiples of 14 from 28"),
        ([(56, 56), (28, 28)], False, "fixed size has one, not 2"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, sizes, dynamic, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(FeaturesModule(extractor()), tmp_path / "x.onnx", sizes, dynamic=dynamic)


def test_a_square_pad_is_the_largest_size(tmp_path):
    module = BackboneModule(pyramid(vit(), square_pad=96), MEAN, STD)
    assert module.usual_size() == (96, 96) and module.facts["square_pad"] == "96"
    with pytest.raises(ValueError, match="to 96"):
        module.check_size((128, 96), dynamic=True)


def test_backbone_normalises_as_the_detector_does():
    """RGB in, whatever the detector reads; padded with the mean, it is what the detector pads with."""
    detector = torch.nn.Module()
    detector.backbone = pyramid(timm_vit(16))
    detector.input_format = "BGR"
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    detector.pixel_mean, detector.pixel_std, detector.device = mean, std, torch.device("cpu")
    bgr = torch.rand(3, 64, 50) * 255
    images = GeneralizedRCNN.preprocess_image(_Preprocess(detector), [{"image": bgr}])
    module = BackboneModule.of_detector(detector)
    padded = torch.tensor([float(x) for x in module.facts["pixel_mean"].split()]).view(3, 1, 1).repeat(1, 64, 64)
    padded[:, :, :50] = bgr.flip(0)
    with torch.no_grad():
        expected, given = detector.backbone(images.tensor), module(padded[None])
    assert images.tensor.shape[-1] == 64 and (images.tensor[..., 50:] == 0).all()
    for name, level in expected.items():
        torch.testing.assert_close(given[name], level, atol=1e-4, rtol=0)


class _Preprocess:
    """What GeneralizedRCNN.preprocess_image reads of a detector."""

    def __init__(self, detector):
        self.backbone, self.pixel_mean, self.pixel_std = detector.backbone, detector.pixel_mean, detector.pixel_std

    def _move_to_current_device(self, x):
        return x


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="LiFTFeaturePyramid over a lift_det.ViT"):
        BackboneModule.of_detector(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="pixel_mean and pixel_std"):
        FeaturesModule(FeatureExtractor(vit()))


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match=r'onnxscript, which is not installed: pip install "lift_det\[export\]"'):
        export_onnx(LiFTModule(lift(8, 8)), tmp_path / "x.onnx", [(32, 32)])


@pytest.mark.slow
def test_real_vit_and_lift_equal_torch_on_three_sizes(shared, tmp_path):
    net = TimmViT(
        "vit_small_patch14_dinov2.lvd142m", checkpoint=shared / "weights" / "vit_small_patch14_fp16.safetensors"
    )
    module = FeaturesModule(FeatureExtractor(net, lift(384, 14)).eval())
    results = export_onnx(module, tmp_path / "features.onnx", [(224, 224), (336, 448), (518, 518)])
    assert max(result.absolute for result in results) < 1e-4, results
