"""When each frame of a video is shown, and how to write such frames at a constant rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.video import _open_capture, video_size

MAX_RATE = 120.0
VARIATION = 0.2  # of the median distance between frames; more is a variable rate


@dataclass(frozen=True)
class VideoTiming:
    """The frames of a video in time.

    Attributes:
        times_s: (N,) float64, seconds of each frame, ascending.
        rate: constant rate in frames per second at which the video is written.
        repeats: (N,) int64, how often each frame is written at that rate; 1 for each if the rate of the video is
            constant.
        variable: the rate of the video varies.
        announced: number of frames by the header, 0 if it does not say; more than N: the file is truncated.
        pixel_aspect: width of a pixel in heights, by the header; 1 for square ones.
    """

    times_s: np.ndarray
    rate: float
    repeats: np.ndarray
    variable: bool
    announced: int
    pixel_aspect: float = 1.0

    def __len__(self) -> int:
        return len(self.times_s)


def read_timing(path: Path) -> VideoTiming:
    """Reads when each frame is shown; decodes the video once.

    Raises:
        DatasetError: the video is missing, damaged, or has no frames.
    """
    *_, header_rate = video_size(path)
    capture = _open_capture(path)
    try:
        announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        aspect = _pixel_aspect(capture)
        times: list[float] = []
        while capture.grab():
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    finally:
        capture.release()
    if not times:
        raise DatasetError(f"No frame of the video {path} can be decoded; it may be truncated or damaged.")
    return replace(plan_timing(np.array(times), header_rate, announced), pixel_aspect=aspect)


def _pixel_aspect(capture: cv2.VideoCapture) -> float:
    wide, high = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    if not (np.isfinite([wide, high]).all() and wide > 0 and high > 0):
        return 1.0
    turned = round(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 180 == 90  # frames are decoded upright
    return high / wide if turned else wide / high


def plan_timing(times_s: np.ndarray, header_rate: float, announced: int = 0) -> VideoTiming:
    """Plans the constant rate for frames at these times.

    A frame of a variable rate is repeated until the next one comes, so that sound stays in step; the rate is that of
    the shortest usual distance between frames, so that hardly any is lost.

    Args:
        times_s: (N,) seconds, N at least 1. Where they do not ascend, `header_rate` is used.
        header_rate: frames per second by the header.
        announced: see `VideoTiming`.
    """
    rate = min(header_rate, MAX_RATE) if np.isfinite(header_rate) and header_rate > 0 else 30.0
    gaps = np.diff(times_s)
    if not len(gaps) or not (np.isfinite(gaps).all() and (gaps > 0).all()):
        times_s = np.arange(len(times_s)) / rate
        return VideoTiming(times_s, rate, np.ones(len(times_s), np.int64), False, announced)
    low, middle, high = np.percentile(gaps, (5, 50, 95))
    variable = high - low > VARIATION * middle or gaps.max() > 1.5 * middle
    if not variable:
        rate = min(_round_rate(1 / float(gaps.mean())), MAX_RATE)
        return VideoTiming(times_s, rate, np.ones(len(times_s), np.int64), False, announced)
    rate = min(_round_rate(1 / float(low)), MAX_RATE)
    edges = np.rint((np.append(times_s, times_s[-1] + middle) - times_s[0]) * rate).astype(np.int64)
    return VideoTiming(times_s, rate, np.diff(edges), True, announced)


def read_frames(path: Path, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the frames of a video from frame `start` on, (H, W, 3) uint8 RGB, upright.

    Frames before are decoded and dropped: a jump by number misses in videos of variable rate.

    Raises:
        DatasetError: the video is missing or damaged.
    """
    capture = _open_capture(path)
    try:
        for _ in range(start):
            if not capture.grab():
                return
        while True:
            ok, frame = capture.read()
            if not ok:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def _round_rate(rate: float) -> float:
    """The usual rate within half a percent, such as 30000/1001, else the rate to three digits."""
    for usual in (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001, 60.0, 120.0):
        if abs(rate - usual) < 4e-4 * usual:
            return usual
    return round(rate, 3)
