"""Videos, frame by frame, in bounded memory: reading them, and writing `.mp4`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import cv2
import numpy as np

from .errors import DatasetError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")

#: some containers only estimate their number of frames: so much of it may be missing at the end
_MISSING_TOLERANCE = 0.02


class VideoReader:
    """A video file as RGB frames, turned the way that it says.

    Attributes:
        fps: frames in a second; 25 where the file does not say.
        num_frames: as the file says, which may be an estimate; 0 where it does not.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """
        Args:
            path: whatever OpenCV's build can decode.

        Raises:
            DatasetError: it cannot be opened as a video.
        """
        self._path = os.fspath(path)
        self._capture = cv2.VideoCapture(self._path)
        if not self._capture.isOpened():
            raise DatasetError(_not_readable(self._path))
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # telephones
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else 25.0
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def frames(self, every: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Decodes the video once, from where it stands to its end.

        Args:
            every: frames 0, ``every``, ``2 * every`` and so on are given.

        Yields:
            The frame's number, from 0, and the frame, (H, W, 3) uint8 in RGB.

        Raises:
            DatasetError: after the last frame that there is: no frame, or the video is cut off.
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
            raise DatasetError(_not_readable(self._path))
        if number < self.num_frames * (1 - _MISSING_TOLERANCE) - 1:
            raise DatasetError(f"it ends after {number} of {self.num_frames} frames: it is cut off or broken there")

    def close(self) -> None:
        """Lets go of the file."""
        self._capture.release()


class VideoWriter:
    """Writes an `.mp4` (MPEG-4 part 2, which every build of OpenCV has), frame by frame."""

    def __init__(self, path: str | os.PathLike, fps: float) -> None:
        """
        Args:
            path: ends in `.mp4`; its folder must exist.
            fps: frames in a second.
        """
        self._path = os.fspath(path)
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame.

        Args:
            frame: (H, W, 3) uint8 in RGB, all of one size. The format wants even sides: an odd one loses a pixel.

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
        """Finishes the file: without it no player can read it."""
        if self._writer is not None:
            self._writer.release()


def _not_readable(path: str) -> str:
    return f"OpenCV {cv2.__version__} reads no video from it ({os.path.getsize(path)} bytes on disk)"
