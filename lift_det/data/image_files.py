"""Finds the images and videos that command-line arguments refer to."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .video import VIDEO_SUFFIXES

#: includes formats that some installations of Pillow cannot read, so that these files are reported
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".heic", ".heif"),
)


@dataclass(frozen=True)
class InputFile:
    """An image or a video. ``name`` is its path with slashes, relative to the common folder of all inputs."""

    path: str
    name: str
    is_video: bool


def find_files(
    inputs: Sequence[str | os.PathLike], exclude: str | os.PathLike | None = None
) -> tuple[list[InputFile], list[tuple[str, str]]]:
    """Finds the files that a list of files, folders and glob patterns refers to, each once.

    Args:
        inputs: files with any suffix, folders that are searched recursively for images and videos that are not hidden,
            and patterns such as ``photos/**/*.jpg``.
        exclude: folder that is not searched.

    Returns:
        The files in the order of the inputs, sorted within each, and ``(input, reason)`` for inputs without files.
    """
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    excluded = None if exclude is None else os.path.realpath(exclude)
    paths: list[str] = []
    roots: list[str] = []
    failures: list[tuple[str, str]] = []

    def report(error: OSError) -> None:
        failures.append((str(error.filename), str(error.strerror)))

    for given in map(os.fspath, inputs):
        matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if excluded is not None and not os.path.exists(given):
            matches = [m for m in matches if not os.path.realpath(m).startswith(os.path.join(excluded, ""))]
        if not matches:
            failures.append((given, "no such file or folder, and no match as a pattern"))
        for match in matches:
            if not os.path.isdir(match):
                roots.append(os.path.dirname(match))
                paths.append(match)
                continue
            found = list(walk(match, suffixes, excluded, report))
            if found:
                roots.append(match)
                paths += found
            elif match == given:
                failures.append((given, f"no image or video in this folder (expected {', '.join(suffixes)})"))
    if not paths:
        return [], failures
    root = os.path.commonpath([os.path.abspath(path) for path in roots])
    files = {}
    for path in paths:
        absolute = os.path.abspath(path)
        name = os.path.relpath(absolute, root).replace(os.sep, "/")
        files.setdefault(absolute, InputFile(path, name, path.lower().endswith(VIDEO_SUFFIXES)))
    return list(files.values()), failures


def walk(
    root: str, suffixes: tuple[str, ...], exclude: str | None = None, on_error: Callable | None = None
) -> Iterator[str]:
    """Yields the files below a folder that are not hidden and have one of the lower-case suffixes, in any case.

    Links are followed, each folder is visited once. ``exclude`` is a real path to skip.
    """
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=on_error):
        real = os.path.realpath(folder)
        if real in seen or (real == exclude and folder != root):
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.join(folder, name)
