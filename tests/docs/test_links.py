"""What the documentation points to is there: links, headings, pictures, files, configs, Python names."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from lift_det import model_zoo
from tests.docs.commands import ROOT, blocks, documents, inline_code

DOCUMENTS = [*documents(), "CHANGELOG.md"]
# The checkout's folders: a path that starts with one of them is meant to be there.
FOLDERS = ("configs", "docs", "lift_det", "projects", "tests", "tools")


def prose(document: str) -> str:
    """A document without its blocks of code."""
    return "\n\n".join(block.text for block in blocks((ROOT / document).read_text("utf-8")) if block.form == "text")


def spans(document: str) -> list[str]:
    """What stands in backticks in running text."""
    text = (ROOT / document).read_text("utf-8")
    return [span for block in blocks(text) if block.form == "text" for _, span in inline_code(block)]


def anchors(document: Path) -> set[str]:
    """The headings of a document as GitHub names them in links."""
    headings = re.findall(r"^#+ +(.*)$", prose(document.relative_to(ROOT).as_posix()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_pictures(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)(?: \"[^\"]*\")?\)|src=\"([^\"]+)\"", prose(document)):
        link = target[0] or target[1]
        if re.match(r"(https?|mailto):", link):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors(path.resolve())):
            broken.append(link)
    assert not broken, f"{document} links to {broken}, which is not there"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_configs(document: str) -> None:
    missing = set()
    text = (ROOT / document).read_text("utf-8")
    # not of an address, nor of another folder; `…` and `*` stand for several
    for path in re.findall(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/[\w./…*-]*", text):
        path = path.rstrip(".")
        if not re.search("[…*]", path) and not (ROOT / path).exists():
            missing.add(path)
    for name in re.findall(
        r"(?<![\w.])(?:quick_schedules/|COCO/)?(?:cascade_)?mask_rcnn_\w+", " ".join(spans(document))
    ):
        if not list((ROOT / "configs").rglob(f"{name}.*")):
            missing.add(name)
    assert not missing, f"{document} names {sorted(missing)}, which are not there"


@pytest.mark.parametrize("document", documents())
def test_python_names(document: str) -> None:
    wrong = []
    # not the OmegaConf resolver `${lift_det.iterations:…}`
    for name in re.findall(r"(?<![\w./{-])lift_det(?:\.[A-Za-z_]\w*)+(?![\w/]|\.\w)", " ".join(spans(document))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            wrong.append(name)
    assert not wrong, f"{document} speaks of {wrong}, which cannot be imported"


@pytest.mark.parametrize("document", documents())
def test_configs_by_name(document: str) -> None:
    """Names as `model_zoo.get_config` and `lift-det` take them, in code, too."""
    text = (ROOT / document).read_text("utf-8")
    for name in re.findall(r"(?<![\w/])(?:COCO|LiFT|quick_schedules)/\w+(?:\.py|\.yaml)?(?![\w…*])", text):
        assert Path(model_zoo.get_config_file(name)).is_file()
