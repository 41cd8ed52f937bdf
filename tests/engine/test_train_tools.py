"""Trainings from the command line: ours, detectron2's own tool, yacs, two processes, a kill."""

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from torch.utils._pytree import tree_flatten

from lift_det import LiFTPlus, config, load_lift, save_lift
from lift_det.data import write_synthetic_coco

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "tools" / "lazyconfig_train_net.py"
UPSTREAMS = Path(sysconfig.get_path("purelib")) / "tools" / "lazyconfig_train_net.py"
if not UPSTREAMS.is_file():  # a detectron2 that was built from source has no tools
    UPSTREAMS = OURS
DETECTOR = ROOT / "configs/quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
LIFT = ROOT / "configs/quick_schedules/lift_synthetic_cpu.py"
# the shipped configs made so small that starting Python takes longer than training
TINY_DETECTOR = [
    "model.backbone.net.embed_dim=32",
    "model.backbone.net.depth=1",
    "model.backbone.net.num_heads=2",
    "model.backbone.net.use_rel_pos=True",
    "dataloader.train.total_batch_size=2",
    "train.log_period=1",
    "model.proposal_generator.post_nms_topk=[50,20]",
    "model.roi_heads.box_predictor.test_score_thresh=0.0",
]
TINY_LIFT = [
    "model.net.embed_dim=32",
    "model.net.depth=1",
    "model.net.num_heads=2",
    "model.lift.name=lift_plus",
    "model.objectives={full_from_half:1,half_from_quarter:1,full_from_quarter:1}",
    "dataloader.train.dataset.color_jitter={brightness:0.2,contrast:0.2,saturation:0.2,hue:0.2}",
    "dataloader.train.dataset.image_size=64",
    "dataloader.test.dataset.image_size=64",
    "dataloader.train.total_batch_size=4",
    "train.eval_period=0",
    "train.log_period=1",
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_synthetic_coco(root, num_train=10, num_val=2)
    (root / "synthetic" / "train" / "broken.jpg").write_bytes(b"no image")  # must not change anything
    return root


@pytest.fixture
def in_process(datasets, monkeypatch, one_thread):
    """For trainings in this process: the datasets tiny_train and tiny_val, and detectron2's loggers as before."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    folder = datasets / "synthetic"
    for split in ("train", "val"):
        annotations = folder / f"annotations/instances_{split}.json"
        register_coco_instances(f"tiny_{split}", {}, str(annotations), folder / split)
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    for split in ("train", "val"):
        DatasetCatalog.remove(f"tiny_{split}")
        MetadataCatalog.remove(f"tiny_{split}")


def _start(command, datasets):
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=env, **pipes)


def _run(command, datasets):
    process = _start(command, datasets)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]


def _run_here(tool, arguments):
    runpy.run_path(str(tool))["main"](default_argument_parser().parse_args(list(map(str, arguments))))


def _metrics(folder):
    """The iterations in metrics.json, and all metrics of the evaluations."""
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    evaluated = {k: v for line in lines for k, v in line.items() if k.split("/")[0] in ("bbox", "segm", "cosine_2x")}
    return [line["iteration"] for line in lines if "total_loss" in line], evaluated


def _assert_equal(a, b):
    """Everything in two checkpoints, bit for bit."""
    (a, a_structure), (b, b_structure) = tree_flatten(a), tree_flatten(b)
    assert a_structure == b_structure
    assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def test_detectron2s_own_tool_trains_and_evaluates_a_shipped_config(datasets, tmp_path):
    """Without Triton, with windows, and with a trained LiFT of another kind than the config's own."""
    torch.manual_seed(0)
    lift = LiFTPlus(32, 8)
    torch.nn.init.normal_(lift.outc.weight, std=0.1)
    save_lift(lift, tmp_path / "lift.safetensors")
    blocked = (
        "import runpy, sys; sys.modules['triton'] = None; tool = sys.argv.pop(1); "
        "runpy.run_path(tool, run_name='__main__'); assert sys.modules['triton'] is None"
    )
    options = [*TINY_DETECTOR, f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=0"]
    options += [f"model.backbone.lift.checkpoint={tmp_path}/lift.safetensors"]
    options += ["model.backbone.net.depth=2", "model.backbone.net.window_size=5"]
    options += ["model.backbone.net.window_block_indexes=[0]", "train.trainer.accumulate=2"]  # the last has no effect
    _run(["-c", blocked, UPSTREAMS, "--config-file", DETECTOR, *options], datasets)
    iterations, evaluated = _metrics(tmp_path)
    assert iterations == [0, 1] and {"bbox/AP50", "segm/AP50"} <= set(evaluated)  # masks come as RLE
    trained = load_lift(tmp_path / "model_final.pth")  # after a few small steps
    assert type(trained) is LiFTPlus and not torch.equal(trained.outc.weight, lift.outc.weight)
    for name, value in lift.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), value, rtol=0, atol=0.02)


