"""Videos: what is written is what is read, and broken ones are said to be."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lift_det.data import DatasetError
from lift_det.data.video import VideoReader, VideoWriter


def frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Red grows with the number; the top is blue, the bottom is not."""
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
        # the codec loses something; RGB and BGR, top and bottom, and the order are told apart all the same
        assert np.abs(image.astype(int) - frame(number)).mean() < 8


def test_every_nth_frame(tmp_path: Path) -> None:
    frames = list(VideoReader(write(tmp_path / "clip.mp4", 10)).frames(every=4))
    assert [number for number, _ in frames] == [0, 4, 8]
    assert [round(float(image[..., 0].mean()) / 10) for _, image in frames] == [0, 4, 8]


def test_odd_sides_lose_a_pixel(tmp_path: Path) -> None:
    _, image = next(VideoReader(write(tmp_path / "clip.mp4", 2, height=49, width=65)).frames())
    assert image.shape == (48, 64, 3)


@pytest.mark.parametrize("content", [b"", b"words\n" * 99])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip_01.mp4"  # with a number OpenCV would take it for a series of images
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"reads no video from it \({len(content)} bytes on disk\)"):
        list(VideoReader(path).frames())


def test_a_video_that_is_cut_off_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"  # an .mp4 has its index at its end: cut off, there is nothing to be read of it
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    generator = np.random.default_rng(0)
    for _ in range(40):
        writer.write(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with pytest.raises(DatasetError, match=r"it ends after \d+ of 40 frames"):
        for number, _ in VideoReader(path).frames():
            frames.append(number)
    assert 5 < len(frames) < 30 and frames == list(range(len(frames)))


def test_an_unwritable_video_raises(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="could not be written"):
        VideoWriter(tmp_path / "no_folder" / "clip.mp4", 10).write(frame(0))
