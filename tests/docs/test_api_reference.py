"""`make docs` makes a page for lift_det and each of its rooms, on which every public name stands with its docstring."""

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
ROOMS = [
    "lift_det",
    *(
        f"lift_det.{path.parent.name}"
        for path in sorted(ROOT.glob("lift_det/*/__init__.py"))
        if path.parent.name != "cli"
    ),
]


def public(room: str) -> dict[str, object]:
    """What a room offers, but for other rooms."""
    module = importlib.import_module(room)
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


def page(pages: Path, room: str) -> str:
    return (pages / f"{room.replace('.', '/')}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_docstring(room: str) -> None:
    assert importlib.import_module(room).__doc__
    bare = []
    for name, value in public(room).items():
        if inspect.isclass(value) or inspect.isfunction(value):
            # of its own: that of a parent says what the parent does, and a dataclass gets its signature
            docstring = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
            if not docstring or docstring.startswith(f"{name}("):
                bare.append(name)
    assert not bare


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_on_the_page_with_its_docstring(pages: Path, room: str) -> None:
    text = page(pages, room)
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, re.DOTALL))
    assert list(sections) == list(public(room))
    for name, value in public(room).items():
        if inspect.isclass(value) or inspect.isfunction(value):
            shown = re.search(r'<div class="docstring">(.*?)</div>', sections[name], re.DOTALL)
            assert shown, name
            # its first words, as far as nothing is marked up in them
            first = re.match(r"[\w ]*", inspect.getdoc(value) or "")[0].strip()
            assert first in re.sub(r"<[^>]*>|&#39;", "", shown[1]), name


def test_docstrings_are_rendered(pages: Path) -> None:
    """No role and no mark of reStructuredText is left as it was typed; sections and cross-references are there."""
    for room in ROOMS:
        for shown in re.findall(r'<div class="docstring">(.*?)</div>', page(pages, room), re.DOTALL):
            raw = re.sub(r"<(pre|code)\b.*?</\1>", "", shown, flags=re.DOTALL)
            assert not re.search(r":[a-z]+:`|`|::|^\s*(Args|Returns|Raises):", raw, re.MULTILINE), f"{room}: {shown}"
    modeling = page(pages, "lift_det.modeling")
    assert "<h6" in modeling and '<a href="#check_lift">' in modeling
    # a block of code after `::`
    assert re.search(r"In a config:\s*</p>\s*<pre><code>train\.hooks", page(pages, "lift_det.engine"))


def test_every_room_is_found_from_the_first_page(pages: Path) -> None:
    assert "lift_det.html" in (pages / "index.html").read_text(encoding="utf-8")
    first = page(pages, "lift_det")
    for room in ROOMS[1:]:
        assert f'href="{room.replace(".", "/")}.html"' in first
    assert {path.stem for path in (pages / "lift_det").iterdir()} == {room.split(".")[1] for room in ROOMS[1:]}