def test_our_tool_evaluates_what_it_saved(in_process, tmp_path, capsys):
    options = [*TINY_DETECTOR, f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=2"]
    options += ["dataloader.train.dataset.names=tiny_train", "dataloader.test.dataset.names=tiny_val"]
    options += ["train.trainer.accumulate=2", "train.trainer.precision=bfloat16", "train.trainer.ema_decay=0.9"]
    options += ["train.hooks=[{_target_:lift_det.engine.BestCheckpoint,metric:bbox/AP50}]"]
    _run_here(OURS, ["--config-file", DETECTOR, *options])
    iterations, evaluated = _metrics(tmp_path)
    assert iterations == [0, 1] and {"bbox/AP50", "segm/AP50"} <= set(evaluated)
    best = tmp_path / "model_best.pth"
    assert torch.load(best, weights_only=True)["value"] == evaluated["bbox/AP50"]
    capsys.readouterr()
    _run_here(OURS, ["--config-file", DETECTOR, "--eval-only", *options, f"train.init_checkpoint={best}"])
    printed = [line.split("copypaste: ")[1] for line in capsys.readouterr().out.splitlines() if "copypaste: " in line]
    assert printed[0] == "Task: bbox"
    assert float(printed[2].split(",")[1]) == pytest.approx(evaluated["bbox/AP50"], abs=1e-3)


def test_yacs(in_process, tmp_path):
    options = ["OUTPUT_DIR", tmp_path, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.MAX_ITER", "2"]
    options += ["MODEL.RPN.POST_NMS_TOPK_TEST", "20", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"]
    options += ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    yacs = ROOT / "configs/quick_schedules/mask_rcnn_lift_synthetic_cpu.yaml"
    _run_here(ROOT / "tools" / "train_net.py", ["--config-file", yacs, *options])
    _, evaluated = _metrics(tmp_path)
    assert {"bbox/AP", "segm/AP"} <= set(evaluated)
    assert config.load(tmp_path / "config.yaml").MODEL.LIFT.MASK_FORMAT == "rle"


def test_killed_and_resumed_lift_training_ends_with_the_same_weights(in_process, datasets, tmp_path):
    """The same, bit for bit, as that of detectron2's own tool, which was not interrupted."""
    command = ["--config-file", LIFT, *TINY_LIFT, "train.max_iter=60", "train.checkpointer.period=7"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = _start([OURS, *command, f"train.output_dir={parts}"], datasets)
    deadline = time.monotonic() + 240
    # killed between two checkpoints
    while not (parts / "model_0000013.pth").exists() or (parts / "metrics.json").read_text().count("\n") < 17:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    last = int((parts / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))
    assert 13 <= last < 59 and not (parts / "model_final.pth").exists()
    _run_here(OURS, ["--resume", *command, f"train.output_dir={parts}"])
    assert _metrics(parts)[0][last - 59 :] == list(range(last + 1, 60))

    _run_here(UPSTREAMS, [*command, f"train.output_dir={whole}", "dataloader.train.num_workers=2"])
    assert set(_metrics(whole)[1]) == {f"cosine_2x/{name}" for name in ("nearest", "bilinear", "bicubic", "lift")}
    metadata = load_lift(whole / "lift.safetensors").metadata
    assert (metadata["steps"], metadata["evaluated_images"]) == ("60", "2")
    checkpoint, expected = (torch.load(folder / "model_final.pth", weights_only=False) for folder in (parts, whole))
    for part in ("model", "trainer", "iteration"):  # weights, buffers, optimizer, learning rate
        _assert_equal(checkpoint[part], expected[part])


def test_lift_trains_on_two_processes_as_on_one(in_process, datasets, tmp_path):
    def command(name):
        hook = f"{{_target_:tests.engine.toy.RecordTraining,path:{tmp_path}/{name}.json}}"
        options = ["train.max_iter=8", "train.device=cpu", "train.ddp.device_ids=null", f"train.hooks=[{hook}]"]
        return ["--config-file", LIFT, *TINY_LIFT, *options, f"train.output_dir={tmp_path}/{name}"]

    _run([OURS, "--num-gpus", 2, "--dist-url", "auto", *command("two")], datasets)
    _run_here(OURS, command("one"))
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"], two["difference"]) == (1, 2, 0.0)
    assert len(one["losses"]) == 8 and max(one["losses"]) - min(one["losses"]) > 5e-3
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    a, b = (torch.load(tmp_path / name / "model_final.pth")["model"] for name in ("one", "two"))
    for name in a:
        if "running_" in name or "num_batches" in name:  # as SyncBN
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=3e-4)


def test_a_detector_on_two_processes_of_torchrun(datasets, tmp_path):
    options = [*TINY_DETECTOR, f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=0"]
    options += ["train.ddp.fp16_compression=True"]  # as in the COCO configs; a CPU does without
    options += ["train.trainer.ema_decay=0.9", "model.backbone.freeze_lift=True"]
    hook = f"{{_target_:tests.engine.toy.RecordTraining,path:{tmp_path}/training.json}}"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    _run([*torchrun, OURS, "--config-file", DETECTOR, *options, f"train.hooks=[{hook}]"], datasets)
    report = json.loads((tmp_path / "training.json").read_text())
    assert (report["processes"], report["difference"], len(report["losses"])) == (2, 0.0, 2)
    assert (tmp_path / "model_ema.pth").is_file()
