import json

import cv2
import pytest
import torch

from lift_det import LiFT, ViT, load_lift
from lift_det.checkpoint import read_state_dict
from lift_det.evaluation import ReconstructionEvaluator, reconstruction_table
from lift_det.modeling import LiFTPretraining


class _Scores(list):
    def save_lift(self, path, metadata):
        raise AssertionError("nothing is to be written without an output_dir")


def _score(lift, bilinear):
    tasks = {}
    for task in ("2x", "2x_half", "4x"):
        tasks[f"cosine_{task}"] = {"nearest": 0.0, "bilinear": bilinear, "bicubic": 0.0, "lift": lift}
        tasks[f"rel_l2_{task}"] = {"nearest": 1.0, "bilinear": 1.0, "bicubic": 1.0, "lift": 2 * lift}
    return tasks


def test_averages_over_images_and_compares_with_bilinear():
    evaluator = ReconstructionEvaluator()
    evaluator.reset()
    evaluator.process([{}, {}], _Scores([_score(0.5, 0.25), _score(1.0, 0.5)]))
    evaluator.process([{}], _Scores([_score(0.75, 0.75)]))
    results = evaluator.evaluate()
    assert results["cosine_2x"]["lift"] == pytest.approx(0.75)
    assert results["cosine_2x"]["bilinear"] == pytest.approx(0.5)
    assert results["rel_l2_4x"]["lift"] == pytest.approx(1.5)
    # an error of 0.25 where bilinear has 0.5
    assert results["error_reduction_2x_half"] == {"lift": pytest.approx(50.0)}
    table = reconstruction_table(results)
    assert "0.7500 / 1.5000 (-50.0 %)" in table and len(table.splitlines()) == 6


def test_no_image_is_an_error():
    with pytest.raises(RuntimeError, match="no image"):
        ReconstructionEvaluator().evaluate()


def test_writes_the_lift_with_what_it_is_for(tmp_path):
    torch.manual_seed(0)
    net = ViT(img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, pretrain_img_size=64)
    model = LiFTPretraining(net, LiFT(32, 8), [0.0] * 3, [255.0] * 3, layer=0, facet="key")
    batch = [{"image": torch.rand(3, 64, 64) * 255} for _ in range(3)]
    model.train()
    for _ in range(2):
        model(batch)
    model.eval()
    evaluator = ReconstructionEvaluator(tmp_path, training_data=["a", "b"])
    evaluator.reset()
    with torch.no_grad():
        evaluator.process(batch, model(batch))
    results = evaluator.evaluate()

    lift = load_lift(tmp_path / "lift.safetensors")
    assert all(torch.equal(v, model.lift.state_dict()[k]) for k, v in lift.state_dict().items())
    metadata = lift.metadata
    expected = {
        "backbone": "detectron2 ViT(embed_dim=32, depth=2, num_heads=2, patch_size=8)",
        "in_channels": "32",
        "patch_size": "8",
        "layer": "0",
        "facet": "key",
        "final_norm": "false",
        "pixel_mean": "0 0 0",
        "pixel_std": "255 255 255",
        "residual": "true",
        "training_data": "a, b",
        "steps": "2",
        "evaluated_images": "3",
    }
    assert {name: metadata[name] for name in expected} == expected
    assert json.loads(metadata["reconstruction"])["cosine_4x"]["lift"] == pytest.approx(
        results["cosine_4x"]["lift"], rel=1e-4
    )
    assert read_state_dict(tmp_path / "lift.safetensors")[1] == metadata
    picture = cv2.imread(str(tmp_path / "reconstruction.png"))
    assert picture.shape[0] > 300 and picture.std() > 10
    assert {p.name for p in tmp_path.iterdir()} == {"lift.safetensors", "reconstruction.png"}
