"""Commands, Python blocks, links and names in the documentation are valid."""

from __future__ import annotations

import argparse
import ast
import pkgutil
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lift_det import config
from lift_det.cli import SUBCOMMANDS, build_parser
from tests.docs.documents import DOCUMENTS, ROOT, commands, inline_code, prose, python_blocks, read

CONFIG = re.compile(r"(?:configs/)?(?:COCO|LiFT|quick_schedules)/\w+(?:\.py|\.yaml)?")
OVERRIDE = re.compile(r"(model|train|dataloader|optimizer|lr_multiplier)\.[\w.\[\]]+=.*")
CHECKOUT_PATH = re.compile(r"(?<![\w/.:-])(?:configs|docs|lift_det|projects|tests|tools)/[\w./…*-]*")
# Of blocks that need files or pretrained weights only the imports run.
NEEDS_FILES = re.compile(r"\.jpg|\.json|output/\w+\"|pretrained=True|^dataloader\.", re.MULTILINE)


class Parsed(Exception):
    """Raised by a tool's parser after it accepted the arguments, so that the tool does not run."""


def parse_only(parse: Callable[..., argparse.Namespace]) -> Callable[..., None]:
    def wrapper(*args: Any, **kwargs: Any) -> None:
        raise Parsed(parse(*args, **kwargs))

    return wrapper


def check_tool(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a script or a module up to its parser."""
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, parse_only(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(sys, "argv", arguments)
    if not arguments[0].endswith(".py"):
        with pytest.raises(Parsed):
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif "parse" in Path(arguments[0]).read_text():
        monkeypatch.syspath_prepend(Path(arguments[0]).parent)
        with pytest.raises(Parsed):
            runpy.run_path(arguments[0], run_name="__main__")


@pytest.mark.parametrize(("document", "command"), [(name, line) for name in DOCUMENTS for line in commands(name)])
def test_command(document: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program's own parser accepts it, and its config exists and takes its overrides."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    program, arguments = Path(words[0]).name, words[1:]
    tool = next((i for i, word in enumerate(words) if word.startswith(("tools/", "projects."))), None)
    overrides = [word for word in words if OVERRIDE.fullmatch(word)]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets)
    elif program == "lift-det" and len(arguments) == 1:  # the name of a subcommand
        assert arguments[0] in {module.__name__.split(".")[-1] for module in SUBCOMMANDS}
    elif program == "lift-det":
        _, rest = build_parser().parse_known_args(arguments)
        assert set(rest) <= set(overrides), f"unrecognized arguments: {rest}"
    elif tool is not None:
        check_tool(words[tool:], monkeypatch)
    for name in filter(CONFIG.fullmatch, words):
        config.load(name, overrides)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for block in python_blocks(document):
        tree = ast.parse(block)
        if name := re.match(r"# (\w+\.py)\n", block):  # another block imports it
            (tmp_path / name[1]).write_text(block)
        if NEEDS_FILES.search(block):
            tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(tree, document, "exec"), {"__name__": "block"})


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_paths_and_names(document: str) -> None:
    missing = []
    for name, anchor in re.findall(r"\]\(([^()\s#]*)(?:#([^()\s]+))?\)", prose(document)):
        path = ((ROOT / document).parent / name).resolve() if name else ROOT / document
        headings = re.findall(r"^#+ +(.*)$", path.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}  # as on GitHub
        if not name.startswith("http") and not (path.exists() and (not anchor or anchor in anchors)):
            missing.append(f"{name}#{anchor}")
    for path in CHECKOUT_PATH.findall(read(document)):
        if not re.search("[…*]", path) and not (ROOT / path.rstrip(".")).exists():
            missing.append(path)
    code = " ".join(inline_code(document))
    shipped = {Path(name).stem for name in config.list_configs()}
    missing += {name for name in re.findall(r"\b(?:cascade_)?mask_rcnn_\w+", code) if name not in shipped}
    for name in re.findall(r"(?<![\w./{-])lift_det(?:\.[A-Za-z_]\w*)+(?![\w/]|\.\w)", code):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing, f"{document} names what does not exist: {missing}"
