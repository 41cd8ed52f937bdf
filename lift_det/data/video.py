"""Reading and writing videos frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator

import cv2
import numpy as np

from .errors import DatasetError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


class VideoReader:
    """Reads a video with OpenCV.

    Attributes:
        fps: frames per second; 25 if unknown.
        num_frames: number of frames, which may be an estimate; 0 if unknown.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Raises a DatasetError if OpenCV cannot read the file."""
        path = os.fspath(path)
        self._unreadable = f"OpenCV {cv2.__version__} cannot read a video from it ({os.path.getsize(path)} bytes)"
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise DatasetError(self._unreadable)
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 25.0
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the index and the pixels, (H, W, 3) uint8 in RGB, of every ``every``-th frame.

        Raises:
            DatasetError: after the last readable frame, if the video is empty or truncated.
        """
        number = 0
        while self._capture.grab():
            if number % every == 0:
                decoded, frame = self._capture.retrieve()
                if not decoded:
                    break
                yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number += 1
        if number == 0:
            raise DatasetError(self._unreadable)
        if number < 0.98 * self.num_frames - 1:  # some containers only estimate the number of frames
            raise DatasetError(f"it ends after {number} of {self.num_frames} frames: the file is truncated or broken")

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()


class VideoWriter:
    """Writes an .mp4 file (MPEG-4 part 2, the codec that every build of OpenCV has)."""

    def __init__(self, path: str | os.PathLike, fps: float) -> None:
        """``path`` must end in ``.mp4``; ``fps`` are frames per second."""
        self._path, self._fps = os.fspath(path), fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a (H, W, 3) uint8 frame in RGB. All frames must have one size; odd sides lose a pixel.

        Raises:
            OSError: the file cannot be written.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            fourcc = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._path, fourcc, self._fps, (width, height))
            if not self._writer.isOpened():
                raise OSError(f"The video '{self._path}' ({width}×{height} pixels) could not be written.")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Completes the file, which cannot be played before."""
        if self._writer is not None:
            self._writer.release()
