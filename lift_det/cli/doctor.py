"""Checks the environment, and explains how to solve problems.

examples:
  lift-det doctor
  DETECTRON2_DATASETS=/data LIFT_DET_WEIGHTS=/data/weights lift-det doctor

It also runs if detectron2 or torch cannot be imported. The exit code is 1 if there is a problem that would break
training. A missing GPU and missing data are not problems.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from lift_det.requirements_check import detectron2_folder, detectron2_problem

#: name and value, or name, value, problem and remedy
Finding = tuple[str, object] | tuple[str, object, str, str]
_INSTALL_TORCH = "install torch and torchvision together: python -m pip install --upgrade torch torchvision"
_REMEDIES = {
    "torch": _INSTALL_TORCH,
    "torchvision": _INSTALL_TORCH,
    "cv2": "python -m pip install --force-reinstall opencv-python-headless (which needs no libGL)",
}
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the report, and returns 1 if there is a problem."""
    problems = []
    for check in (check_packages, check_requirements, check_detectron2, check_operators, check_datasets, check_weights):
        try:
            for name, value, *problem in check():
                print(f"{name:<32}{value}")
                problems += [problem] if problem else []
        except Exception as error:  # the other checks have to run
            problems.append((f"{check.__name__} failed: {_text(error)}", "report this as a bug of lift_det"))
    if not problems:
        print("\nNo problems found.")
        return 0
    print(f"\nProblems that would break training: {len(problems)}. The first may cause the others.")
    for problem, remedy in problems:
        print("  - " + problem.replace("\n", "\n    ") + (f"\n    -> {remedy}" if remedy else ""))
    return 1


def check_packages() -> Iterator[Finding]:
    """Reports detectron2's environment info, and whether the most important packages can be imported."""
    try:
        from detectron2.utils.collect_env import collect_env_info

        yield "detectron2's report", f"\n{collect_env_info()}"
    except Exception:  # the other checks report the reason
        yield "Python", f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"
    for name in ("torch", "torchvision", "timm", "pycocotools.mask", "cv2"):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken library may raise any error
            remedy = _REMEDIES.get(name, f"python -m pip install --force-reinstall {name.partition('.')[0]}")
            yield name, "cannot be imported", f"{name} cannot be imported: {_text(error)}", remedy
        else:
            yield name, getattr(module, "__version__", "can be imported")
    yield "triton", "installed" if importlib.util.find_spec("triton") else "not installed: other kernels are used"


def check_requirements() -> Iterator[Finding]:
    """Compares versions with lift_det's requirements."""
    from packaging.requirements import Requirement

    try:
        requirements = importlib.metadata.requires("lift_det") or []
    except importlib.metadata.PackageNotFoundError:
        yield "requirements", "not checked, because lift_det is not installed as a package"
        return
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None and requirement.name.startswith("opencv"):
            continue  # other packages contain cv2, too
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            problem = f"lift_det needs {requirement}, found {version or 'none'}."
            yield requirement.name, version or "not installed", problem, f"python -m pip install '{requirement}'"


def check_detectron2() -> Iterator[Finding]:
    """Checks detectron2, its training script, and whether lift_det can be imported."""
    folder, problem = detectron2_folder(), detectron2_problem()
    if problem:
        yield "detectron2", folder or "not installed", problem, ""
    else:
        # the same place in site-packages and in a clone
        script = folder.parent / "tools" / "lazyconfig_train_net.py"
        yield "detectron2", folder
        yield "detectron2's training script", script if script.is_file() else f"{script} does not exist"
    package = importlib.import_module("lift_det")
    error = getattr(package, "__import_error__", None)  # of lift_det_cli.py
    if error is not None and str(error) != problem:
        yield "lift_det", package.__path__[0], f"lift_det cannot be imported: {_text(error)}", ""
    else:
        yield "lift_det", package.__path__[0]


def check_operators() -> Iterator[Finding]:
    """Runs torchvision's NMS and ROIAlign, which fail if torchvision was built for another torch."""
    try:
        import torch
        from torchvision.ops import nms, roi_align
    except Exception:  # check_packages reports it
        return
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if len(devices) == 1:
        yield "GPU", "none; configs other than quick_schedules/ and *_cpu need train.device=cpu"
    for device in devices:
        name = f"NMS and ROIAlign on {device}"
        try:
            # the second box is a copy of the first
            boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 6.0, 6.0]], device=device)
            kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5).tolist()
            pooled = roi_align(torch.ones(1, 1, 8, 8, device=device), [boxes[2:]], output_size=2, aligned=True)
            if kept != [0, 2] or not torch.allclose(pooled, torch.ones_like(pooled)):
                raise RuntimeError(f"wrong results: NMS keeps {kept}, not [0, 2], or ROIAlign of ones is not one")
            yield name, "work"
        except Exception as error:
            yield name, "fail", f"torchvision's operators fail on {device}: {_text(error)}", _INSTALL_TORCH


def check_datasets() -> Iterator[Finding]:
    """Lists the datasets in ``$DETECTRON2_DATASETS``, and whether COCO is complete."""
    folder = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    yield _folder_finding("DETECTRON2_DATASETS", folder)
    if folder.is_dir():
        yield "  datasets", ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
    for split in ("train2017", "val2017") if (folder / "coco").is_dir() else ():
        images, annotations = folder / "coco" / split, folder / "coco" / "annotations" / f"instances_{split}.json"
        missing = [str(path) for path in (images, annotations) if not path.exists()]
        yield f"  coco {split}", f"missing: {', '.join(missing)}" if missing else f"{len(os.listdir(images))} images"


def check_weights() -> Iterator[Finding]:
    """Lists the files in ``$LIFT_DET_WEIGHTS``."""
    folder = Path(os.environ.get("LIFT_DET_WEIGHTS") or "weights").expanduser()
    yield _folder_finding("LIFT_DET_WEIGHTS", folder)
    for path in sorted(folder.rglob("*")):
        if path.suffix in _WEIGHT_SUFFIXES:
            yield f"  {path.relative_to(folder)}", f"{path.stat().st_size / 2**20:.1f} MiB"


def _folder_finding(variable: str, folder: Path) -> Finding:
    """A missing folder is a problem only if the variable is set."""
    value = os.environ.get(variable)
    text = f"{folder.absolute()}{'' if value else ' (default)'}{'' if folder.is_dir() else ', does not exist'}"
    if value and not folder.is_dir():
        problem = f"${variable} is '{value}', which is not a folder."
        return f"${variable}", text, problem, "create it, or correct the path"
    return f"${variable}", text


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
