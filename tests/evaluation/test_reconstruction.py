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
    rows = [line.split("|") for line in reconstruction_table(results).splitlines()]
    assert [row[1].strip() for row in rows[2:]] == ["nearest", "bilinear", "bicubic", "LiFT"]
    assert [cell.strip() for cell in rows[5][2:5]] == ["0.7500 / 1.5000 / 50.0"] * 3
    evaluator.reset()
    with pytest.raises(RuntimeError, match="no image"):
        evaluator.evaluate()


def test_the_first_process_with_images_writes_the_lift(tmp_path, monkeypatch):
    class Scores(list):
        def save_lift(self, path, metadata):
            written.append((path, metadata["evaluated_images"]))

    written, by_process = [], [[], Scores([score(0.5, 0.25)])]
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda data: by_process)
    for rank, scores in enumerate(by_process):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        evaluator = ReconstructionEvaluator(str(tmp_path))
        evaluator.process([{}] * len(scores), scores)
        assert bool(evaluator.evaluate()) == (rank == 0) and len(written) == rank
    assert written == [(str(tmp_path / "lift.safetensors"), "1")]


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
    expected = {"patch_size": "8", "layer": "0", "facet": "key", "training_data": "a, b", "steps": "1"}
    expected |= {"backbone": "detectron2 ViT(embed_dim=32, depth=2, num_heads=2, patch_size=8)"}
    assert {name: lift.metadata[name] for name in expected} == expected
    recorded = json.loads(lift.metadata["reconstruction"])
    assert recorded.keys() == results.keys() and recorded["cosine_4x"] == pytest.approx(results["cosine_4x"], rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["lift.safetensors"]
