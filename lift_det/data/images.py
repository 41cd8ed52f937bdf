"""Image files that cannot be read: which they are and why."""

from __future__ import annotations

import os

import numpy as np
from detectron2.data import detection_utils


def read_rgb(file_name: str) -> tuple[np.ndarray | None, str]:
    """Reads an image as detectron2 does, turned the way its EXIF orientation says.

    Args:
        file_name: any format that Pillow knows.

    Returns:
        ``(image, "")`` with a uint8 (H, W, 3) image in RGB, or ``(None, reason)`` for a file that is no image.
    """
    try:
        return detection_utils.read_image(file_name, format="RGB"), ""
    except MemoryError:
        raise
    # Pillow's decoders answer broken bytes with OSError, SyntaxError, ValueError, struct.error and more; whatever
    # comes out of reading and nothing else means that the file cannot be read.
    except Exception as error:
        return None, _reason(file_name, error)


def _reason(file_name: str, error: Exception) -> str:
    if not os.path.exists(file_name):
        return "there is no such file"
    if os.path.isdir(file_name):
        return "it is a folder"
    size = os.path.getsize(file_name)
    if size == 0:
        return "the file is empty (0 bytes)"
    return f"{type(error).__name__}: {error} ({size} bytes on disk)"
