"""What image files say of themselves, and whether they are whole, in a fraction of the time of decoding them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

from detectron2.data import detection_utils
from PIL import Image

from .images import read_rgb

_EXIF_ORIENTATION = 274
_JPEG_END = b"\xff\xd9"
#: how a file of a format ends; those of other formats have to be decoded
_ENDS = {"JPEG": _JPEG_END, "MPO": _JPEG_END, "PNG": b"\0\0\0\0IEND\xaeB`\x82"}


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says of itself.

    Attributes:
        stored_size: width and height in pixels, as they are in the file.
        size: in pixels, as detectron2 reads the image: turned as its EXIF orientation says.
        orientation: EXIF's, 1 to 8. 1 is as stored; from 5 on width and height change places.
        mode: Pillow's name of the kind of pixels, such as ``"RGB"``.
    """

    stored_size: tuple[int, int]
    size: tuple[int, int]
    orientation: int
    mode: str


def read_header(file_name: str, decode: bool = False) -> tuple[ImageHeader | None, str]:
    """Reads what an image file says of itself, and whether it is whole, without decoding most files.

    A JPEG or PNG that ends as its format does is taken to be whole; any other file is decoded to find out.

    Args:
        file_name: any format that Pillow knows.
        decode: decode every file, which finds damage in the middle of one.

    Returns:
        ``(header, "")``, or ``(None, reason)`` for a file that is no whole image.
    """
    try:
        with open(file_name, "rb") as file, Image.open(file) as image:
            stored_size, mode, image_format = image.size, image.mode, image.format
            orientation = _orientation(image)
            if decode or not _is_whole(file, image_format):
                image.load()
        size = stored_size if orientation < 5 else stored_size[::-1]
        if image_format == "TIFF" and orientation > 1:  # Pillow turns these while decoding, then detectron2 does
            size = detection_utils.read_image(file_name, format="RGB").shape[1::-1]
        return ImageHeader(stored_size, size, orientation, mode), ""
    except MemoryError:
        raise
    except Exception:  # Pillow's decoders answer broken bytes with many kinds; read_rgb puts them into words
        return None, read_rgb(file_name)[1]


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode all of it to see whether EXIF comes behind the pixels
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # detectron2 reads an image whose EXIF is broken as it is stored
        return 1
    return orientation if orientation in range(1, 9) else 1


def _is_whole(file: BinaryIO, image_format: str | None) -> bool:
    end = _ENDS.get(image_format)
    if end is None:
        return False
    position = file.tell()
    file.seek(-len(end), os.SEEK_END)
    whole = file.read() == end
    file.seek(position)
    return whole
