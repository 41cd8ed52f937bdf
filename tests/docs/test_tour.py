"""docs/tour.ipynb runs from top to bottom and shows what it showed when it was saved.

python -m tests.docs.test_tour    # runs it and saves its outputs
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.docs.documents import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def execute(folder: Path) -> NotebookNode:
    """Runs the notebook offline, in a folder of its own."""
    env = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(folder)}
    # Without kernel folders the manager uses this interpreter.
    manager = AsyncKernelManager(
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), connection_file=str(folder / "kernel.json")
    )
    notebook = nbformat.read(TOUR, as_version=4)
    (folder / "home").mkdir()
    resources = {"metadata": {"path": str(folder / "home")}}
    client = NotebookClient(notebook, km=manager, resources=resources, record_timing=False, coalesce_streams=True)
    client.execute(cleanup_kc=True, env={**os.environ, **env})  # stops the kernel at the end
    return notebook


def output_kinds(notebook: NotebookNode) -> list[list[str]]:
    """The streams and MIME types that each code cell shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [[output.get("name") or " ".join(sorted(output.data)) for output in cell.outputs] for cell in cells]


@pytest.mark.slow
def test_tour_runs(tmp_path: Path) -> None:
    notebook, saved = execute(tmp_path), nbformat.read(TOUR, as_version=4)
    assert output_kinds(notebook) == output_kinds(saved)
    assert not list((tmp_path / "home").iterdir())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home|usr|opt)/|site-packages", TOUR.read_text())
    # Untrained, LiFT is bilinear upsampling; trained, it is better.
    assert "LiFT - bilinear: 0.0\n" in text
    cosine = ast.literal_eval(re.search(r"^\{'bicubic'.*\}$", text, re.MULTILINE)[0])
    assert cosine["lift"] > cosine["bilinear"] + 0.01
    # The exported model and torch.
    differences = [float(number) for number in re.findall(r"(\S+) relative", text)]
    assert differences and max(differences) < 1e-4


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        executed = execute(Path(folder))
    executed.metadata.language_info = {"name": "python"}  # without this machine's version
    nbformat.write(executed, TOUR)
