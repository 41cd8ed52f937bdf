"""Imports in lift_det go one way: the table below."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lift_det"

# Each package or module of lift_det, and what of lift_det it may import: only what stands above it.
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
    "evaluation": {"files", "results", "data", "visualization"},
    "config": {"modeling"},
    "engine": {"files", "checkpoint", "data", "modeling", "visualization", "evaluation", "config"},
    "model_zoo": {"config", "engine"},
    "export": {"version", "layers", "modeling"},
}
IMPORTS["cli"] = set(IMPORTS)
# Nothing in lift_det imports these ...
OUTSIDE = {"tools", "configs", "projects", "tests", "lift_det_cli"}
# ... and these import nothing but the standard library and what is listed.
ONLY: dict[str, set[str]] = {
    "version": set(),
    "files": set(),
    "requirements_check": set(),
    "layers": {"torch", "triton"},
}


def imported_modules(path: Path, package: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, inside functions too; relative imports are resolved."""
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
            where = f"{path.relative_to(package.parent)} imports {module}"
            if top == "lift_det":
                # lift_det itself gathers everything, and the command imports from it
                allowed = IMPORTS.get(importer, set(IMPORTS)) | {importer}
                known = (package / imported).is_dir() or (package / f"{imported}.py").exists()
                if importer != "__init__" and (imported not in allowed if known else importer != "cli"):
                    found.append(where)
            elif top in OUTSIDE or (top not in ONLY.get(importer, {top}) and top not in sys.stdlib_module_names):
                found.append(where)
            elif top == "triton" and path.stem != "triton":
                found.append(f"{where}: only a file named triton.py may, so that the rest runs without it")
    return found


def test_imports_go_one_way():
    assert violations(PACKAGE) == []


def test_the_table_has_one_direction_and_every_package():
    names = list(IMPORTS)
    for name, imported in IMPORTS.items():
        assert all(names.index(other) < names.index(name) for other in imported - {name}), name
    there = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert there - {"__init__", "__pycache__"} == set(IMPORTS)


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
        ("visualization/bad.py", "from lift_det.evaluation import COCOEvaluator"),
    ],
)
def test_a_planted_import_is_caught(tmp_path, file, source):
    package = tmp_path / "lift_det"
    for name in IMPORTS:
        (package / name).mkdir(parents=True)
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(source)
    assert len(violations(package)) == 1
