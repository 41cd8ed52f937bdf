"""The `lift-det` command: what each subcommand prints and returns, and the doctor in environments that are broken."""

from __future__ import annotations

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


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither variable set, in an empty folder."""
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.delenv("LIFT_DET_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(findings: dict[str, list[doctor.Finding]]) -> list[str]:
    return [finding.problem for section in findings.values() for finding in section if finding.problem]


def value_of(findings: dict[str, list[doctor.Finding]], name: str) -> str:
    (value,) = [f.value for section in findings.values() for f in section if f.name.strip() == name]
    return value


@pytest.mark.parametrize(
    "arguments", [["--help"], *([module.__name__.split(".")[-1], "--help"] for module in cli.SUBCOMMANDS)]
)
def test_help_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "examples:\n  lift-det" in printed


def test_version_and_wrong_command_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lift_det {__version__}\n"
    assert cli.main([]) == 2
    assert cli.main(["no-such-subcommand"]) == 2
    assert "doctor" in capsys.readouterr().err


def test_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs", "--names"]) == 0
    assert capsys.readouterr().out.splitlines() == model_zoo.list_configs()
    name = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"
    assert cli.main(["configs", "--path", name]) == 0
    assert capsys.readouterr().out.strip() == model_zoo.get_config_file(name)
    assert cli.main(["configs", "--path", "COCO/mask_rcnn_lift_vitdet_b_100epochs"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and name in captured.err


def test_configs_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs"]) == 0
    printed = capsys.readouterr().out
    firsts = [line.split()[0] for line in printed.splitlines() if line]
    assert [first for first in firsts if "/" in first and first.endswith((".py", ".yaml"))] == model_zoo.list_configs()
    assert "GFLOPs" in printed and "torch" in printed.splitlines()[-1]
    assert cli.main(["configs", "--format", "github"]) == 0
    assert capsys.readouterr().out.startswith("| config ")
    assert cli.main(["configs", "--device", "cpu"]) == 2
    assert "belong to --measure" in capsys.readouterr().err


def test_configs_measures_one_here(capsys: pytest.CaptureFixture[str]) -> None:
    name = "quick_schedules/mask_rcnn_lift_synthetic_cpu.py"
    assert cli.main(["configs", "--measure", name, "--device", "cpu"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(name)]
    assert f" {model_zoo.read_measurements()[name]['parameters'] / 1e6:.1f} " in row
    assert cli.main(["configs", "--measure", "COCO/absent"]) == 1
    assert "There is no config 'COCO/absent'" in capsys.readouterr().err


def test_doctor_finds_nothing_wrong_here(clean_environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The environment that `make install` makes; no data, no weights and perhaps no GPU are notes."""
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("Nothing found that would break training.")
    assert torch.__version__ in printed and "with ViTDet" in printed
    assert "$DETECTRON2_DATASETS is not set" in printed


