"""docs/tour.ipynb runs from top to bottom, and shows what it gives.

python -m tests.docs.test_tour    # runs it, and keeps what it gives in it
"""

from __future__ import annotations

import ast
import os
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from lift_det.cli import SUBCOMMANDS, build_parser
from tests.docs.commands import ROOT, snippets

TOUR = ROOT / "docs" / "tour.ipynb"


def read() -> NotebookNode:
    return nbformat.read(TOUR, as_version=4)


def execute(folder: Path) -> NotebookNode:
    """The notebook, run by this interpreter in an empty ``folder/home``, with ``folder/tmp`` for temporary files."""
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DETECTRON2", "LIFT_DET", "TQDM", "ORT"))
    }
    env |= {
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(folder / "tmp"),
        # nothing is fetched
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    }
    # without folders of kernels it knows one, the interpreter that it runs in
    manager = AsyncKernelManager(
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), connection_file=str(folder / "kernel.json")
    )
    notebook = read()
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder / "home")}},
    )
    client.execute(cleanup_kc=True, env=env)  # or it would leave the kernel running, which it did not make
    return notebook


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: NotebookNode) -> str:
    """What its cells print."""
    return "".join(output.text for cell in code(notebook) for output in cell.outputs if output.output_type == "stream")


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """What each cell shows: a stream's name, or what an output is of."""
    return [[out.get("name") or " ".join(sorted(out.data)) for out in cell.outputs] for cell in code(notebook)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[NotebookNode, Path]:
    folder = tmp_path_factory.mktemp("tour")
    return execute(folder), folder


@pytest.mark.slow
def test_it_shows_what_it_says(ran: tuple[NotebookNode, Path]) -> None:
    text = printed(ran[0])
    assert sum("image/jpeg" in kind for cell in kinds(ran[0]) for kind in cell) == 4
    # untrained, LiFT is bilinear upsampling; trained, it is better
    assert "'vit': (128, 8, 8)" in text and "'lift': (128, 16, 16)" in text
    assert "LiFT - bilinear: 0.0\n" in text
    cosine = ast.literal_eval(re.search(r"^\{'bicubic'.*\}$", text, re.MULTILINE)[0])
    assert cosine["lift"] > cosine["bilinear"] + 0.01
    for way, seen, start in (
        ("ViTDet", "(16, 24)", "(16, 24)"),
        ("dense", "(16, 24)", "(32, 48)"),
        ("fast", "(8, 12)", "(16, 24)"),
    ):
        assert f"{way:6}  ViT's map {seen}, the pyramid starts from {start}\n" in text
    assert "'p2': (1, 64, 64, 96)" in text
    for fault in ("nowhere.jpg", "annotation 11 of image 3", "annotation 21 of image 5", "annotation 31 of image 8"):
        assert fault in text
    assert "4 classes (model.roi_heads.num_classes)" in text
    assert re.search(r"\| boxes \| +\d", text)
    differences = [float(number) for number in re.findall(r"(\S+) relative", text)]
    assert len(differences) == 3 and max(differences) < 1e-4


@pytest.mark.slow
def test_it_leaves_nothing_behind(ran: tuple[NotebookNode, Path]) -> None:
    _, folder = ran
    assert not list((folder / "home").iterdir())
    assert not list((folder / "tmp").iterdir())


@pytest.mark.slow
def test_what_is_shipped_is_what_it_gives(ran: tuple[NotebookNode, Path]) -> None:
    shipped = read()
    assert kinds(shipped) == kinds(ran[0])
    assert [cell.execution_count for cell in code(shipped)] == list(range(1, len(code(shipped)) + 1))


def test_what_is_shipped_is_small_and_of_no_machine() -> None:
    shipped = read()
    assert TOUR.stat().st_size < 400_000
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home|usr|opt)/|site-packages", printed(shipped))
    assert all("stderr" not in kind for cell in kinds(shipped) for kind in cell)


def test_its_commands_are_commands() -> None:
    text = "\n\n".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    commands = [
        shlex.split(found.text)[1:] for found in snippets("docs/tour.ipynb", text) if found.program == "lift-det"
    ]
    assert len(commands) > 2
    for command in commands:
        if len(command) == 1:  # one that the text speaks of
            assert command[0] in {subcommand.__name__.rsplit(".")[-1] for subcommand in SUBCOMMANDS}
        else:
            build_parser().parse_known_args(command)


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(Path(folder))
    notebook.metadata.language_info = {"name": "python"}  # without this machine's version
    nbformat.write(notebook, TOUR)


if __name__ == "__main__":
    main()
