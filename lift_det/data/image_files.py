"""What `IMAGE|FOLDER|GLOB|VIDEO` on a command line means, as a list of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .video import VIDEO_SUFFIXES

#: what is taken for an image in a folder; those that Pillow cannot read here are then named, not passed over
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".avif", ".heic", ".heif"),
)


@dataclass(frozen=True)
class InputFile:
    """A file to look at.

    Attributes:
        path: where it is.
        name: the path from the folder that all inputs have in common, with forward slashes: no two files share one.
        is_video: by its suffix.
    """

    path: str
    name: str
    is_video: bool


def find_files(
    inputs: Sequence[str | os.PathLike], exclude: str | os.PathLike | None = None
) -> tuple[list[InputFile], list[tuple[str, str]]]:
    """The images and videos that a list of files, folders and patterns names, each once.

    Args:
        inputs: a file is taken whatever its name; of a folder, at any depth, what has the suffix of an image or a
            video; hidden ones are passed over there. What is neither is a pattern such as ``photos/**/*.jpg``.
        exclude: a folder in which a search finds nothing: that of the results.

    Returns:
        The files, in the order of the inputs and sorted in each; and what came to nothing, ``(input, reason)``.
    """
    paths: list[str] = []
    roots, failures = [], []

    def unreadable(error: OSError) -> None:
        failures.append((str(error.filename), str(error.strerror)))

    hidden_from_search = None if exclude is None else os.path.realpath(exclude)
    for given in map(os.fspath, inputs):
        matches = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if hidden_from_search is not None and not os.path.exists(given):
            matches = [match for match in matches if not _is_in(match, hidden_from_search)]
        if not matches:
            failures.append((given, "there is no such file or folder, and as a pattern it matches none"))
        for match in matches:
            if os.path.isdir(match):
                found = list(walk(match, IMAGE_SUFFIXES + VIDEO_SUFFIXES, hidden_from_search, unreadable))
                if found:
                    roots.append(match)
                    paths += found
                elif match == given:
                    suffixes = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
                    failures.append((given, f"no image or video in this folder (looked for {suffixes})"))
            else:
                roots.append(os.path.dirname(match))
                paths.append(match)
    if not paths:
        return [], failures
    # Names from the folder in common cannot collide, as those from each input's own could.
    root = os.path.commonpath([os.path.abspath(path) for path in roots])
    files = {}
    for path in paths:
        absolute = os.path.abspath(path)
        name = os.path.relpath(absolute, root).replace(os.sep, "/")
        files.setdefault(absolute, InputFile(path, name, path.lower().endswith(VIDEO_SUFFIXES)))
    return list(files.values()), failures


def _is_in(path: str, folder: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(folder, ""))


def walk(
    root: str,
    suffixes: tuple[str, ...],
    exclude: str | None = None,
    unreadable: Callable[[OSError], None] | None = None,
) -> Iterator[str]:
    """The files below a folder that end in one of the suffixes, upper case too; hidden ones are passed over.

    Args:
        root: the folder; links are followed, but not round in circles.
        suffixes: with their dots, in lower case.
        exclude: real path of a folder below it that is passed over.
        unreadable: is told of a folder that cannot be read.
    """
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(folder)
        if real in seen or (real == exclude and folder != root):  # a link back up would lead round in circles
            subfolders.clear()
            continue
        seen.add(real)
        # In order, so that of two ways to the same folder it is always the same one that is taken.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            # hidden ones too: archives from a Mac bring a "._photo.jpg" that is none
            if not name.startswith(".") and name.lower().endswith(suffixes):
                yield os.path.join(folder, name)
