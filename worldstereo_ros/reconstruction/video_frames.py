"""Chooses frames of a video for reconstruction: about equal motion between them, the sharpest of each stretch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.imaging.sharpness import sharpness
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.video import read_video

MOTION_SIDE_PX = 320  # longer side of the frames that motion is measured in
STEP = 0.05  # motion from frame to frame that is wanted, relative to the longer side
LOST_MOTION = 0.05  # assumed where nothing can be followed, as at a cut
MIN_TRACKED = 12


@dataclass(frozen=True)
class VideoChoice:
    """Chosen frames of a video.

    Attributes:
        path: the video.
        indices: numbers of the chosen frames, ascending.
        count: number of frames of the video that can be decoded.
        lost: number of those that cannot, because the file is truncated or damaged.
    """

    path: Path
    indices: list[int]
    count: int
    lost: int = 0

    def read(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (number, (H, W, 3) uint8 RGB) of the chosen frames."""
        wanted = set(self.indices)
        for index, frame in enumerate(read_video(self.path)):
            if index in wanted:
                yield index, frame


def choose_video_frames(path: Path, max_frames: int) -> VideoChoice:
    """Chooses frames of a video.

    The motion between neighbouring frames is the median length of the optical flow. The video is cut into stretches of
    about equal motion, and the sharpest frame of each is chosen.

    Args:
        path: video file.
        max_frames: maximum number of frames.

    Raises:
        DatasetError: the video cannot be read, or the camera did not move.
    """
    motion: list[float] = []
    sharp: list[float] = []
    lost: list[int] = []
    before: np.ndarray | None = None
    for frame in read_video(path, lost.append):
        grey = _small(frame)
        motion.append(0.0 if before is None else frame_motion(before, grey))
        sharp.append(sharpness(grey))
        before = grey
    if len(motion) < 2:
        raise DatasetError(f"The video {path} has {len(motion)} frame; two at least were expected.")
    if sum(motion) < STEP:
        raise DatasetError(
            f"The camera of {path} moves by {sum(motion):.1%} of the image in all: distances cannot follow from it. "
            "Take a video while walking around what is to be reconstructed."
        )
    indices = choose_frames(np.array(motion), np.array(sharp), max_frames)
    return VideoChoice(path, indices, len(motion), sum(lost))


def choose_frames(motion: np.ndarray, sharp: np.ndarray, max_frames: int) -> list[int]:
    """Indices of the sharpest frame of each stretch of about equal motion.

    Args:
        motion: (N,) motion from the frame before, relative to the longer side of the image.
        sharp: (N,) sharpness.
        max_frames: maximum number of indices.
    """
    along = np.cumsum(motion)
    stretches = max(1, min(max_frames, max(2, round(float(along[-1]) / STEP))))
    edges = np.linspace(0, along[-1], stretches + 1)
    place = np.clip(np.searchsorted(edges, along, side="right") - 1, 0, stretches - 1)
    members = [np.flatnonzero(place == stretch) for stretch in range(stretches)]
    return [int(rows[sharp[rows].argmax()]) for rows in members if len(rows)]


def frame_motion(one: np.ndarray, other: np.ndarray) -> float:
    """Median length of the optical flow between two grey images (H, W) uint8, relative to their longer side."""
    corners = cv2.goodFeaturesToTrack(one, 200, 0.01, 6)
    if corners is None or len(corners) < MIN_TRACKED:
        return LOST_MOTION
    moved, found, _ = cv2.calcOpticalFlowPyrLK(one, other, corners, np.empty_like(corners))
    kept = found.reshape(-1) == 1
    if kept.sum() < MIN_TRACKED:
        return LOST_MOTION
    lengths = np.linalg.norm((moved - corners).reshape(-1, 2)[kept], axis=1)
    return float(np.median(lengths)) / max(one.shape)


def _small(frame: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    factor = min(1.0, MOTION_SIDE_PX / max(grey.shape))
    size = max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
