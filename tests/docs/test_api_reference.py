"""`make docs` builds a page for lift_det and each of its packages, with every public name and its docstring."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.documents import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_api_reference(tmp_path: Path) -> None:
    # -o: the environment is installed already
    command = ["make", "-o", "install", "docs", f"VENV_PYTHON={sys.executable}", f"DOCS={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "lift_det" not in done.stderr, done.stderr  # pdoc's warnings name the module
    folders = {path.parent.name for path in ROOT.glob("lift_det/*/__init__.py")} - {"cli"}
    for package in ["lift_det", *(f"lift_det.{name}" for name in sorted(folders))]:
        page = (tmp_path / f"{package.replace('.', '/')}.html").read_text(encoding="utf-8")
        sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                # A class's own docstring: neither its parent's nor a dataclass's signature.
                docstring = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
                assert docstring and not docstring.startswith(f"{name}("), f"{package}.{name} has no docstring"
                assert '<div class="docstring">' in sections[name], name
        for shown in re.findall(r'<div class="docstring">(.*?)</div>', page, re.DOTALL):
            text = re.sub(r"<(pre|code)\b.*?</\1>", "", shown, flags=re.DOTALL)
            assert not re.search(r":[a-z]+:`|`|::|^\s*(Args|Returns|Raises):", text, re.MULTILINE), shown
