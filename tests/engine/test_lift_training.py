"""LiFT's own training from the command line: killed and resumed, and on two processes, it ends as on one."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from lift_det.data import write_synthetic_coco

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "tools" / "lazyconfig_train_net.py"
UPSTREAMS = Path(sysconfig.get_path("purelib")) / "tools" / "lazyconfig_train_net.py"
CONFIG = "configs/quick_schedules/lift_synthetic_cpu.py"
# the shipped config made so small that starting Python takes longer than training
TINY = [
    "model.net.embed_dim=32",
    "model.net.depth=1",
    "model.net.num_heads=2",
    "model.lift.name=lift_plus",
    "model.objectives={full_from_half:1,half_from_quarter:1,full_from_quarter:1}",
    "dataloader.train.dataset.color_jitter={brightness:0.2,contrast:0.2,saturation:0.2,hue:0.2}",
    "dataloader.train.total_batch_size=4",
    "train.eval_period=0",
    "train.log_period=1",
]
needs_upstreams_tool = pytest.mark.skipif(
    not UPSTREAMS.is_file(),
    reason="this detectron2 came without its tools/ (a build from source does not install them)",
)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_synthetic_coco(root, num_train=10, num_val=2)
    # what cannot be read must not change anything either
    (root / "synthetic" / "train" / "broken.jpg").write_bytes(b"no image")
    return root


def _start(tool, synthetic, folder, options):
    env = {**os.environ, "DETECTRON2_DATASETS": str(synthetic), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tool, "--config-file", CONFIG, *options, f"train.output_dir={folder}"]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _run(tool, synthetic, folder, options):
    process = _start(tool, synthetic, folder, options)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    return output


def _checkpoint(folder):
    return torch.load(folder / "model_final.pth", map_location="cpu", weights_only=False)


def _assert_equal(a, b):
    """Everything in two checkpoints, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            _assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


ITERATIONS = 60
LONG = [*TINY, f"train.max_iter={ITERATIONS}", "train.checkpointer.period=7"]


CACHED = ["dataloader.train.dataset.views=2", "model.feature_cache=${train.output_dir}/features"]


@pytest.fixture(scope="module", params=[[], CACHED], ids=["new samples", "cached views"])
def uninterrupted(request, synthetic, tmp_path_factory):
    """Options, and the last checkpoint of a training with them."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    options = [*LONG, *request.param]
    # with workers; the others are without
    output = _run(OURS, synthetic, folder, [*options, "dataloader.train.num_workers=2"])
    # twice if both workers came upon it at the same moment
    assert 1 <= output.count("which cannot be read") <= 2 and "(1 of 11 files so far)" in output
    # ten images can be read, and one of them stands in for the broken one with a crop of its own
    assert len(list(folder.glob("features/**/*.safetensors"))) == (22 if request.param else 0)
    return options, _checkpoint(folder)


@pytest.mark.parametrize(
    "tool", [OURS, pytest.param(UPSTREAMS, marks=needs_upstreams_tool)], ids=["ours", "detectron2s"]
)
def test_killed_and_resumed_it_ends_with_the_same_weights(tool, synthetic, uninterrupted, tmp_path):
    options, expected = uninterrupted
    if options != LONG and tool == UPSTREAMS:
        pytest.skip("one tool is enough for the cache: it is the model's")
    process = _start(tool, synthetic, tmp_path, options)
    metrics = tmp_path / "metrics.json"
    deadline = time.monotonic() + 240
    # after some checkpoint, between two
    while not (tmp_path / "model_0000013.pth").exists() or metrics.read_text().count("\n") < 17:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    last = int((tmp_path / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))
    assert 13 <= last < ITERATIONS - 1 and not (tmp_path / "model_final.pth").exists()

    output = _run(tool, synthetic, tmp_path, ["--resume", *options])
    assert f"Starting training from iteration {last + 1}" in output
    checkpoint = _checkpoint(tmp_path)
    for part in ("model", "trainer", "iteration"):  # weights, buffers, optimizer, learning rate
        _assert_equal(checkpoint[part], expected[part])


@pytest.mark.parametrize(("autocast", "rtol", "atol"), [("", 1e-3, 3e-4), ("bfloat16", 2e-2, 2e-2)])
def test_two_processes_train_as_one(autocast, rtol, atol, synthetic, tmp_path):
    options = [*TINY, "train.max_iter=8", "train.device=cpu", "train.ddp.device_ids=null", f"model.autocast={autocast}"]
    reports = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        hook = f"train.hooks=[{{_target_:tests.engine.record_losses.RecordLosses,path:{tmp_path}/{processes}.json}}]"
        _run(OURS, synthetic, folder, ["--num-gpus", processes, "--dist-url", "auto", *options, hook])
        reports.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    one, two = reports
    assert (one["processes"], two["processes"]) == (1, 2)
    assert "BatchNorm2d" in one["modules"] and "BatchNorm2d" not in two["modules"]
    assert two["apart"] == 0.0
    assert len(one["losses"]) == 8 and max(one["losses"]) - min(one["losses"]) > 5e-3
    assert max(abs(a - b) for a, b in zip(one["losses"], two["losses"], strict=True)) < 1e-4
    a, b = (_checkpoint(tmp_path / name)["model"] for name in "12")
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        if "running_" in name or "num_batches" in name:
            torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_the_loaders_seed_is_the_trainings(synthetic, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(synthetic))
    cfg = LazyConfig.load(str(ROOT / CONFIG))
    assert instantiate(cfg.dataloader.train).dataset.seed == cfg.train.seed == 0
    cfg = LazyConfig.apply_overrides(cfg, ["train.seed=7"])
    assert instantiate(cfg.dataloader.train).dataset.seed == 7
