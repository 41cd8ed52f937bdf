"""ONNX files and torch.export programs of tiny models, compared with torch."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from lift_det import BilinearUpsample, FeatureExtractor, __version__
from lift_det.export import (
    BackboneModule,
    ExportError,
    FeaturesModule,
    LiFTModule,
    export_onnx,
    export_program,
    trace,
)
from lift_det.layers import rel_pos_attention
from lift_det.modeling import GeneralizedRCNN
from tests.export.tiny_models import extractor, lift, pyramid, timm_vit, vit

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)

FRESH_PROCESS = """
import sys
sys.modules["lift_det"] = sys.modules["detectron2"] = sys.modules["timm"] = None  # importing them raises
import torch
program = torch.export.load(sys.argv[1]).module()
images, levels = torch.load(sys.argv[2])
for name, level in program(images).items():
    assert (level - levels[name]).abs().max() < 1e-4, name
"""


def test_vit_and_lift_as_onnx(tmp_path):
    """Positions as they are, enlarged and reduced; a rectangle and a batch."""
    net, path = extractor(), tmp_path / "features.onnx"
    results = export_onnx(FeaturesModule(net), path, [(56, 56), (84, 140), (42, 28)])
    assert [result.shape for result in results] == [(1, 3, 56, 56), (2, 3, 84, 140), (1, 3, 42, 28)]
    assert max(result.absolute for result in results) < 1e-4

    # independent of the exporter's own comparison
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = torch.rand(3, 3, 98, 70) * 255
    (features,) = session.run(["features"], {"images": images.numpy()})
    with torch.no_grad():
        expected = net(net.normalize(images))["last_feat"]
    torch.testing.assert_close(torch.from_numpy(features), expected, atol=1e-4, rtol=0)

    model = onnx.load(path)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert (metadata["lift_det_version"], metadata["kind"], metadata["steps"]) == (__version__, "features", "1")
    assert (metadata["patch_size"], metadata["lift.patch_size"], metadata["channels"]) == ("14", "14", "192")
    assert metadata["pixel_mean"] == "127.5 127.5 127.5" and "14 pixels from 28" in metadata["size"]


def test_windows_and_relative_positions_as_onnx_and_bgr(tmp_path):
    statistics = {"pixel_mean": (10.0, 20.0, 30.0), "pixel_std": (50.0, 60.0, 70.0)}
    net = FeatureExtractor(vit(), **statistics, input_format="BGR").eval()
    module = FeaturesModule(net)
    results = export_onnx(module, tmp_path / "x.onnx", [(48, 32)])
    assert len({result.shape[2:] for result in results}) == 3 and max(result.absolute for result in results) < 1e-4
    assert not {node.domain for node in onnx.load(tmp_path / "x.onnx").graph.node} - {"", "ai.onnx"}
    images = torch.rand(1, 3, 32, 48) * 255
    with torch.no_grad():
        torch.testing.assert_close(module(images), net(net.normalize(images))["last_feat"])


def test_backbone_program_runs_without_lift_det(tmp_path):
    """With patches of 14 pixels at 7/16, so that LiFT resizes the image twice."""
    module = BackboneModule(pyramid(timm_vit(14), 7 / 16), MEAN, STD, "RGB")
    path = tmp_path / "backbone.pt2"
    results = export_program(module, path, [(256, 192)])
    assert len({result.shape[2:] for result in results}) == 3 and max(result.absolute for result in results) < 1e-4
    extra = {"lift_det.json": ""}
    torch.export.load(path, extra_files=extra)
    metadata = json.loads(extra["lift_det.json"])
    assert (metadata["kind"], metadata["input_scale"], metadata["square_pad"]) == ("backbone", "0.4375", "0")

    images = torch.rand(3, 3, 128, 192) * 255
    with torch.no_grad():
        torch.save((images, module(images)), tmp_path / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS, str(path), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_backbone_normalizes_as_the_detector_does(monkeypatch):
    """RGB in, for a detector that takes BGR; padding with the mean is the detector's padding."""
    detector = torch.nn.Module()
    detector.backbone, detector.input_format = pyramid(timm_vit(16)), "BGR"
    detector.pixel_mean, detector.pixel_std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    detector._move_to_current_device = lambda x: x
    bgr = torch.rand(3, 64, 50) * 255
    images = GeneralizedRCNN.preprocess_image(detector, [{"image": bgr}])
    module = BackboneModule.of_detector(detector)
    mean = torch.tensor([float(x) for x in module.metadata["pixel_mean"].split()]).view(3, 1, 1)
    padded = mean.repeat(1, 64, 64)
    padded[:, :, :50] = bgr.flip(0)
    with torch.no_grad():
        expected, levels = detector.backbone(images.tensor), module(padded[None])
    assert images.tensor.shape[-1] == 64
    for name, level in expected.items():
        torch.testing.assert_close(levels[name], level, atol=1e-4, rtol=0)


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_file_that_differs_is_not_kept(export, tmp_path):
    path = tmp_path / "lift"
    path.write_text("earlier")
    with pytest.raises(ExportError, match="32×32"):
        export(LiFTModule(lift(8, 8)), path, [(32, 32)], dynamic=False, tolerance=-1.0)
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("size", "dynamic"), [((56, 60), True), ((14, 56), True), ((28, 28), False)])
def test_sizes_that_are_not_supported(tmp_path, size, dynamic):
    with pytest.raises(ValueError, match=f"{size[0]}(×|, ){size[1]}"):
        export_program(FeaturesModule(extractor()), tmp_path / "x.pt2", [(56, 56), size], dynamic=dynamic)


def test_models_for_one_size(tmp_path):
    """A detector that pads to a square."""
    module = BackboneModule(pyramid(timm_vit(16), square_pad=96), MEAN, STD)
    assert module.default_size() == (96, 96) and module.metadata["square_pad"] == "96"
    with pytest.raises(ExportError, match="square_pad=96.*--fixed"):
        export_program(module, tmp_path / "y.pt2", [(96, 96)])


def test_operators_of_lift_det_are_not_exported():
    class Attending(LiFTModule):
        def forward(self, images, features):
            q = features.flatten(2).transpose(1, 2)[:, None]
            return rel_pos_attention(q, q, q, torch.zeros(7, 8), torch.zeros(7, 8), (4, 4), (4, 4), 1.0)

    with pytest.raises(ExportError, match="lift_det.rel_pos_attention"):
        trace(Attending(lift(8, 8)), (32, 32))


def test_models_and_environments_that_cannot_export(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="Linear"):
        BackboneModule.of_detector(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="pixel_mean"):
        FeaturesModule(FeatureExtractor(vit()))
    with pytest.raises(ValueError, match="BilinearUpsample"):
        LiFTModule(BilinearUpsample())
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match=r"onnxscript.*lift_det\[export\]"):
        export_onnx(LiFTModule(lift(8, 8)), tmp_path / "x.onnx", [(32, 32)])
