"""Imports go one way (DESIGN: the rooms), and importing lift_det registers names and does nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lift_det"

# layers, checkpoint -> modeling -> engine, evaluation -> cli; data stands alone. Each room: the rooms it may import.
ALLOWED_ROOMS: dict[str, set[str]] = {
    "layers": set(),
    "checkpoint": set(),
    "data": set(),
    "modeling": {"layers", "checkpoint"},
    "engine": {"layers", "checkpoint", "modeling", "data"},
    "evaluation": {"layers", "checkpoint", "modeling", "data"},
    "export": {"layers", "modeling"},
    "model_zoo": set(),
    "cli": {
        "layers",
        "checkpoint",
        "modeling",
        "engine",
        "evaluation",
        "data",
        "export",
        "model_zoo",
        "requirements_check",
    },
    "requirements_check": set(),
    "version": set(),
    "files": set(),
}
# Inside a function only: what the model zoo needs once a config is asked for, and a config asked for by its name.
ALLOWED_LAZILY: dict[str, set[str]] = {
    "model_zoo": {"modeling", "engine"},
    "engine": {"model_zoo"},
    "cli": {"lift_det"},
}
# The version is a constant; files are written in one way, with the standard library alone.
ALLOWED_EVERYWHERE = {"version", "files"}
# Top-level names outside lift_det: nothing imports these ...
FORBIDDEN_OUTSIDE = {"tools", "configs", "projects", "tests", "lift_det_cli"}
# ... and these rooms import nothing but the standard library and what is listed.
ONLY_OUTSIDE: dict[str, set[str]] = {
    "layers": {"torch", "triton"},
    "requirements_check": set(),
    "version": set(),
    "files": set(),
}


@dataclass(frozen=True)
class Import:
    """One imported module: `module` absolute and dotted, `lazy` if it happens inside a function."""

    path: Path
    line: int
    module: str
    lazy: bool


def walk_imports(package: Path) -> Iterator[Import]:
    """Every import statement of a package named lift_det, as the modules it names; relative ones are resolved."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        # "from . import x" means the folder, for an __init__.py as for any other file in it
        folder = parts[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        lazy_nodes = {id(inner) for function in functions for inner in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = folder[: len(folder) - node.level + 1] if node.level else ()
                prefix = ".".join((*base, *([node.module] if node.module else [])))
                # "from lift_det import modeling" names a module, "from lift_det.modeling import ViT" does not, and
                # which it is does not matter: the room is the second part of either.
                modules = [f"{prefix}.{alias.name}" for alias in node.names]
            else:
                continue
            for module in modules:
                yield Import(path, node.lineno, module, id(node) in lazy_nodes)


def room_of(module: str, package: Path) -> str:
    """The room a dotted name in lift_det belongs to: a folder or file of the package, else `lift_det` itself."""
    parts = module.split(".")
    if len(parts) > 1 and ((package / parts[1]).is_dir() or (package / f"{parts[1]}.py").is_file()):
        return parts[1]
    return "lift_det"


def violations(package: Path) -> list[str]:
    """What breaks the rules above, one sentence each."""
    found = []
    for item in walk_imports(package):
        relative = item.path.relative_to(package)
        importer = relative.parts[0].removesuffix(".py")
        where = f"lift_det/{relative}:{item.line} imports {item.module}"
        top = item.module.split(".")[0]
        if top in FORBIDDEN_OUTSIDE:
            found.append(f"{where}: nothing in lift_det imports {top}")
        if top != "lift_det":
            allowed = ONLY_OUTSIDE.get(importer)
            if allowed is not None and top not in allowed and top not in sys.stdlib_module_names:
                found.append(f"{where}: {importer} imports only {sorted(allowed) or 'the standard library'}")
            if top == "triton" and "triton" not in item.path.stem:
                found.append(f"{where}: only a file named triton imports triton, so that the rest runs without it")
            continue
        if importer == "__init__":
            continue  # lift_det itself gathers all rooms
        if importer not in ALLOWED_ROOMS:
            found.append(f"{where}: the room {importer} is not in ALLOWED_ROOMS")
            continue
        room = room_of(item.module, package)
        allowed = ALLOWED_ROOMS[importer] | {importer} | ALLOWED_EVERYWHERE
        if item.lazy:
            allowed = allowed | ALLOWED_LAZILY.get(importer, set())
        if room not in allowed:
            found.append(f"{where}: {importer} may import {sorted(allowed)}, not {room}")
    return found


def test_imports_go_one_way() -> None:
    assert violations(PACKAGE) == []


def test_the_allowed_edges_themselves_have_no_cycle() -> None:
    def reach(room: str, seen: tuple[str, ...] = ()) -> None:
        assert room not in seen, f"a cycle: {' -> '.join((*seen, room))}"
        for other in ALLOWED_ROOMS[room]:
            reach(other, (*seen, room))

    for room in ALLOWED_ROOMS:
        reach(room)


def test_walker_sees_the_package() -> None:
    imports = list(walk_imports(PACKAGE))
    assert any(item.module == "lift_det.modeling.lift.LiFT" for item in imports), "relative imports are not resolved"
    assert any(item.lazy and item.path.parent.name == "model_zoo" for item in imports), "lazy imports are not seen"


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("modeling/bad.py", "from lift_det.engine import train", "not engine"),
        ("modeling/bad.py", "from ..engine.train import do_train", "not engine"),
        ("modeling/bad.py", "from .. import engine", "not engine"),
        ("modeling/bad.py", "import lift_det.engine.train", "not engine"),
        ("modeling/bad.py", "from lift_det import LiFT", "not lift_det"),
        ("modeling/bad.py", "def f():\n    from lift_det import cli", "not cli"),
        ("modeling/bad.py", "if True:\n    import triton", "only a file named triton"),
        ("modeling/deep/er/bad.py", "from ....data import ImageFolder", "not data"),
        ("data/bad.py", "from lift_det.checkpoint import files", "not checkpoint"),
        ("model_zoo/bad.py", "from lift_det.modeling import add_lift_config", "not modeling"),
        ("layers/bad.py", "import detectron2.layers", "layers imports only"),
        ("layers/bad.py", "import numpy as np", "layers imports only"),
        ("engine/bad.py", "from tools.quickstart import main", "nothing in lift_det imports tools"),
        ("engine/bad.py", "import projects.segmentation", "nothing in lift_det imports projects"),
        ("newroom/bad.py", "from lift_det.modeling import LiFT", "not in ALLOWED_ROOMS"),
    ],
)
def test_planted_bad_edge_is_caught(tmp_path: Path, file: str, source: str, message: str) -> None:
    package = _planted_package(tmp_path, file, source)
    found = violations(package)
    assert len(found) == 1 and message in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("modeling/good.py", "from ..checkpoint import files\nfrom . import lift\nimport detectron2.projects"),
        ("model_zoo/good.py", "def f():\n    from lift_det.modeling import add_lift_config"),
        ("layers/op/triton.py", "import math\nimport torch\nimport triton.language as tl\nfrom .reference import op"),
        ("cli/good.py", "from lift_det.version import __version__\ndef f():\n    import lift_det"),
    ],
)
def test_good_edges_pass(tmp_path: Path, file: str, source: str) -> None:
    assert violations(_planted_package(tmp_path, file, source)) == []


