"""Images as arrays."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError


def read_rgb(file_name: str | os.PathLike) -> tuple[np.ndarray | None, str]:
    """Reads an image, or the first frame of several, with :func:`to_rgb`.

    Args:
        file_name: in any format that Pillow knows.

    Returns:
        ``(image, "")`` with a uint8 (H, W, 3) image in RGB, or ``(None, reason)`` for a file that is missing, broken or
        incomplete.
    """
    try:
        with PathManager.open(os.fspath(file_name), "rb") as file, Image.open(file) as image:
            return to_rgb(image), ""
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many types for broken files
        if not os.path.exists(file_name):
            return None, "there is no such file"
        if os.path.isdir(file_name):
            return None, "it is a folder"
        size = os.path.getsize(file_name)
        if size == 0:
            return None, "the file is empty (0 bytes)"
        if isinstance(error, UnidentifiedImageError):
            return None, f"cannot identify image file: unknown format ({size} bytes on disk)"
        return None, f"{type(error).__name__}: {error} ({size} bytes on disk)"


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image of any mode as detectron2 does, turned by its EXIF orientation, with two differences.

    16-bit gray keeps its upper eight bits (detectron2 makes values above 255 white), and TIFF files are turned once
    (detectron2 turns them after Pillow did).

    Returns:
        (H, W, 3) uint8 in RGB.
    """
    image.load()
    image = detection_utils._apply_exif_orientation(image)
    if image.mode.startswith("I"):  # "I;16" and its byte orders; older Pillows read 16-bit PNG files as "I"
        gray = np.asarray(image).clip(0, 65535) >> 8
        return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))
