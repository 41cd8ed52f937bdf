"""`lift-det doctor`: what is installed, which fast paths work here, where data and weights are, and what is wrong.

Every check runs on its own and turns whatever is raised into a finding: this runs where things are broken.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lift_det.requirements_check import SETUPTOOLS_INSTALL_COMMAND, detectron2_folder, detectron2_problem

_EPILOG = """\
examples:
  lift-det doctor
  DETECTRON2_DATASETS=/data LIFT_DET_WEIGHTS=/data/weights lift-det doctor
  lift-det doctor && python tools/lazyconfig_train_net.py --config-file CONFIG

The exit code is 1 if something would break training. No GPU, or no data yet, is a note and not a failure.
"""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
# Checked where lift_det runs from a folder without being installed, and so without a list of what it needs.
_FALLBACK_REQUIREMENTS = ("omegaconf<2.4", "timm>=1.0.20")
_MAX_WEIGHT_FILES = 20
# What the report calls it, what is imported, what pip calls it.
_PACKAGES = (
    ("torch", "torch", "torch"),
    ("torchvision", "torchvision", "torchvision"),
    ("timm", "timm", "timm"),
    ("pycocotools", "pycocotools.mask", "pycocotools"),
    ("numpy", "numpy", "numpy"),
    ("opencv", "cv2", "opencv-python-headless"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        value: what was found.
        problem: what it breaks; empty if nothing. A finding with a problem makes the exit code 1.
        note: what a person may want to know about it although it breaks nothing.
        todo: what to do about the problem or the note.
    """

    name: str
    value: str
    problem: str = ""
    note: str = ""
    todo: str = ""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add `doctor` to the command."""
    parser = subparsers.add_parser(
        "doctor",
        help="examine the environment: versions, GPU, fast paths, data, weights",
        description="Prints what lift_det finds in this environment, and for each problem what to do about it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if there is a problem in it."""
    findings = examine()
    print(format_report(findings))
    return int(any(finding.problem for section in findings.values() for finding in section))


def examine() -> dict[str, list[Finding]]:
    """All findings, by section."""
    sections: dict[str, tuple[Callable[[], Iterable[Finding]], ...]] = {
        "Environment": (_system, _packages, _detectron2, _trainer, _requirements, _lift_det),
        "Devices": (_devices,),
        "Fast paths": (_torchvision_ops, _attention, _triton, _precision),
        "Data and weights": (_datasets, _weights),
    }
    return {title: [f for check in checks for f in _run_check(check)] for title, checks in sections.items()}


def format_report(findings: dict[str, list[Finding]]) -> str:
    """The findings as a table for each section, then the notes, then the problems, each with what to do."""
    everything = [finding for section in findings.values() for finding in section]
    width = max(len(finding.name) for finding in everything)
    lines = []
    for title, section in findings.items():
        lines += [title, *(f"  {finding.name:<{width}}  {finding.value}" for finding in section), ""]
    notes = [finding for finding in everything if finding.note]
    problems = [finding for finding in everything if finding.problem]
    if notes:
        lines += ["Notes", *_with_todo((finding.note, finding.todo) for finding in notes), ""]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines += [f"{count} that would break training", *_with_todo((f.problem, f.todo) for f in problems)]
    else:
        lines += ["Nothing found that would break training."]
    return "\n".join(lines)


