import argparse

import pytest
import torch
from detectron2.config import LazyCall as L

from lift_det.engine import BestCheckpoint, Trainer, do_train
from lift_det.engine.trained_model import find_weights
from tests.engine.toy import logged, toy_config

RESUME, ANEW = argparse.Namespace(resume=True), argparse.Namespace(resume=False)
#: iterations of the evaluations: every second, and one after the training
EVALUATIONS = [1, 3, 5, 7, 10]


def _config(folder, scores=(), metric="toy/score", mode="max", **train):
    cfg = toy_config(folder, eval_period=2, hooks=[L(BestCheckpoint)(metric=metric, mode=mode)], **train)
    cfg.dataloader.evaluator.scores = dict(zip(EVALUATIONS, scores, strict=False))
    return cfg


def _best(folder):
    return torch.load(folder / "model_best.pth", weights_only=True)


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [1.0, 3.0, 2.0, 3.0, 2.5], (3.0, 3, 3)),  # the first of two equal ones
        ("max", [1.0, 3.0, 2.0, 3.0, 3.5], (3.5, 9, 10)),  # the last, evaluated after the training
        ("min", [1.0, float("nan"), 0.5, 3.0, 3.5], (0.5, 5, 5)),
    ],
)
def test_the_weights_of_the_best_evaluation_are_kept(mode, scores, best, tmp_path):
    do_train(ANEW, _config(tmp_path, scores, mode=mode))
    kept = _best(tmp_path)
    assert (kept["value"], kept["iteration"]) == best[:2]
    weights = logged(tmp_path, "toy/weight")
    assert list(weights) == EVALUATIONS
    assert kept["model"]["weight"].item() == pytest.approx(weights[best[2]])
    # a resume continues from the last state, and predictions use the best
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert find_weights(tmp_path) == str(tmp_path / "model_best.pth")


def test_under_an_average_the_averaged_weights_are_kept(tmp_path):
    do_train(ANEW, _config(tmp_path, metric="toy/weight", trainer=L(Trainer)(ema_decay=0.9)))
    assert _best(tmp_path)["model"]["weight"].item() == pytest.approx(max(logged(tmp_path, "toy/weight").values()))
    assert _best(tmp_path)["model"] == torch.load(tmp_path / "model_ema.pth", weights_only=True)["model"]


def test_a_resumed_training_knows_the_best_and_a_new_one_starts_without(tmp_path):
    # the last checkpoint, of iteration 4, is from before the evaluations of 5 and 7
    broken = _config(tmp_path, [1.0, 2.0, 9.0, 3.0], trainer=L(Trainer)())
    broken.dataloader.train.bad_iteration = 8
    with pytest.raises(FloatingPointError):
        do_train(ANEW, broken)
    assert (_best(tmp_path)["value"], (tmp_path / "last_checkpoint").read_text()) == (9.0, "model_0000004.pth")
    do_train(RESUME, _config(tmp_path, [0.0, 0.0, 8.0, 7.0, 6.0]))
    assert _best(tmp_path)["value"] == 9.0
    do_train(RESUME, _config(tmp_path, [1.0], metric="toy/weight"))
    assert _best(tmp_path)["metric"] == "toy/weight"
    do_train(ANEW, _config(tmp_path, [4.0, 5.0, 3.0, 2.0, 1.0]))
    assert (_best(tmp_path)["metric"], _best(tmp_path)["value"]) == ("toy/score", 5.0)


def test_an_unknown_metric_stops_at_the_first_evaluation(tmp_path):
    with pytest.raises(ValueError, match="bbox/AP.*toy/weight"):
        do_train(ANEW, _config(tmp_path, metric="bbox/AP"))
    assert list(logged(tmp_path, "toy/weight")) == [1]
    cfg = _config(tmp_path)
    del cfg.dataloader.evaluator
    with pytest.raises(ValueError, match="dataloader.evaluator"):
        do_train(ANEW, cfg)
