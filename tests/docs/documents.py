"""Reads commands, Python blocks and inline code from the documentation."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATHS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "docs/tour.ipynb")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "projects").glob("*/README.md")),
]
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in PATHS]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# Environment variables may stand before the program, and a folder in its name.
_COMMAND = re.compile(r"(?:\w+=\S+ +)*((?:\S*/)?(?:lift-det|make|python|srun|torchrun) .*)")


def read(document: str) -> str:
    """The Markdown text of a document; of a notebook, its Markdown cells."""
    text = (ROOT / document).read_text(encoding="utf-8")
    if not document.endswith(".ipynb"):
        return text
    cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def prose(document: str) -> str:
    """The text without fenced blocks."""
    return _FENCE.sub("", read(document))


def inline_code(document: str) -> list[str]:
    """What stands between backticks in the prose, line breaks replaced by spaces."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(document))]


def python_blocks(document: str) -> list[str]:
    return [textwrap.dedent(block) for _, language, block in _FENCE.findall(read(document)) if language == "python"]


def commands(document: str) -> list[str]:
    """Command lines in shell blocks, indented blocks and inline code, continuation lines joined."""
    blocks = [block for _, language, block in _FENCE.findall(read(document)) if language in ("bash", "sh")]
    blocks += re.findall(r"(?:^ {4}.*\n?)+", prose(document), re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + inline_code(document)
    found = [_COMMAND.fullmatch(" ".join(line.split())) for line in lines if "…" not in line]
    return list(dict.fromkeys(match[1] for match in found if match))
