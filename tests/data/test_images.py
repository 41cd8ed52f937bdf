"""Reading of images: orientation, colors, and reasons for unreadable files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from lift_det.data.images import read_rgb, to_rgb


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("jpg", "png", "tiff"):
        path = tmp_path / f"image.{suffix}"
        Image.fromarray(pixels).save(path, exif=exif)
        image, reason = read_rgb(path)
        # detectron2 applies that of a TIFF twice; PNG and TIFF are lossless.
        np.testing.assert_array_equal(
            image, read_image(str(path.with_suffix(".png" if suffix == "tiff" else path.suffix)), "RGB")
        )
        np.testing.assert_array_equal(to_rgb(Image.open(path)), image)
        assert reason == ""
    if orientation == 6:
        np.testing.assert_array_equal(image, np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_eight_bit_modes_are_read_as_detectron2_does(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "YCbCr") else "image.png")
    Image.fromarray(pixels).convert(mode).save(path)
    image, _ = read_rgb(path)
    assert image.dtype == np.uint8 and image.shape == (20, 30, 3)
    np.testing.assert_array_equal(image, read_image(str(path), "RGB"))


@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tiff", np.uint16), ("tiff", np.int32)])
def test_sixteen_bit_gray_is_scaled(tmp_path: Path, suffix: str, dtype: type) -> None:
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"gray.{suffix}")
    image, _ = read_rgb(tmp_path / f"gray.{suffix}")
    np.testing.assert_array_equal(image, np.repeat((values // 256)[..., None], 3, axis=2))


def test_unreadable_files_have_reasons(tmp_path: Path, pixels: np.ndarray) -> None:
    reasons = [read_rgb(tmp_path / "absent.jpg"), read_rgb(tmp_path)]
    for name, content in (("empty.jpg", b""), ("text.jpg", b"words")):
        (tmp_path / name).write_bytes(content)
        reasons.append(read_rgb(tmp_path / name))
        assert f"{len(content)} bytes" in reasons[-1][1]
    for suffix in ("jpg", "png", "webp"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        reasons.append(read_rgb(path))
    assert all(image is None and reason for image, reason in reasons)
    assert len({reason for _, reason in reasons[:4]}) == 4
