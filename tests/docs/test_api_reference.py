"""`make docs` makes a page for lift_det and each of its packages, with every public name and its docstring."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.commands import ROOT

# lift_det.cli is described by `lift-det --help`
PACKAGES = [
    "lift_det",
    *(
        f"lift_det.{path.parent.name}"
        for path in sorted(ROOT.glob("lift_det/*/__init__.py"))
        if path.parent.name != "cli"
    ),
]


def public(package: str) -> dict[str, object]:
    """The public names of a package, without modules."""
    module = importlib.import_module(package)
    names = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in names.items() if not isinstance(value, ModuleType)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    folder = tmp_path_factory.mktemp("api")
    # -o: the environment is as it is
    command = [make, "-o", "install", "docs", f"VENV_PYTHON={sys.executable}", f"DOCS={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lift_det" not in done.stderr, done.stderr  # pdoc's warnings name what they are about
    return folder


def page(pages: Path, package: str) -> str:
    return (pages / f"{package.replace('.', '/')}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package: str) -> None:
    assert importlib.import_module(package).__doc__
    bare = []
    for name, value in public(package).items():
        if inspect.isclass(value) or inspect.isfunction(value):
            # of its own: that of a parent says what the parent does, and a dataclass gets its signature
            docstring = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
            if not docstring or docstring.startswith(f"{name}("):
                bare.append(name)
    assert not bare


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_the_page_with_its_docstring(pages: Path, package: str) -> None:
    text = page(pages, package)
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, re.DOTALL))
    assert list(sections) == list(public(package))
    for name, value in public(package).items():
        if inspect.isclass(value) or inspect.isfunction(value):
            shown = re.search(r'<div class="docstring">(.*?)</div>', sections[name], re.DOTALL)
            assert shown, name
            # its first words, as far as nothing is marked up in them
            first = re.match(r"[\w ]*", inspect.getdoc(value) or "")[0].strip()
            assert first in re.sub(r"<[^>]*>|&#39;", "", shown[1]), name


def test_docstrings_are_rendered(pages: Path) -> None:
    """No role and no mark of reStructuredText is left as it was typed; sections and cross-references are there."""
    for package in PACKAGES:
        for shown in re.findall(r'<div class="docstring">(.*?)</div>', page(pages, package), re.DOTALL):
            raw = re.sub(r"<(pre|code)\b.*?</\1>", "", shown, flags=re.DOTALL)
            assert not re.search(r":[a-z]+:`|`|::|^\s*(Args|Returns|Raises):", raw, re.MULTILINE), f"{package}: {shown}"
    modeling = page(pages, "lift_det.modeling")
    assert "<h6" in modeling and '<a href="#build_upsampler">' in modeling
    # a block of code after `::`
    assert re.search(r"In a config:\s*</p>\s*<pre><code>train\.hooks", page(pages, "lift_det.engine"))


def test_every_package_is_found_from_the_first_page(pages: Path) -> None:
    assert "lift_det.html" in (pages / "index.html").read_text(encoding="utf-8")
    first = page(pages, "lift_det")
    for package in PACKAGES[1:]:
        assert f'href="{package.replace(".", "/")}.html"' in first
    # and lift_det.config, a module that lift_det names
    there = {path.stem for path in (pages / "lift_det").iterdir()}
    assert there == {"config", *(package.split(".")[1] for package in PACKAGES[1:])}
