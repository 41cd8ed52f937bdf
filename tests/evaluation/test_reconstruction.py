import json

import pytest
import torch

from lift_det import LiFT, ViT, load_lift
from lift_det.evaluation import ReconstructionEvaluator, reconstruction_table
from lift_det.modeling import LiFTPretraining


def score(lift, bilinear):
    figures = {}
    for task in ("2x", "2x_half", "4x"):
        figures[f"cosine_{task}"] = {"nearest": 0.0, "bilinear": bilinear, "bicubic": 0.0, "lift": lift}
        figures[f"rel_l2_{task}"] = {"nearest": 1.0, "bilinear": 1.0, "bicubic": 1.0, "lift": 2 * lift}
    return figures


def test_means_over_images_and_comparison_with_bilinear():
    evaluator = ReconstructionEvaluator()
    evaluator.process([{}, {}], [score(0.5, 0.25), score(1.0, 0.5)])
    evaluator.process([{}], [score(0.75, 0.75)])
    results = evaluator.evaluate()
    assert results["cosine_2x"] == {"nearest": 0.0, "bilinear": 0.5, "bicubic": 0.0, "lift": 0.75}
    assert results["rel_l2_4x"]["lift"] == pytest.approx(1.5)
    assert results["error_reduction_2x_half"] == {"lift": pytest.approx(50.0)}  # 0.25, and bilinear 0.5
    results["cosine_4x"]["lift_original"] = results["rel_l2_4x"]["lift_original"] = 0.625
    results["error_reduction_4x"]["lift_original"] = 25.0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in reconstruction_table(results).splitlines()
    ]
    assert [row[0] for row in rows[2:]] == ["nearest", "bilinear", "bicubic", "LiFT", "LiFT, real image between"]
    assert rows[5][1:] == ["0.7500 / 1.5000 (-50.0 %)"] * 3
    assert rows[6][1:] == ["", "", "0.6250 / 0.6250 (-25.0 %)"]
    evaluator.reset()
    with pytest.raises(RuntimeError, match="no image"):
        evaluator.evaluate()


def test_lift_is_written_with_its_metadata(tmp_path):
    torch.manual_seed(0)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=64)
    model = LiFTPretraining(net, LiFT(32, 8), [0.0] * 3, [255.0] * 3, layer=0, facet="key")
    batch = [{"image": torch.rand(3, 64, 64) * 255} for _ in range(3)]
    model(batch)
    model.eval()
    evaluator = ReconstructionEvaluator(tmp_path, training_data=["a", "b"])
    with torch.no_grad():
        evaluator.process(batch, model(batch))
    results = evaluator.evaluate()

    lift = load_lift(tmp_path / "lift.safetensors")
    assert all(torch.equal(v, model.lift.state_dict()[k]) for k, v in lift.state_dict().items())
    expected = {
        "backbone": "detectron2 ViT(embed_dim=32, depth=2, num_heads=2, patch_size=8)",
        "patch_size": "8",
        "layer": "0",
        "facet": "key",
        "training_data": "a, b",
        "steps": "1",
        "evaluated_images": "3",
    }
    assert {name: lift.metadata[name] for name in expected} == expected
    recorded = json.loads(lift.metadata["reconstruction"])
    assert recorded.keys() == results.keys() and recorded["cosine_4x"] == pytest.approx(results["cosine_4x"], rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["lift.safetensors"]
