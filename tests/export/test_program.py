"""Programs of torch.export, which load where lift_det is not."""

import json
import subprocess
import sys

import pytest
import torch

from lift_det import FeatureExtractor
from lift_det.export import BackboneModule, ExportError, FeaturesModule, LiFTModule, export_program, program, trace
from lift_det.layers import rel_pos_attention
from tests.export.tiny_models import lift, pyramid, timm_vit, vit

pytestmark = pytest.mark.usefixtures("one_thread")

_FRESH_PROCESS = """
import sys
sys.modules["lift_det"] = sys.modules["detectron2"] = sys.modules["timm"] = None  # importing them raises
import torch
program = torch.export.load(sys.argv[1]).module()
for images, levels in torch.load(sys.argv[2]):
    for name, level in program(images).items():
        difference = (level - levels[name]).abs().max()
        assert difference < 1e-4, (images.shape, name, difference)
"""


def test_backbone_of_any_size_runs_without_lift_det(tmp_path):
    """The ViT's attention has an operator of lift_det's own, which is not to be in the file."""
    module = BackboneModule(pyramid(vit(window_size=0)), (0.0, 0.0, 0.0), (255.0, 255.0, 255.0), "RGB")
    path = tmp_path / "backbone.pt2"
    results = export_program(module, path, [(64, 96)])
    assert len({result.shape[2:] for result in results}) == 3 and max(r.absolute for r in results) < 1e-4
    extra = {"lift_det.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["lift_det.json"])["kind"] == "backbone"

    with torch.no_grad():
        batches = [(x, module(x)) for x in (torch.rand(n, 3, h, w) for n, h, w in [(1, 64, 64), (3, 96, 160)])]
    torch.save(batches, tmp_path / "expected.pt")
    command = [sys.executable, "-W", "ignore", "-c", _FRESH_PROCESS, path, tmp_path / "expected.pt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_operators_of_other_packages_are_refused():
    class Attending(LiFTModule):
        def forward(self, images, features):
            q = features.flatten(2).transpose(1, 2)[:, None]
            return rel_pos_attention(q, q, q, torch.zeros(7, 8), torch.zeros(7, 8), (4, 4), (4, 4), 1.0)

    with pytest.raises(ExportError, match="only their own package can run: lift_det.rel_pos_attention_blocked"):
        trace(Attending(lift(8, 8)), (32, 32))


def test_a_program_says_which_sizes_it_refuses(tmp_path):
    module = LiFTModule(lift(8, 8))
    path = tmp_path / "lift.pt2"
    (one, two) = export_program(module, path, [(32, 24)], dynamic=False)
    assert one.absolute < 1e-5 and two.absolute < 1e-5
    other = module.inputs(1, (32, 32), torch.Generator())
    with pytest.raises(ExportError, match="does not take images of 32×32 pixels"):
        program.check_program(path, module, [other])


def test_windows_of_a_timm_vit_are_for_one_size(tmp_path):
    net = timm_vit(16, window_size=3, window_block_indexes=[0])
    module = FeaturesModule(FeatureExtractor(net))
    with pytest.raises(ExportError, match="depends on the size.*--fixed"):
        export_program(module, tmp_path / "x.pt2", [(64, 64)])
    (one, two) = export_program(module, tmp_path / "x.pt2", [(80, 64)], dynamic=False)
    assert (one.shape, two.shape) == ((1, 3, 80, 64), (2, 3, 80, 64)) and one.absolute < 1e-4 and two.absolute < 1e-4
