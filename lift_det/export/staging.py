"""Writes to a temporary directory, validates, then moves."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path to write to, in a temporary directory beside ``path``; the file is moved if nothing is raised.

    Other files in that directory are moved too, and first, so that the file never exists without them.

    Raises:
        OSError: the folder is not there or cannot be written.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder) / path.name
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))
