"""The `lift-det` command: help, configs, exit codes, and the doctor in broken environments."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision.ops

from lift_det import cli, model_zoo
from lift_det.cli import doctor
from lift_det.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_help_and_version(capsys):
    for module in (None, *cli.SUBCOMMANDS):
        assert cli.main(["--help"] if module is None else [module.__name__.rpartition(".")[2], "--help"]) == 0
        assert "  lift-det " in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lift_det {__version__}\n"


def test_configs(capsys):
    assert cli.main(["configs", "--names"]) == 0
    assert capsys.readouterr().out.splitlines() == model_zoo.list_configs()
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    described = dict(line.split(maxsplit=1) for line in lines if line)
    assert list(described) == model_zoo.list_configs() and max(map(len, lines)) <= 100
    name = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"
    assert cli.main(["configs", "--path", name]) == 0
    assert capsys.readouterr().out.strip() == model_zoo.get_config_file(name)
    assert cli.main(["configs", "--path", "COCO/absent"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "COCO/absent" in captured.err and "Traceback" not in captured.err
    with pytest.raises(model_zoo.ConfigNotFoundError):
        cli.main(["--traceback", "configs", "--path", "absent"])


def test_doctor_finds_nothing_wrong_here(tmp_path, monkeypatch, capsys):
    for name in ("coco/train2017/a.jpg", "coco/train2017/b.jpg", "coco/annotations/instances_train2017.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "lift.safetensors").write_bytes(bytes(2**20))
    (tmp_path / "readme.txt").touch()
    for variable in ("DETECTRON2_DATASETS", "LIFT_DET_WEIGHTS"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and str(Path("tools", "lazyconfig_train_net.py")) in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert {"datasets coco", "coco train2017 2 images", "lift.safetensors 1.0 MiB"} <= set(lines)
    assert str(tmp_path / "coco" / "val2017") in printed and "readme.txt" not in printed


def test_doctor_reports_every_problem(tmp_path, monkeypatch, capsys):
    requirements = ["omegaconf>=2.1,<2.2", "timm>=999", "no-such-package>=0.1.8", "torch", 'numpy>=999; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(torchvision.ops, "nms", lambda *_, **__: torch.tensor([0, 1, 2]))
    monkeypatch.setattr(doctor, "detectron2_folder", lambda: 1 / 0)  # an error of a check hides no other problem
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "absent"))
    monkeypatch.delenv("LIFT_DET_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 1
    report, problems = capsys.readouterr().out.split("training: ")
    assert str(tmp_path / "weights") in report
    assert problems.startswith("6.")
    for part in (*requirements[1:3], "omegaconf<2.2,>=2.1", "[0, 1, 2]", "ZeroDivisionError", "$DETECTRON2_DATASETS"):
        assert part in problems


def run_python(source):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    variables = {k: v for k, v in variables.items() if k not in ("DETECTRON2_DATASETS", "LIFT_DET_WEIGHTS")}
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=variables)


@pytest.mark.parametrize(("module", "remedy"), [("detectron2", "install_detectron2.py"), ("torch", "torchvision")])
def test_broken_environment(module, remedy):
    """The doctor runs, and other subcommands name what is missing."""
    process = run_python(
        f"import sys; sys.modules['{module}'] = None; import lift_det_cli\n"
        "sys.exit(10 * lift_det_cli.main(['configs']) + lift_det_cli.main(['doctor']))"
    )
    assert process.returncode == 11, process.stderr
    assert module in process.stderr and "lift-det doctor" in process.stderr
    assert module in process.stdout and remedy in process.stdout
    assert "Traceback" not in process.stdout + process.stderr and "bug" not in process.stdout


def test_help_imports_no_torch():
    process = run_python(
        "import sys, lift_det_cli; lift_det_cli.main(['doctor', '-h']); assert 'torch' not in sys.modules"
    )
    assert process.returncode == 0, process.stderr
