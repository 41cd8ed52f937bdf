"""Matplotlib figures as files."""

from __future__ import annotations

import io
import os

from matplotlib.figure import Figure

from lift_det.files import write_atomically


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure at its own resolution, atomically; missing folders are made.

    Args:
        figure: made without pyplot, so that it opens no window.
        path: its ending says which kind of file (.png, .pdf, .svg); none is PNG.

    Raises:
        ValueError: matplotlib cannot write that kind.
    """
    path = os.fspath(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=os.path.splitext(path)[1][1:] or "png", dpi="figure")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
