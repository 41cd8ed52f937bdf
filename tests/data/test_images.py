"""Reading images: the right way up and in the right colours, whatever the format, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from lift_det.data.images import read_rgb, to_rgb

# By the EXIF standard: what has to be done to the stored pixels so that the image is upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_upright(tmp_path: Path, pixels: np.ndarray, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(pixels).save(path, exif=exif, **options)
    stored = pixels
    if suffix == "jpg":  # not lossless: what is stored is known from a copy that says nothing of its orientation
        Image.fromarray(pixels).save(tmp_path / "plain.jpg")
        stored = np.asarray(Image.open(tmp_path / "plain.jpg"))
    image, reason = read_rgb(path)
    assert reason == ""
    np.testing.assert_array_equal(image, TURNS[orientation](stored))
    np.testing.assert_array_equal(to_rgb(Image.open(path)), image)
    if suffix != "tiff":  # which detectron2 turns a second time
        np.testing.assert_array_equal(image, read_image(str(path), "RGB"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_eight_bit_modes_as_detectron2_reads_them(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "YCbCr") else "image.png")
    Image.fromarray(pixels).convert(mode).save(path)
    image, _ = read_rgb(path)
    assert image.dtype == np.uint8 and image.shape == (20, 30, 3)
    np.testing.assert_array_equal(image, read_image(str(path), "RGB"))


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tiff", np.uint16), ("tiff", np.int32)])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str, dtype: type) -> None:
    """65,536 values as 256 of them; Pillow's own conversion makes all but the lowest 255 white."""
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(dtype)
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(values).save(path)
    image, _ = read_rgb(path)
    np.testing.assert_array_equal(image, np.repeat((values // 256)[..., None], 3, axis=2))
    assert np.mean(read_image(str(path), "RGB") == 255) > 0.99


def test_reasons(tmp_path: Path, pixels: np.ndarray) -> None:
    assert read_rgb(tmp_path / "absent.jpg") == (None, "there is no such file")
    assert read_rgb(tmp_path) == (None, "it is a folder")
    (tmp_path / "empty.jpg").touch()
    assert read_rgb(tmp_path / "empty.jpg")[1] == "the file is empty (0 bytes)"
    (tmp_path / "text.jpg").write_text("words")
    reason = read_rgb(tmp_path / "text.jpg")[1]
    assert reason.startswith("cannot identify image file") and "(5 bytes on disk)" in reason
    for suffix in ("jpg", "png", "webp"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        image, reason = read_rgb(path)
        assert image is None and "bytes on disk" in reason
