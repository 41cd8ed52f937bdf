"""The order of imports between the packages of lift_det."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lift_det"

# The packages and modules of lift_det that each one may import; they have to precede it.
IMPORTS: dict[str, set[str]] = {
    "version": set(),
    "files": set(),
    "requirements_check": set(),
    "layers": set(),
    "checkpoint": set(),
    "results": {"files", "version"},
    "data": {"files"},
    "modeling": {"files", "layers", "checkpoint"},
    "visualization": {"files", "results"},
    "evaluation": {"files", "results", "data"},
    "config": {"modeling"},
    "engine": {"files", "checkpoint", "data", "modeling", "visualization", "evaluation", "config"},
    "model_zoo": {"config", "engine"},
    "export": {"version", "layers", "modeling"},
}
IMPORTS["cli"] = set(IMPORTS)
# Nothing in lift_det imports these.
OUTSIDE = {"tools", "configs", "projects", "tests", "lift_det_cli"}
# The only packages, beside the standard library, that these import.
ONLY: dict[str, set[str]] = {
    "version": set(),
    "files": set(),
    "requirements_check": set(),
    "layers": {"torch", "triton", "numpy", "pycocotools"},
}


def imported_modules(path: Path, package: Path) -> Iterator[str]:
    """Absolute names of all imports of a file, including those inside functions."""
    folder = path.relative_to(package.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            yield from (".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names)


def violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        importer = path.relative_to(package).parts[0].removesuffix(".py")
        for module in imported_modules(path, package):
            top, _, rest = module.partition(".")
            imported = rest.split(".")[0]
            message = f"{path.relative_to(package.parent)} imports {module}"
            if top == "lift_det":
                # lift_det/__init__.py imports everything, and the command may import from it
                allowed = IMPORTS.get(importer, set(IMPORTS)) | {importer}
                known = (package / imported).is_dir() or (package / f"{imported}.py").exists()
                if importer != "__init__" and (imported not in allowed if known else importer != "cli"):
                    found.append(message)
            elif top in OUTSIDE or (top not in ONLY.get(importer, {top}) and top not in sys.stdlib_module_names):
                found.append(message)
            elif top == "triton" and path.stem != "triton":
                found.append(f"{message}: only files named triton.py may, so that the rest runs without Triton")
    return found


def test_imports_follow_the_table():
    assert violations(PACKAGE) == []


def test_table_is_ordered_and_complete():
    names = list(IMPORTS)
    for name, imported in IMPORTS.items():
        assert all(names.index(other) < names.index(name) for other in imported - {name}), name
    present = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert present - {"__init__", "__pycache__"} == set(IMPORTS)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("modeling/bad.py", "from lift_det.engine import train"),
        ("modeling/deep/bad.py", "from ...data import ImageFolder"),
        ("modeling/bad.py", "def f():\n    from .. import engine"),
        ("modeling/bad.py", "from lift_det import LiFT"),
        ("modeling/bad.py", "if True:\n    import triton"),
        ("layers/bad.py", "import detectron2.layers"),
        ("engine/bad.py", "from tools.quickstart import main"),
    ],
)
def test_wrong_imports_are_found(tmp_path, file, source):
    package = tmp_path / "lift_det"
    for name in IMPORTS:
        (package / name).mkdir(parents=True)
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(source)
    assert len(violations(package)) == 1
