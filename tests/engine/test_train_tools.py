"""The trainers from the command line, as a user starts them: ours, detectron2's own, yacs, two processes, a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from lift_det import LiFTPlus, load_lift, model_zoo, save_lift
from lift_det.data import write_synthetic_coco

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "tools" / "lazyconfig_train_net.py"
UPSTREAMS = Path(sysconfig.get_path("purelib")) / "tools" / "lazyconfig_train_net.py"
EVALUATIONS = ("bbox", "segm", "cosine_2x")
CONFIG = "configs/quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
# the shipped config made so small that starting Python takes longer than training
TINY = [
    "model.backbone.net.embed_dim=32",
    "model.backbone.net.depth=1",
    "model.backbone.net.num_heads=2",
    "model.backbone.net.use_rel_pos=True",  # attention is ours then
    "dataloader.train.total_batch_size=2",
    "train.log_period=1",
    "train.eval_period=0",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",  # untrained heads are sure of nothing
]


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_synthetic_coco(root, num_train=8, num_val=2)
    return root


def _start(command, synthetic):
    env = {**os.environ, "DETECTRON2_DATASETS": str(synthetic), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(command, synthetic, timeout=240):
    process = _start(command, synthetic)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output[-4000:]
    return output


def _metrics(folder):
    """The lines of metrics.json that training wrote, and one dict of all that the evaluations wrote."""
    text = (folder / "metrics.json").read_text()
    # a line that is just being written has no end yet
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    evaluated: dict = {}
    for line in lines:
        evaluated |= {name: value for name, value in line.items() if name.split("/")[0] in EVALUATIONS}
    return [line for line in lines if "total_loss" in line], evaluated


def _save_lift_plus(path, width):
    torch.manual_seed(0)
    lift = LiFTPlus(width, 8)
    torch.nn.init.normal_(lift.outc.weight, std=0.1)
    save_lift(lift, path)
    return lift


def _assert_started_from(checkpoint, lift):
    """The detector's LiFT is the one that was given, a few small steps on."""
    trained = load_lift(checkpoint)
    assert type(trained) is LiFTPlus
    for name, value in lift.named_parameters():
        now = trained.get_parameter(name)
        torch.testing.assert_close(now, value, rtol=0, atol=0.02)
    assert not torch.equal(trained.outc.weight, lift.outc.weight)


needs_upstreams_tool = pytest.mark.skipif(
    not UPSTREAMS.is_file(),
    reason="this detectron2 came without its tools/ (a build from source does not install them)",
)


