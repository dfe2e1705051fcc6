"""Reads and writes video files frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.imaging.codecs import ImageError, check_size
from worldstereo_ros.io.files import DatasetError


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float = 8) -> None:
    """Writes (H, W, 3) uint8 RGB frames as .mp4 (H.264) or .gif, by the suffix of `path`."""
    import imageio.v2 as imageio

    if path.suffix == ".gif":
        imageio.mimsave(path, list(frames), duration=1000 / fps, loop=0)
        return
    writer = imageio.get_writer(path, fps=fps, codec="libx264", quality=8, macro_block_size=2)
    with writer:
        for frame in frames:
            writer.append_data(frame)


def video_size(path: Path) -> tuple[int, int, int, float]:
    """Returns (width, height, number of frames, frames per second) from the header. Raises DatasetError."""
    capture = _open_capture(path)
    try:
        width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if width <= 0 or height <= 0 or frames <= 0:
            raise DatasetError(
                f"The video {path} has {frames} frames of {width}x{height} in its header; at least one was expected."
            )
        try:
            check_size(width, height, f"The video {path}")
        except ImageError as error:
            raise DatasetError(str(error)) from None
        return width, height, frames, float(capture.get(cv2.CAP_PROP_FPS)) or 30.0
    finally:
        capture.release()


def read_video(path: Path, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the frames of a video from frame `start` on, (H, W, 3) uint8 RGB. Raises DatasetError."""
    video_size(path)
    capture = _open_capture(path)
    try:
        if start:
            capture.set(cv2.CAP_PROP_POS_FRAMES, start)
        while True:
            ok, frame = capture.read()
            if not ok:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def _open_capture(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise DatasetError(f"The file {path} does not exist.")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise DatasetError(f"{path} is not a readable video.")
    return capture
