"""Atomic file writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], None]) -> None:
    """Writes a file so that ``path`` has either the old content or the whole new one.

    Args:
        path: the file; its folder must exist.
        write: called with the open binary file.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is unchanged.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; these are the permissions that open() would give
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text in UTF-8; see :func:`write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))
