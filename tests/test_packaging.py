"""What `pip install` delivers: the wheel has the configs and works from any folder; the stated ranges fit together."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lift_det.version import __version__

ROOT = Path(__file__).resolve().parents[1]
CONFIGS_IN_WHEEL = "lift_det/model_zoo/configs/"
STALE = "configs/COCO/removed_since_the_last_build.py"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from: pip builds in the source tree, and this one is to stay as it is."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in", "lift_det_cli.py"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    for name in ("lift_det", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    planted = folder / "configs" / "planted"
    (planted / "deeper").mkdir(parents=True)
    (planted / "parent.py").write_text("train = dict(max_iter=7)\nunused = dict(a=1)\n")
    (planted / "deeper" / "child.py").write_text("from ..parent import train\n\ntrain.max_iter += 1\n")
    (planted / "yacs.yaml").write_text("SOLVER:\n  MAX_ITER: 9\n")
    # As an earlier build would have left it.
    stale = folder / "build" / "lib" / "lift_det" / "model_zoo" / STALE
    stale.parent.mkdir(parents=True)
    stale.write_text("train = dict()\n")
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    process = subprocess.run([*command, "-w", str(folder), str(sources)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_wheel_has_exactly_the_configs_of_the_sources(sources: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {n.removeprefix(CONFIGS_IN_WHEEL) for n in archive.namelist() if n.startswith(CONFIGS_IN_WHEEL)}
    on_disk = {
        path.relative_to(sources / "configs").as_posix()
        for path in (sources / "configs").rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    assert packed == on_disk
    assert "COCO/mask_rcnn_lift_vitdet_b_100ep.py" in packed
    assert {"planted/parent.py", "planted/deeper/child.py", "planted/yacs.yaml"} <= packed


def test_wheel_has_the_package_and_nothing_beside_it(sources: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "lift_det",
        "lift_det_cli.py",
        f"lift_det-{__version__}.dist-info",
    }
    modules = {path.relative_to(sources).as_posix() for path in (sources / "lift_det").rglob("*.py")}
    modules.add("lift_det/model_zoo/measurements.json")  # what `lift-det configs` shows
    assert modules <= set(names), f"not in the wheel (an __init__.py missing?): {sorted(modules - set(names))}"
    assert f"lift_det-{__version__}.dist-info/licenses/LICENSE" in names


def test_metadata(unpacked: Path) -> None:
    folder = unpacked / f"lift_det-{__version__}.dist-info"
    metadata = email.message_from_string((folder / "METADATA").read_text(encoding="utf-8"))
    required = {Requirement(text).name for text in metadata.get_all("Requires-Dist")}
    assert {"torch", "torchvision", "timm", "pycocotools", "omegaconf", "setuptools"} <= required
    assert not any("detectron2" in name for name in required), "the package index has no detectron2 with ViTDet"
    assert "lift-det = lift_det_cli:main" in (folder / "entry_points.txt").read_text()


def test_unpacked_wheel_finds_its_configs_from_another_folder(unpacked: Path, tmp_path: Path) -> None:
    source = f"""
    import lift_det
    from lift_det import model_zoo

    assert lift_det.__file__.startswith({str(unpacked)!r}), lift_det.__file__
    name = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"
    assert model_zoo.get_config_file(name).startswith({str(unpacked)!r})
    config = model_zoo.get_config(name)
    assert config.model.backbone.lift._target_ is lift_det.modeling.LazyUpsampler
    # A relative import through two folders, and yacs.
    assert model_zoo.get_config("planted/deeper/child.py").train.max_iter == 8
    assert model_zoo.get_config("planted/yacs.yaml").SOLVER.MAX_ITER == 9
    assert "planted/yacs.yaml" in model_zoo.list_configs()
    """
    environment = os.environ | {"PYTHONPATH": str(unpacked), "PYTHONWARNINGS": "ignore"}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr


def test_constraints_pin_versions_inside_the_ranges(unpacked: Path) -> None:
    metadata = (unpacked / f"lift_det-{__version__}.dist-info" / "METADATA").read_text(encoding="utf-8")
    ranges = [Requirement(text) for text in email.message_from_string(metadata).get_all("Requires-Dist")]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    for requirement in ranges:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pinned[name]), f"{name}=={pinned[name]} is outside {requirement}"


def test_version_is_one(unpacked: Path) -> None:
    import lift_det

    assert lift_det.__version__ == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## .*\b{re.escape(__version__)}\b", changelog, re.MULTILINE)


def test_install_detectron2_keeps_the_one_that_is_there() -> None:
    process = _install_detectron2()
    assert process.returncode == 0, process.stderr
    assert "nothing to do" in process.stdout


def test_install_detectron2_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    old = tmp_path / "detectron2"
    old.mkdir()
    (old / "__init__.py").write_text("__version__ = '0.6'\n")
    process = _install_detectron2(PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    assert str(old) in process.stderr and "pip uninstall detectron2" in process.stderr
    assert [path.name for path in old.iterdir()] == ["__init__.py"]


def _install_detectron2(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "install_detectron2.py")]
    # PIP_NO_INDEX: if the script should go wrong here, it is not to install anything.
    environment = os.environ | {"PIP_NO_INDEX": "1"} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment)
