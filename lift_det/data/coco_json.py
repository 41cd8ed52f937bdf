"""COCO's annotation files, read with errors that say what is wrong."""

from __future__ import annotations

import json
import os
from typing import Any

from .errors import DatasetError

#: the lists that every annotation file has
LISTS = ("images", "annotations", "categories")


def check_file(json_file: str, what: str, advice: str = "") -> None:
    """Raises a DatasetError if there is no such file or nothing in it; the arguments are :func:`read_coco`'s."""
    if not os.path.isfile(json_file):
        raise DatasetError(f"{what} is missing: there is no file '{os.path.abspath(json_file)}'. {advice}")
    if os.path.getsize(json_file) == 0:
        raise DatasetError(
            f"{what} is empty (0 bytes); expected COCO's JSON. A download or a copy was cut off, or the disk was full: "
            f"put the file there again. {advice}"
        )


def read_coco(json_file: str, what: str, advice: str = "") -> dict[str, Any]:
    """Reads an annotation file as far as its lists go; what is in them is not looked at.

    Args:
        json_file: the file.
        what: the file in words, as a message begins with it.
        advice: what to do, as some messages end with it.

    Returns:
        The file's content, with a list for each of ``LISTS``; those of images and categories are not empty.

    Raises:
        DatasetError: the file is missing, empty, no whole JSON or not in COCO's format.
    """
    check_file(json_file, what, advice)
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as broken:  # not JSON, or not text
        raise DatasetError(
            f"{what} ({os.path.getsize(json_file)} bytes) is not whole JSON: {broken}. It was cut off or is another "
            f"kind of file: fetch or write it again. {advice}"
        ) from broken
    found = sorted(content) if isinstance(content, dict) else f"a {type(content).__name__}"
    missing = [key for key in LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise DatasetError(
            f"{what} is not in COCO's format: expected an object with the lists {', '.join(LISTS)}; "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, found {found}. Results of a "
            "detector and panoptic annotations look different: give the instances_*.json file."
        )
    if not content["images"] or not content["categories"]:
        which = "images" if not content["images"] else "categories"
        raise DatasetError(
            f"{what} lists no {which}: expected at least one entry. Write it again with what it describes, or name "
            "another data set."
        )
    return content
