"""Files that are looked at before they are put where they belong."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def staged(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a place beside ``path`` to write a file of its name to; it is moved there if nothing is raised.

    What else is written beside it moves too, and first, so that the file itself is never there without.

    Raises:
        OSError: the folder is not there or cannot be written.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        yield Path(folder) / path.name
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(file, path.with_name(file.name))