def _with_todo(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    for text, todo in entries:
        first, *rest = text.splitlines()
        yield f"  - {first}"
        yield from (f"    {line}" for line in rest)
        if todo:
            yield f"    -> {todo}"


def _run_check(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a check must not hide the others' findings
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(name, "could not be examined", problem=f"Looking at {name} raised {_describe(error)}.")


def _describe(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _try_import(name: str) -> ModuleType | Exception | None:
    """The module, what importing it raised, or None where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken package raises anything: OSError for a library, RuntimeError for an op
        return error


# Environment ---------------------------------------------------------------------------------------------------------


def _system() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("OS", f"{platform.platform()}, {os.cpu_count()} CPU cores")


def _packages() -> Iterator[Finding]:
    """Versions of what matters most, by importing it: an installed package may still not load."""
    for label, module_name, requirement in _PACKAGES:
        # find_spec of "a.b" imports a, which may not be there
        missing = importlib.util.find_spec(module_name.partition(".")[0]) is None
        module = None if missing else _try_import(module_name)
        if module is None:
            todo = f"python -m pip install {requirement}"
            yield Finding(label, "not installed", problem=f"{label} is not installed.", todo=todo)
        elif isinstance(module, Exception):
            yield Finding(
                label,
                "does not import",
                problem=f"{label} is installed but does not import: {_describe(module)}.",
                todo=_import_todo(label, requirement),
            )
        else:
            yield Finding(label, getattr(module, "__version__", None) or _distribution_version(requirement))
    yield Finding("triton", _distribution_version("triton", "not installed"))
    has_pkg_resources = importlib.util.find_spec("pkg_resources") is not None
    version = _distribution_version("setuptools", "not installed")
    yield Finding("setuptools", f"{version}, {'with' if has_pkg_resources else 'without'} pkg_resources")


def _import_todo(label: str, requirement: str) -> str:
    if label == "torchvision":
        return (
            "torch and torchvision are built for each other: install both in one command, "
            "`python -m pip install --upgrade torch torchvision` (constraints.txt has a tested pair)"
        )
    if label == "opencv":
        return (
            "where libGL is missing: python -m pip uninstall opencv-python && "
            "python -m pip install --force-reinstall opencv-python-headless"
        )
    return f"python -m pip install --force-reinstall {requirement}"


def _distribution_version(distribution: str, default: str = "version unknown") -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return default


def _detectron2() -> Iterator[Finding]:
    folder = detectron2_folder()
    problem = detectron2_problem()
    if problem is not None:
        yield Finding("detectron2", "missing" if folder is None else f"not usable, in {folder}", problem=problem)
        return
    module = _try_import("detectron2")
    if not isinstance(module, ModuleType):
        yield Finding(
            "detectron2",
            f"does not import, in {folder}",
            problem=f"detectron2 is installed but does not import: {_describe(module)}.",
            todo="see the other problems first; if there is none, install lift_det again, which carries its needs",
        )
        return
    yield Finding("detectron2", f"{module.__version__} with ViTDet ({folder})")


def _trainer() -> Iterator[Finding]:
    folder = detectron2_folder()
    if folder is None:
        return
    # Beside the package both in site-packages, where the wheel puts it, and in a clone installed with `pip install -e`.
    path = folder.parent / "tools" / "lazyconfig_train_net.py"
    if path.is_file():
        yield Finding("detectron2's trainer", str(path))
    else:
        yield Finding(
            "detectron2's trainer",
            "not found",
            note=f"detectron2's own tools/lazyconfig_train_net.py is not beside the package ({path.parent}).",
            todo="use lift_det's tools/lazyconfig_train_net.py, or take detectron2's from its repository",
        )


def _requirements() -> Iterator[Finding]:
    """What lift_det's metadata asks for and is not there, or is of a wrong version."""
    try:
        # Already parsed by pip when it installed lift_det: setup.py's list is the only one.
        from packaging.requirements import Requirement
    except ImportError:
        todo = "python -m pip install packaging"
        yield Finding("requirements", "not checked", problem="The package 'packaging' is missing.", todo=todo)
        return
    try:
        listed, where = importlib.metadata.requires("lift_det") or [], ""
    except importlib.metadata.PackageNotFoundError:
        listed, where = list(_FALLBACK_REQUIREMENTS), " (the most important: lift_det itself is not installed)"
    unmet, checked = [], 0
    for requirement in map(Requirement, listed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        version = _distribution_version(requirement.name, "")
        if not version and any(requirement.name == distribution for _, _, distribution in _PACKAGES):
            continue  # _packages has said so; and any cv2 will do, from opencv-python or from the system
        if not version or not requirement.specifier.contains(version, prereleases=True):
            unmet.append((requirement, version))
    yield Finding("requirements", f"{checked} checked, {len(unmet)} unmet{where}")
    for requirement, version in unmet:
        wanted = f"{requirement.name}{requirement.specifier}"
        is_setuptools = requirement.name == "setuptools"
        yield Finding(
            f"  {requirement.name}",
            version or "not installed",
            problem=f"lift_det needs {wanted}; {f'{version} is installed' if version else 'it is not installed'}.",
            todo=SETUPTOOLS_INSTALL_COMMAND if is_setuptools else f"python -m pip install '{wanted}'",
        )


def _lift_det() -> Iterator[Finding]:
    module = importlib.import_module("lift_det")
    # lift_det_cli.py leaves it there when the package could not be imported.
    error = getattr(module, "__import_error__", None)
    folder = Path(module.__path__[0])
    if error is None:
        yield Finding("lift_det", f"{module.__version__} ({folder})")
    elif detectron2_problem() == str(error):
        yield Finding("lift_det", f"does not import without detectron2 ({folder})")
    else:
        yield Finding(
            "lift_det",
            f"does not import ({folder})",
            problem=f"`import lift_det` raises {_describe(error)}.",
            todo="see the other problems first; this is often what follows from them",
        )


# Devices and fast paths ----------------------------------------------------------------------------------------------


def _torch() -> ModuleType | None:
    module = _try_import("torch")
    return module if isinstance(module, ModuleType) else None


def _devices() -> Iterator[Finding]:
    torch = _torch()
    if torch is None:
        yield Finding("GPU", "unknown without torch")
        return
    if not torch.cuda.is_available():
        built = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        yield Finding(
            "GPU",
            f"none (torch {built})",
            note="No GPU: training and evaluation run on the CPU, with configs that say so.",
            todo="configs/quick_schedules/ and *_cpu configs need no overrides; others want train.device=cpu",
        )
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        yield Finding(
            f"GPU {index}",
            f"{properties.name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, "
            f"compute capability {properties.major}.{properties.minor}",
        )


def _device_names() -> list[str]:
    torch = _torch()
    if torch is None:
        return []
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _torchvision_ops() -> Iterator[Finding]:
    """Run NMS and ROIAlign, which detectron2 takes from torchvision: a torchvision of another build loads without."""
    for device in _device_names():
        name = f"torchvision NMS, ROIAlign ({device})"
        try:
            check_torchvision_ops(device)
        except Exception as error:  # RuntimeError, NotImplementedError or an import error, by what is broken
            yield Finding(
                name,
                "do not work",
                problem=f"torchvision's operators do not work on '{device}': {_describe(error)}.",
                todo=_import_todo("torchvision", "torchvision"),
            )
        else:
            yield Finding(name, "work")


def check_torchvision_ops(device: str) -> None:
    """Run NMS and ROIAlign on inputs whose results are known.

    Raises:
        RuntimeError: a result is wrong. Whatever torchvision raises if an operator is missing comes through too.
    """
    import torch
    from torchvision.ops import nms, roi_align

    # (3, 4) as x0, y0, x1, y1 in pixels: the second is a copy of the first, the third lies elsewhere
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0], [4.0, 4.0, 6.0, 6.0]], device=device)
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)
    if kept.tolist() != [0, 2]:
        raise RuntimeError(f"nms kept {kept.tolist()} of three boxes where it should keep [0, 2]")
    pooled = roi_align(torch.ones(1, 1, 8, 8, device=device), [boxes[2:]], output_size=2, aligned=True)
    if pooled.shape != (1, 1, 2, 2) or not torch.allclose(pooled, torch.ones_like(pooled)):
        raise RuntimeError(f"roi_align of a map of ones gave {pooled.flatten().tolist()}")


