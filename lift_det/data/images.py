"""Images as arrays."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError


def read_rgb(file_name: str | os.PathLike) -> tuple[np.ndarray | None, str]:
    """Reads an image file, or its first frame, with :func:`to_rgb`.

    Returns:
        ``(image, "")`` with a uint8 (H, W, 3) image in RGB, or ``(None, reason)`` if the file is missing, broken or
        truncated.
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
            return None, f"cannot identify image file: unknown format ({size} bytes)"
        return None, f"{type(error).__name__}: {error} ({size} bytes)"


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts a Pillow image of any mode to (H, W, 3) uint8 in RGB and applies its EXIF orientation.

    The result is that of detectron2, except that 16-bit gray keeps its upper eight bits (detectron2 clips values to
    255), and that the orientation of TIFF files is applied once (detectron2 applies it after Pillow did).
    """
    image.load()
    image = detection_utils._apply_exif_orientation(image)
    if image.mode.startswith("I"):  # "I;16" in any byte order; older Pillows read 16-bit PNG files as "I"
        gray = np.asarray(image).clip(0, 65535) >> 8
        return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))