def test_doctor_counts_data_and_weights(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, weights = clean_environment / "data", clean_environment / "w"
    for name in ("coco/train2017/a.jpg", "coco/train2017/b.JPG", "coco/train2017/notes.txt", "coco/val2017/a.jpg"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    (data / "coco" / "annotations").mkdir()
    (data / "coco" / "annotations" / "instances_train2017.json").write_text("{}")
    (data / "imagenet_mini" / "train" / "n01").mkdir(parents=True)
    (data / "imagenet_mini" / "train" / "n01" / "x.png").touch()
    weights.mkdir()
    (weights / "lift.safetensors").write_bytes(bytes(2**20))
    (weights / "readme.txt").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    monkeypatch.setenv("LIFT_DET_WEIGHTS", str(weights))
    findings = doctor.examine()
    assert problems(findings) == []
    assert value_of(findings, "coco train2017").startswith("2 images, instances_train2017.json")
    assert value_of(findings, "coco val2017") == "incomplete"
    assert value_of(findings, "imagenet_mini train") == "1 images"
    assert value_of(findings, "imagenet_mini val") == "-"
    assert value_of(findings, "lift.safetensors") == "1.0 MiB"
    assert "instances_val2017.json is missing" in doctor.format_report(findings)


@pytest.mark.parametrize("variable", ["DETECTRON2_DATASETS", "LIFT_DET_WEIGHTS"])
def test_doctor_fails_on_a_variable_that_names_no_folder(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, str(clean_environment / "absent"))
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    problem, todo = printed.splitlines()[-2:]
    assert f"${variable} is" in problem and "absent" in problem
    assert todo.strip().startswith("-> ") and variable in todo
    assert "1 problem that would break training" in printed


def test_doctor_fails_on_torchvision_operators(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", missing)
    (problem, *_) = problems(doctor.examine())
    assert "operator torchvision::nms does not exist" in problem

    # One that runs but is wrong is found too.
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, scores, iou_threshold: torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match=r"kept \[0, 1, 2\]"):
        doctor.check_torchvision_ops("cpu")


@pytest.mark.parametrize(
    ("distribution", "version", "problem"),
    [
        ("omegaconf", "2.4.0.dev3", "lift_det needs omegaconf<2.4,>=2.1; 2.4.0.dev3 is installed."),
        ("setuptools", "81.0.0", "lift_det needs setuptools<81; 81.0.0 is installed."),
        ("timm", "1.0.9", "lift_det needs timm>=1.0.20; 1.0.9 is installed."),
        ("yacs", "", "lift_det needs yacs>=0.1.8; it is not installed."),
    ],
)
def test_doctor_fails_on_versions_out_of_range(
    monkeypatch: pytest.MonkeyPatch, distribution: str, version: str, problem: str
) -> None:
    requirements = [
        "omegaconf>=2.1,<2.4",
        "setuptools<81",
        "timm>=1.0.20",
        "yacs>=0.1.8",
        'pytest>=999; extra == "dev"',
    ]
    installed = {"omegaconf": "2.3.1", "setuptools": "80.10.2", "timm": "1.0.31", "yacs": "0.1.8"}
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(doctor, "_distribution_version", lambda name, default="": installed[name])
    assert problems({"": list(doctor._requirements())}) == []
    installed[distribution] = version
    assert problems({"": list(doctor._requirements())}) == [problem]


def test_a_check_that_raises_is_a_problem_and_hides_no_other() -> None:
    def _boiler() -> None:
        raise OSError("cold")

    (finding,) = doctor._run_check(_boiler)
    assert finding.problem == "Looking at boiler raised OSError: cold."


def run_command(*arguments: str, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """`lift-det ARGUMENTS` as its script starts it, in a fresh interpreter where `before` has run."""
    source = f"{textwrap.dedent(before)}\nimport sys, lift_det_cli\nsys.exit(lift_det_cli.main({list(arguments)!r}))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | variables
    environment = {k: v for k, v in environment.items() if k not in ("DETECTRON2_DATASETS", "LIFT_DET_WEIGHTS")}
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment)


def test_doctor_runs_without_detectron2() -> None:
    process = run_command("doctor", before="import sys; sys.modules['detectron2'] = None")
    assert process.returncode == 1, process.stderr
    assert "1 problem that would break training" in process.stdout
    assert "python tools/install_detectron2.py" in process.stdout
    assert "Traceback" not in process.stdout + process.stderr


def test_doctor_runs_with_a_detectron2_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").touch()
    process = run_command("doctor", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert process.returncode == 1, process.stderr
    assert f"the one in {tmp_path / 'detectron2'} has no modeling/backbone/vit.py" in process.stdout


def test_doctor_runs_without_torch() -> None:
    process = run_command("doctor", before="import sys; sys.modules['torch'] = None")
    assert process.returncode == 1, process.stderr
    assert "torch is not installed." in process.stdout and "python -m pip install torch" in process.stdout


def test_doctor_runs_without_pkg_resources() -> None:
    process = run_command("doctor", before="import sys; sys.modules['pkg_resources'] = None")
    assert process.returncode == 1, process.stderr
    assert "python -m pip install 'setuptools<81'" in process.stdout


def test_other_subcommands_say_what_is_missing_without_a_traceback() -> None:
    process = run_command("configs", before="import sys; sys.modules['detectron2'] = None")
    assert process.returncode == 1
    assert "sal-detectron2" in process.stderr and "lift-det doctor" in process.stderr
    assert "Traceback" not in process.stderr


def test_help_imports_no_torch() -> None:
    before = """
    import atexit, sys
    atexit.register(lambda: print("torch imported:", "torch" in sys.modules))
    """
    process = run_command("doctor", "--help", before=before)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("torch imported: False\n")
