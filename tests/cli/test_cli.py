"""The `lift-det` command: help, configs, exit codes, and the doctor in broken environments."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torchvision.ops

from lift_det import cli, model_zoo
from lift_det.cli import doctor
from lift_det.version import __version__

ROOT = Path(__file__).resolve().parents[2]
NAMES = [module.__name__.rpartition(".")[2] for module in cli.SUBCOMMANDS]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in NAMES)])
def test_help_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert "examples:\n  lift-det" in capsys.readouterr().out


def test_version_and_wrong_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lift_det {__version__}\n"
    assert cli.main([]) == cli.main(["no-such-subcommand"]) == cli.main(["configs", "x.y=1"]) == 2
    assert "doctor" in capsys.readouterr().err


def test_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "--names"]) == 0
    assert capsys.readouterr().out.splitlines() == model_zoo.list_configs()
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    described = dict(line.split(maxsplit=1) for line in lines if line)
    assert list(described) == model_zoo.list_configs() and max(map(len, lines)) <= 100
    name = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"
    assert "LiFT" in described[name]
    assert cli.main(["configs", "--path", name]) == 0
    assert capsys.readouterr().out.strip() == model_zoo.get_config_file(name)
    assert cli.main(["configs", "--path", "COCO/mask_rcnn_lift_vitdet_b_100epochs"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "mask_rcnn_lift_vitdet_b_100epochs" in captured.err
    with pytest.raises(model_zoo.ConfigNotFoundError):
        cli.main(["--traceback", "configs", "--path", "absent"])


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, without the variables."""
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.delenv("LIFT_DET_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(check) -> dict[str, str]:
    return {name.strip(): str(value) for name, value, *_ in check()}


def problems(check) -> list[tuple[str, str]]:
    return [tuple(problem) for _, _, *problem in check() if problem]


def test_doctor_finds_nothing_wrong_here(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and str(Path("tools", "lazyconfig_train_net.py")) in printed
    assert str(environment / "datasets") in printed and str(environment / "weights") in printed


def test_doctor_lists_data_and_weights(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, weights = environment / "data", environment / "w"
    for name in ("coco/train2017/a.jpg", "coco/train2017/b.jpg", "coco/annotations/instances_train2017.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    (data / "photos").mkdir()
    weights.mkdir()
    (weights / "lift.safetensors").write_bytes(bytes(2**20))
    (weights / "readme.txt").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    monkeypatch.setenv("LIFT_DET_WEIGHTS", str(weights))
    found = values(doctor.check_datasets)
    assert found["data sets"] == "coco, photos" and found["coco train2017"] == "2 images"
    assert "instances_val2017.json" in found["coco val2017"]
    assert values(doctor.check_weights) == {"$LIFT_DET_WEIGHTS": str(weights), "lift.safetensors": "1.0 MiB"}
    assert problems(doctor.check_datasets) == []
    monkeypatch.setenv("DETECTRON2_DATASETS", str(environment / "absent"))
    ((problem, _),) = problems(doctor.check_datasets)
    assert "$DETECTRON2_DATASETS" in problem and "absent" in problem


@pytest.mark.parametrize("broken", ["raises", "wrong"])
def test_doctor_runs_torchvision_operators(
    monkeypatch: pytest.MonkeyPatch, broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def nms(boxes, scores, iou_threshold):
        if broken == "raises":
            raise RuntimeError("operator torchvision::nms does not exist")
        return torch.tensor([0, 1, 2])

    monkeypatch.setattr(torchvision.ops, "nms", nms)
    assert cli.main(["doctor"]) == 1
    expected = "operator torchvision::nms does not exist" if broken == "raises" else "[0, 1, 2]"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("distribution", "version", "parts"),
    [
        ("omegaconf", "2.4.0.dev3", ("omegaconf", "<2.4", "2.4.0.dev3")),
        ("timm", "1.0.9", ("timm>=1.0.20", "1.0.9")),
        ("yacs", None, ("yacs>=0.1.8",)),
    ],
)
def test_doctor_checks_versions(
    monkeypatch: pytest.MonkeyPatch, distribution: str, version: str | None, parts: tuple[str, ...]
) -> None:
    requirements = ["omegaconf>=2.1,<2.4", "timm>=1.0.20", "yacs>=0.1.8", 'pytest>=999; extra == "dev"']
    installed = {"omegaconf": "2.3.1", "timm": "1.0.31", "yacs": "0.1.8"}

    def find_version(name: str) -> str:
        if installed[name] is None:
            raise importlib.metadata.PackageNotFoundError
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(importlib.metadata, "version", find_version)
    assert problems(doctor.check_requirements) == []
    installed[distribution] = version
    ((problem, remedy),) = problems(doctor.check_requirements)
    assert all(part in problem for part in parts) and "pip install" in remedy


def test_doctor_misses_pkg_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(doctor.check_detectron2) == []
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    ((problem, _),) = problems(doctor.check_detectron2)
    assert "setuptools<81" in problem


def test_a_check_that_fails_hides_no_other(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: 1 / 0)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed and "$LIFT_DET_WEIGHTS" in printed


def run_command(*arguments: str, before: str) -> subprocess.CompletedProcess[str]:
    """`lift-det ARGUMENTS` in a fresh interpreter in which `before` has run."""
    source = f"{textwrap.dedent(before)}\nimport sys, lift_det_cli\nsys.exit(lift_det_cli.main({list(arguments)!r}))"
    variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    variables = {k: v for k, v in variables.items() if k not in ("DETECTRON2_DATASETS", "LIFT_DET_WEIGHTS")}
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=variables)


@pytest.mark.parametrize(("module", "remedy"), [("detectron2", "install_detectron2.py"), ("torch", "torchvision")])
def test_doctor_runs_in_a_broken_environment(module: str, remedy: str) -> None:
    process = run_command("doctor", before=f"import sys; sys.modules['{module}'] = None")
    assert process.returncode == 1, process.stderr
    assert module in process.stdout and remedy in process.stdout
    assert "Traceback" not in process.stdout + process.stderr


def test_other_subcommands_name_what_is_missing() -> None:
    process = run_command("configs", before="import sys; sys.modules['detectron2'] = None")
    assert process.returncode == 1
    assert "sal-detectron2" in process.stderr and "lift-det doctor" in process.stderr
    assert "Traceback" not in process.stderr


def test_help_imports_no_torch() -> None:
    before = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    process = run_command("doctor", "--help", before=before)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("False\n")