def _attention() -> Iterator[Finding]:
    """Run SDPA with each of PyTorch's fused backends, in the dtype in which it is used there."""
    for device in _device_names():
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        half = torch.bfloat16 if _has_bf16(device) else torch.float16
        query = torch.ones(1, 1, 16, 64, device=device, dtype=torch.float32 if device == "cpu" else half)
        backends = {"flash": SDPBackend.FLASH_ATTENTION}
        if device == "cuda":
            backends |= {"memory-efficient": SDPBackend.EFFICIENT_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
        working = []
        for label, backend in backends.items():
            try:
                with sdpa_kernel(backend):
                    scaled_dot_product_attention(query, query, query)
                working.append(label)
            except RuntimeError:  # "No available kernel": PyTorch then uses another
                continue
        dtype = str(query.dtype).removeprefix("torch.")
        fused = f"fused: {', '.join(working)}" if working else "no fused kernel"
        yield Finding(f"SDPA ({device})", f"{fused} ({dtype})")


def _triton() -> Iterator[Finding]:
    module = _try_import("triton")
    torch = _torch()
    if module is None:
        yield Finding("Triton kernels", "unavailable: triton is not installed; the other backends are used")
    elif isinstance(module, Exception):
        yield Finding("Triton kernels", f"unavailable: triton does not import ({_describe(module)})")
    elif torch is None or not torch.cuda.is_available():
        yield Finding("Triton kernels", "unavailable: they need a GPU (TRITON_INTERPRET=1 runs them slowly, for tests)")
    else:
        yield Finding("Triton kernels", f"available (triton {module.__version__})")


def _has_bf16(device: str) -> bool:
    """Whether bfloat16 is worth using: any CPU computes it; a GPU has it in hardware from compute capability 8.0."""
    import torch

    return device == "cpu" or torch.cuda.get_device_capability()[0] >= 8


def _precision() -> Iterator[Finding]:
    if "cuda" in _device_names():
        yield Finding("bfloat16 (cuda)", "yes" if _has_bf16("cuda") else "no: compute capability below 8.0")
        yield Finding("AMP training", "available (train.amp.enabled=True)")
    else:
        yield Finding("AMP training", "unavailable: detectron2's AMP trainer needs a GPU")


# Data and weights ----------------------------------------------------------------------------------------------------


def _folder_from(variable: str, default: str) -> tuple[Path, list[Finding]]:
    """The folder that an environment variable names, with a finding that is a problem if it is set but not there."""
    value = os.environ.get(variable)
    folder = Path(value or default).expanduser()
    shown = f"{folder.absolute()} ({'set' if value else f'not set: ./{default}'})"
    if folder.is_dir():
        return folder, [Finding(f"${variable}", shown)]
    missing = f"{shown}, which does not exist"
    todo = f"point ${variable} at the folder that has them, or make it"
    if value:
        problem = f"${variable} is '{value}', and there is no such folder."
        return folder, [Finding(f"${variable}", missing, problem=problem, todo=todo)]
    note = f"${variable} is not set and there is no folder '{default}' here."
    return folder, [Finding(f"${variable}", missing, note=note, todo=todo)]


def _datasets() -> Iterator[Finding]:
    root, findings = _folder_from("DETECTRON2_DATASETS", "datasets")
    yield from findings
    if not root.is_dir():
        return
    for split in ("train2017", "val2017"):
        annotations = root / "coco" / "annotations" / f"instances_{split}.json"
        yield _detection_split(f"coco {split}", root / "coco" / split, annotations)
    for split in ("train", "val"):
        annotations = root / "synthetic" / "annotations" / f"instances_{split}.json"
        yield _detection_split(f"synthetic {split}", root / "synthetic" / split, annotations)
    for split in ("train", "val"):
        folder = root / "imagenet_mini" / split
        count = _count_images(folder)
        yield Finding(f"imagenet_mini {split}", "-" if count is None else f"{count:,} images")


def _detection_split(name: str, images: Path, annotations: Path) -> Finding:
    count = _count_images(images)
    if count is None and not annotations.is_file():
        return Finding(name, "-")
    if count is None or not annotations.is_file():
        missing = images if count is None else annotations
        return Finding(
            name,
            "incomplete",
            note=f"{name}: {missing} is missing.",
            todo="detectron2 expects images and annotations in COCO's own layout (its datasets/README.md shows it)",
        )
    size = annotations.stat().st_size / 2**20
    return Finding(name, f"{count:,} images, {annotations.name} ({size:.1f} MiB)")


def _count_images(folder: Path) -> int | None:
    """How many images are in a folder and the folders in it; None where there is no such folder."""
    if not folder.is_dir():
        return None
    # os.walk and not rglob: train2017 has 118,000 files.
    return sum(name.lower().endswith(_IMAGE_SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def _weights() -> Iterator[Finding]:
    folder, findings = _folder_from("LIFT_DET_WEIGHTS", "weights")
    yield from findings
    if not folder.is_dir():
        return
    files = sorted(path for path in folder.rglob("*") if path.suffix in _WEIGHT_SUFFIXES and path.is_file())
    if not files:
        yield Finding("  files", "none")
    for path in files[:_MAX_WEIGHT_FILES]:
        yield Finding(f"  {path.relative_to(folder)}", f"{path.stat().st_size / 2**20:,.1f} MiB")
    if len(files) > _MAX_WEIGHT_FILES:
        yield Finding("  …", f"and {len(files) - _MAX_WEIGHT_FILES} more")