@pytest.mark.parametrize(
    "tool", [OURS, pytest.param(UPSTREAMS, marks=needs_upstreams_tool)], ids=["ours", "detectron2s"]
)
def test_trains_evaluates_and_evaluates_again(tool, synthetic, tmp_path):
    """With a trained LiFT of another kind than the config's own: its file is all that is named."""
    lift = _save_lift_plus(tmp_path / "lift.safetensors", width=32)
    options = [*TINY, f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=2"]
    options.append(f"model.backbone.lift.checkpoint={tmp_path}/lift.safetensors")
    # which detectron2's passes over
    options += ["train.trainer.accumulate=2", "train.trainer.precision=bfloat16", "train.trainer.ema_decay=0.9"]
    options += ["train.hooks=[{_target_:lift_det.engine.BestCheckpoint,metric:bbox/AP50}]"]
    _run([tool, "--config-file", CONFIG, *options], synthetic)
    trained, evaluated = _metrics(tmp_path)
    assert {"bbox/AP50", "segm/AP50"} <= set(evaluated)
    assert [line["iteration"] for line in trained] == [0, 1] and 0 < trained[-1]["total_loss"] < 20
    weights = tmp_path / ("model_best.pth" if tool == OURS else "model_final.pth")
    _assert_started_from(weights, lift)
    output = _run(
        [tool, "--config-file", CONFIG, "--eval-only", *options, f"train.init_checkpoint={weights}"], synthetic
    )
    # untrained, yet the same to the last digit that is printed: it evaluated what it had saved
    printed = [line.split("copypaste: ")[1] for line in output.splitlines() if "copypaste: " in line]
    assert printed[0] == "Task: bbox" and float(printed[2].split(",")[1]) == pytest.approx(
        evaluated["bbox/AP50"], abs=1e-3
    )
    assert "backbone.net.*: all" in output and "not in the checkpoint" not in output


def test_trains_and_evaluates_without_triton(synthetic, tmp_path):
    """With relative positions and windows, so that attention is ours, and with masks encoded by us."""
    blocked = (
        "import runpy, sys; sys.modules['triton'] = None; tool = sys.argv.pop(1); "
        "runpy.run_path(tool, run_name='__main__'); assert sys.modules['triton'] is None"
    )
    options = [*TINY, f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=2"]
    options += ["model.mask_format=rle"]
    options += ["model.backbone.net.depth=2", "model.backbone.net.window_size=5"]
    options += ["model.backbone.net.window_block_indexes=[0]"]
    _run(["-c", blocked, OURS, "--config-file", CONFIG, *options], synthetic)
    trained, evaluated = _metrics(tmp_path)
    assert {"bbox/AP50", "segm/AP50"} <= set(evaluated)
    assert [line["iteration"] for line in trained] == [0, 1] and 0 < trained[-1]["total_loss"] < 20


def test_lift_trains_with_either_tool(synthetic, tmp_path):
    tool = UPSTREAMS if UPSTREAMS.is_file() else OURS
    options = [
        "model.net.embed_dim=32",
        "model.net.depth=1",
        "model.net.num_heads=2",
        "dataloader.train.total_batch_size=2",
        "train.max_iter=3",
        "train.eval_period=3",
        "train.log_period=1",
    ]
    config = "configs/quick_schedules/lift_synthetic_cpu.py"
    _run([tool, "--config-file", config, f"train.output_dir={tmp_path}/lift", *options], synthetic)
    trained, scores = _metrics(tmp_path / "lift")
    assert len(trained) == 3
    assert set(scores) == {f"cosine_2x/{name}" for name in ("nearest", "bilinear", "bicubic", "lift")}
    metadata = load_lift(tmp_path / "lift" / "lift.safetensors").metadata
    assert (metadata["steps"], metadata["evaluated_images"]) == ("3", "2")
    assert metadata["training_data"].endswith("synthetic/train") and (tmp_path / "lift" / "reconstruction.png").exists()
    # its checkpoint starts a detector: the ViT and LiFT come from it, the rest does not
    checkpoint = f"train.init_checkpoint={tmp_path}/lift/model_final.pth"
    output = _run(
        [OURS, "--config-file", CONFIG, *TINY, f"train.output_dir={tmp_path}/rcnn", "train.max_iter=1", checkpoint],
        synthetic,
    )
    for part in ("net", "lift"):
        assert re.search(rf"backbone\.{part}\.\*: all \d+ tensors loaded", output)
    for part in (r"backbone\.simfp_", r"roi_heads\.mask"):
        assert re.search(rf"{part}\* \(\d+ tensors\) is not in the checkpoint", output)


def test_yacs(synthetic, tmp_path):
    config = "configs/quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml"
    lift = _save_lift_plus(tmp_path / "lift.safetensors", width=64)
    options = ["OUTPUT_DIR", tmp_path, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    options += ["MODEL.LIFT.CHECKPOINT", tmp_path / "lift.safetensors"]
    _run([ROOT / "tools" / "train_net.py", "--config-file", config, *options], synthetic)
    trained, evaluated = _metrics(tmp_path)
    assert trained[-1]["iteration"] == 3 and {"bbox/AP", "segm/AP"} <= set(evaluated)
    _assert_started_from(tmp_path / "model_final.pth", lift)


@pytest.mark.parametrize(
    ("start", "count", "freeze_lift"),
    [
        ([OURS], ["--num-gpus", 2, "--dist-url", "auto"], True),
        (["-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone", OURS], [], False),
    ],
    ids=["num-gpus", "torchrun"],
)
def test_two_processes_end_with_the_same_parameters(start, count, freeze_lift, synthetic, tmp_path):
    options = [
        *TINY,
        f"train.output_dir={tmp_path}",
        "train.max_iter=3",
        "train.ddp.fp16_compression=True",  # as the COCO configs have it: not on a CPU
        f"model.backbone.freeze_lift={freeze_lift}",
        f"train.hooks=[{{_target_:tests.engine.compare_ranks.CompareRanks,path:{tmp_path}/ranks.json}}]",
    ]
    _run([*start, "--config-file", CONFIG, *count, *options], synthetic)
    report = json.loads((tmp_path / "ranks.json").read_text())
    assert (report["processes"], report["apart"], report["finite"]) == (2, 0.0, True)
    assert {"backbone.net", "backbone.simfp_2", "roi_heads.box_head"} <= set(report["changed"])
    assert ("backbone.lift" in report["changed"]) is not freeze_lift
    assert len(_metrics(tmp_path)[0]) == 3


@needs_upstreams_tool
def test_two_processes_with_detectron2s_own_tool(synthetic, tmp_path):
    options = [
        *TINY,
        f"train.output_dir={tmp_path}",
        "train.max_iter=2",
        "train.device=cpu",
        "train.ddp.device_ids=null",
    ]
    _run([UPSTREAMS, "--config-file", CONFIG, "--num-gpus", 2, "--dist-url", "auto", *options], synthetic)
    assert len(_metrics(tmp_path)[0]) == 2


@pytest.mark.parametrize(
    "tool", [OURS, pytest.param(UPSTREAMS, marks=needs_upstreams_tool)], ids=["ours", "detectron2s"]
)
def test_resumes_after_kill_9(tool, synthetic, tmp_path):
    total = 60
    options = [*TINY, f"train.output_dir={tmp_path}", f"train.max_iter={total}", "train.checkpointer.period=5"]
    process = _start([tool, "--config-file", CONFIG, *options], synthetic)
    deadline = time.monotonic() + 240
    while not (tmp_path / "model_0000009.pth").exists() or len(_metrics(tmp_path)[0]) < 12:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed, _ = _metrics(tmp_path)
    last = int((tmp_path / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))
    assert 9 <= last < total - 1

    _run([tool, "--config-file", CONFIG, "--resume", *options], synthetic)
    resumed = _metrics(tmp_path)[0][len(killed) :]
    assert [m["iteration"] for m in resumed] == list(range(last + 1, total))
    cfg = model_zoo.get_config("quick_schedules/mask_rcnn_lift_synthetic_cpu.py")
    multiplier = instantiate(cfg.lr_multiplier)
    for m in (*killed, *resumed):
        assert m["lr"] == pytest.approx(cfg.optimizer.lr * multiplier(m["iteration"] / total), rel=1e-6)