def _planted_package(tmp_path: Path, file: str, source: str) -> Path:
    package = tmp_path / "lift_det"
    for room in ("layers", "checkpoint", "data", "modeling", "engine", "evaluation", "model_zoo", "cli"):
        (package / room).mkdir(parents=True)
    (package / "version.py").write_text('__version__ = "0"\n')
    path = package / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return package


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    """Run source in a fresh interpreter that finds lift_det in this checkout, on the CPU."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(source)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


def test_import_changes_no_global_state() -> None:
    """No seeding, no TF32, no CUDA, no threads, no output (STYLE, habit 4)."""
    process = run_python(
        """
        import random
        import numpy, torch
        # Its own import is not ours to judge, and lift_det has to import it.
        import detectron2.modeling, timm

        def state():
            return {
                "torch seed": torch.initial_seed(),
                "torch random state": torch.get_rng_state().tolist(),
                "python random state": random.getstate(),
                "numpy random state": [part.tolist() if hasattr(part, "tolist") else part
                                       for part in numpy.random.get_state()],
                "matmul TF32": torch.backends.cuda.matmul.allow_tf32,
                "cuDNN TF32": torch.backends.cudnn.allow_tf32,
                "cuDNN benchmark": torch.backends.cudnn.benchmark,
                "cuDNN deterministic": torch.backends.cudnn.deterministic,
                "matmul precision": torch.get_float32_matmul_precision(),
                "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
                "SDPA backends": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
                                  torch.backends.cuda.mem_efficient_sdp_enabled()),
                "default dtype": torch.get_default_dtype(),
                "gradients": torch.is_grad_enabled(),
                "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
                "CUDA initialised": torch.cuda.is_initialized(),
            }

        before = state()
        import lift_det
        after = state()
        changed = [name for name in before if before[name] != after[name]]
        assert not changed, changed
        assert not after["CUDA initialised"]
        """
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == ""


def test_import_works_without_triton() -> None:
    process = run_python(
        """
        import sys
        sys.modules["triton"] = None
        import lift_det
        from detectron2.modeling import BACKBONE_REGISTRY
        assert "build_lift_vitdet_backbone" in BACKBONE_REGISTRY
        """
    )
    assert process.returncode == 0, process.stderr


def test_import_without_detectron2_names_the_command() -> None:
    process = run_python(
        """
        import sys
        sys.modules["detectron2"] = None
        import lift_det
        """
    )
    assert process.returncode == 1
    last_lines = process.stderr[process.stderr.rindex("ImportError: ") :]
    assert "python tools/install_detectron2.py" in last_lines
    assert "sal-detectron2==" in last_lines and "--no-deps" in last_lines and "--target" in last_lines


def test_requirements_check_tells_the_cases_apart(tmp_path: Path) -> None:
    """Not installed, a mere folder, too old, without pkg_resources, and fine; without importing torch or detectron2."""
    old = tmp_path / "old" / "detectron2"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    new = tmp_path / "new" / "detectron2"
    (new / "modeling" / "backbone").mkdir(parents=True)
    (new / "model_zoo").mkdir()
    (new / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (new / "modeling" / "backbone" / "vit.py").touch()
    (new / "model_zoo" / "model_zoo.py").write_text("import os\nimport pkg_resources\n")
    (tmp_path / "folder" / "detectron2").mkdir(parents=True)
    process = run_python(
        f"""
        import sys
        sys.path = [path for path in sys.path if "site-packages" not in path]
        from importlib.util import module_from_spec, spec_from_file_location
        spec = spec_from_file_location("check", {str(PACKAGE / "requirements_check.py")!r})
        check = module_from_spec(spec)
        spec.loader.exec_module(check)

        def problem(folder):
            sys.path.insert(0, folder)
            try:
                return check.detectron2_problem()
            finally:
                sys.path.pop(0)

        assert "which is not installed" in check.detectron2_problem()
        assert "which is not installed" in problem({str(tmp_path / "folder")!r})
        assert "0.6 or older" in problem({str(old.parent)!r})
        sys.modules["pkg_resources"] = None
        assert "setuptools<81" in problem({str(new.parent)!r})
        import types
        sys.modules["pkg_resources"] = types.ModuleType("pkg_resources")
        sys.modules["pkg_resources"].__spec__ = spec
        assert problem({str(new.parent)!r}) is None
        assert "torch" not in sys.modules and "detectron2" not in sys.modules
        """
    )
    assert process.returncode == 0, process.stderr
