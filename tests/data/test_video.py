"""Reading and writing of videos."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lift_det.data import DatasetError
from lift_det.data.video import VideoReader, VideoWriter


def frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame with a shade of red that depends on the number, and a blue top."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = number * 10
    image[: height // 2, :, 2] = 200
    return image


def write(path: Path, count: int, **size: int) -> Path:
    writer = VideoWriter(path, fps=12.5)
    for number in range(count):
        writer.write(frame(number, **size))
    writer.close()
    return path


def test_frames_survive(tmp_path: Path) -> None:
    reader = VideoReader(write(tmp_path / "clip.mp4", 20))
    assert reader.fps == pytest.approx(12.5) and reader.num_frames == 20
    frames = dict(reader.frames())
    reader.close()
    assert list(frames) == list(range(20))
    for number, image in frames.items():
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert np.abs(image.astype(int) - frame(number)).mean() < 8  # lossy
    some = list(VideoReader(tmp_path / "clip.mp4").frames(every=8))
    assert [number for number, _ in some] == [0, 8, 16]
    assert all(np.array_equal(image, frames[number]) for number, image in some)


def test_odd_sides_lose_a_pixel(tmp_path: Path) -> None:
    _, image = next(VideoReader(write(tmp_path / "clip.mp4", 2, height=49, width=65)).frames())
    assert image.shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"words\n" * 99])
def test_files_that_are_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip_01.mp4"  # OpenCV would take a number for that of an image sequence
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{len(content)} bytes"):
        list(VideoReader(path).frames())


def test_an_incomplete_video_gives_its_frames_and_an_error(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"  # an .mp4 has its index at its end
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    generator = np.random.default_rng(0)
    for _ in range(40):
        writer.write(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with pytest.raises(DatasetError, match=r"\d+ of 40 frames"):
        for number, _ in VideoReader(path).frames():
            frames.append(number)
    assert 5 < len(frames) < 30 and frames == list(range(len(frames)))


def test_an_unwritable_video_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no_folder"):
        VideoWriter(tmp_path / "no_folder" / "clip.mp4", 10).write(frame(0))
