"""The wheel is complete and works, requirements fit the pins, and detectron2 is installed safely."""

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
DIST_INFO = f"lift_det-{__version__}.dist-info"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, because pip builds in the source tree, with additional configs and an old build."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "lift_det_cli.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("lift_det", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    added = folder / "configs" / "added"
    (added / "deeper").mkdir(parents=True)
    (added / "parent.py").write_text("train = dict(max_iter=7)\nunused = dict(a=1)\n")
    (added / "deeper" / "child.py").write_text("from ..parent import train\n\ntrain.max_iter += 1\n")
    (added / "yacs.yaml").write_text("SOLVER:\n  MAX_ITER: 9\n")
    stale = folder / "build/lib/lift_det/model_zoo/configs/COCO/removed_since_the_last_build.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("train = dict()\n")
    return folder


@pytest.fixture(scope="module")
def unpacked(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    process = subprocess.run([*command, "-w", str(folder), str(sources)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def requirements(unpacked: Path) -> list[Requirement]:
    metadata = email.message_from_string((unpacked / DIST_INFO / "METADATA").read_text(encoding="utf-8"))
    return [Requirement(text) for text in metadata.get_all("Requires-Dist")]


def files_in(folder: Path, *suffixes: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in suffixes}


def test_wheel_has_the_configs_and_the_package(sources: Path, unpacked: Path) -> None:
    packed = files_in(unpacked / "lift_det/model_zoo/configs", ".py", ".yaml")
    assert packed == files_in(sources / "configs", ".py", ".yaml")
    assert {"COCO/mask_rcnn_lift_vitdet_b_100ep.py", "added/deeper/child.py", "added/yacs.yaml"} <= packed
    assert {path.name for path in unpacked.iterdir()} == {"lift_det", "lift_det_cli.py", DIST_INFO}
    modules = files_in(sources / "lift_det", ".py")
    assert modules <= files_in(unpacked / "lift_det", ".py")
    assert (unpacked / DIST_INFO / "licenses/LICENSE").is_file()
    assert "lift-det = lift_det_cli:main" in (unpacked / DIST_INFO / "entry_points.txt").read_text()


def test_wheel_works_from_another_folder(unpacked: Path, tmp_path: Path) -> None:
    source = f"""
    import lift_det
    from lift_det import model_zoo

    assert lift_det.__file__.startswith({str(unpacked)!r}), lift_det.__file__
    name = "COCO/mask_rcnn_lift_vitdet_b_100ep.py"
    assert model_zoo.get_config_file(name).startswith({str(unpacked)!r})
    assert model_zoo.get_config(name).model.backbone.lift._target_ is lift_det.modeling.LazyUpsampler
    assert model_zoo.get_config("added/deeper/child.py").train.max_iter == 8
    assert model_zoo.get_config("added/yacs.yaml").SOLVER.MAX_ITER == 9
    assert "added/yacs.yaml" in model_zoo.list_configs()
    """
    environment = os.environ | {"PYTHONPATH": str(unpacked), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


def test_requirements_and_pins(requirements: list[Requirement]) -> None:
    names = {requirement.name for requirement in requirements}
    assert {"torch", "torchvision", "timm", "pycocotools", "omegaconf", "setuptools"} <= names
    assert not any("detectron2" in name for name in names)  # the package index has none with ViTDet
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    for requirement in requirements:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## .*\b{re.escape(__version__)}\b", changelog, re.MULTILINE)


def install_detectron2(**variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "install_detectron2.py")]
    environment = os.environ | {"PIP_NO_INDEX": "1"} | variables  # nothing can be installed
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_install_detectron2_keeps_an_installed_one() -> None:
    process = install_detectron2()
    assert process.returncode == 0, process.stderr
    assert "nothing to do" in process.stdout


def test_install_detectron2_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    old = tmp_path / "detectron2"
    old.mkdir()
    (old / "__init__.py").write_text("__version__ = '0.6'\n")
    process = install_detectron2(PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    assert str(old) in process.stderr and "pip uninstall detectron2" in process.stderr
    assert [path.name for path in old.iterdir()] == ["__init__.py"]
