"""Checks the images that a COCO-format annotation file lists against their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from .coco_findings import ERROR, NOTED, SKIPPED, CocoFinding, entry_fault
from .errors import DatasetError
from .image_header import read_header


def check_images(
    listed: Sequence[Any],
    image_root: str,
    findings: list[CocoFinding],
    read_images: bool,
    decode_images: bool,
    progress: bool,
) -> tuple[set[int], dict[int, dict[str, Any]]]:
    """Checks entries and files; the arguments are :func:`lift_det.data.check_coco`'s.

    Args:
        listed: the entries of the annotation file.
        findings: what is found is added to these.

    Returns:
        The ids of all images listed, and by id the entries that can be used, with their sizes.

    Raises:
        DatasetError: no file is there.
    """

    def add(kind: str, severity: str, text: str, image_id: int | None) -> None:
        findings.append(CocoFinding(kind, severity, text, image_id=image_id))

    entries: dict[int, dict[str, Any]] = {}
    ids: set[int] = set()
    for position, image in enumerate(listed, start=1):
        id_ = image.get("id") if isinstance(image, dict) and type(image.get("id")) is int else None
        fault = entry_fault(image, {"id": int, "file_name": str})
        if id_ is not None:
            ids.add(id_)
        if fault:
            name = f"image number {position} of the file" if id_ is None else f"image {id_}"
            add("image entry that cannot be read", SKIPPED, f"{name}: {fault}", id_)
        elif id_ not in entries:
            entries[id_] = image
        elif image == entries[id_]:
            add("duplicate image", SKIPPED, f"image {id_} ({image['file_name']}): the same entry comes twice", id_)
        else:
            names = f"'{entries[id_]['file_name']}' and '{image['file_name']}'"
            add("duplicate image id", ERROR, f"image {id_} is {names}; give each an id of its own", id_)

    usable: dict[int, dict[str, Any]] = {}
    first_of_file: dict[str, int] = {}
    missing = 0
    for id_, image in tqdm(entries.items(), "checking images", disable=not progress):
        file_name = image["file_name"]
        where = f"image {id_} ({file_name})"
        path = os.path.join(image_root, file_name)
        if not os.path.isfile(path):
            missing += 1
            add("image file missing", SKIPPED, f"{where}: there is no file '{path}'", id_)
            continue
        first = first_of_file.setdefault(os.path.normpath(file_name), id_)
        if first != id_:
            text = f"{where}: the file is image {first}'s, too; what is annotated in one is background in the other"
            add("duplicate file name", NOTED, text, id_)
        checked = _check_file(image, path, read_images, decode_images)
        for kind, severity, text in checked[1]:
            add(kind, severity, f"{where}: {text}", id_)
        if checked[0] is not None:
            usable[id_] = checked[0]
    if entries and missing == len(entries):
        first_path = os.path.join(image_root, next(iter(entries.values()))["file_name"])
        raise DatasetError(
            f"None of the {missing} images is there; the first would be '{first_path}'. Name the folder that the file "
            "names of the annotations start from."
        )
    return ids, usable


def _check_file(
    image: dict[str, Any], path: str, read: bool, decode: bool
) -> tuple[dict[str, Any] | None, list[tuple[str, str, str]]]:
    """The entry with its size, None if it cannot be used, and what there is to say as (kind, severity, text)."""
    stated = (image.get("width"), image.get("height"))
    sized = all(type(side) is int and side > 0 for side in stated)
    if sized and not read:
        return image, []
    header, reason = read_header(path, decode)
    if header is None:
        return None, [("unreadable image", SKIPPED, reason)]
    size, found = header.size, []
    if not sized:
        text = f"width and height are {stated[0]!r:.20} and {stated[1]!r:.20}; taken from the file, {_by(size)}"
        found.append(("image without a usable size", NOTED, text))
    elif stated != size and stated == header.stored_size:
        text = (
            f"annotated as it is stored, {_by(stated)}, but its EXIF orientation {header.orientation} turns it to "
            f"{_by(size)} when it is read; take the orientation out of the file, or turn the annotations"
        )
        return None, [("image size (turned by EXIF)", SKIPPED, text)]
    elif stated != size:
        return None, [("image size", SKIPPED, f"annotated as {_by(stated)}, the file has {_by(size)}")]
    if header.orientation > 1 and (header.orientation < 5 or size[0] == size[1]):
        # with the others, sizes say whether the annotations are of the image as it is turned
        text = (
            f"its EXIF orientation {header.orientation} turns or mirrors it when it is read; were the annotations, too?"
        )
        found.append(("EXIF orientation", NOTED, text))
    if header.mode[0] in "IF":
        text = f"pixels of the mode {header.mode}, more than 8 bits: values above 255 come out as white"
        found.append(("image of more than 8 bits", NOTED, text))
    return {**image, "width": size[0], "height": size[1]}, found


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
