"""Images as arrays: reading files, saying which cannot be read and why, and what Pillow holds in memory."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError


def read_rgb(file_name: str | os.PathLike) -> tuple[np.ndarray | None, str]:
    """Reads an image as detectron2 does, turned the way its EXIF orientation says, but for what :func:`to_rgb` says.

    Of an animation or several pages it is the first. A file that is cut off cannot be read.

    Args:
        file_name: any format that Pillow knows.

    Returns:
        ``(image, "")`` with a uint8 (H, W, 3) image in RGB, or ``(None, reason)`` for a file that is no image.
    """
    try:
        with PathManager.open(os.fspath(file_name), "rb") as file, Image.open(file) as image:
            return to_rgb(image), ""
    except MemoryError:
        raise
    # Pillow's decoders answer broken bytes with OSError, SyntaxError, ValueError, struct.error and more; whatever
    # comes out of reading and nothing else means that the file cannot be read.
    except Exception as error:
        return None, _reason(file_name, error)


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as an array, turned the way its EXIF orientation says.

    Colours are detectron2's: an alpha channel is left out. Two things are not:

    - Of 16-bit grey it takes the upper eight bits, as Pillow does of 16-bit RGB. Pillow's own conversion, which
      detectron2 takes, makes every value from 255 on white.
    - A TIFF is turned once. Pillow turns it while decoding, after which detectron2 would turn it again.

    Returns:
        (H, W, 3) uint8 in RGB, 0 to 255.
    """
    image.load()
    image = detection_utils._apply_exif_orientation(image)
    if image.mode.startswith("I"):  # "I;16" in its byte orders; "I" is what older Pillows make of a 16-bit PNG
        grey = np.asarray(image).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _reason(file_name: str | os.PathLike, error: Exception) -> str:
    if not os.path.exists(file_name):
        return "there is no such file"
    if os.path.isdir(file_name):
        return "it is a folder"
    size = os.path.getsize(file_name)
    if size == 0:
        return "the file is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return f"cannot identify image file: its content is of no format that Pillow knows ({size} bytes on disk)"
    return f"{type(error).__name__}: {error} ({size} bytes on disk)"
