"""When each frame of a video is shown, and how to write such frames at a constant rate."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.video import _open_capture, frames_lost, grab_frame, is_variable, video_size

MAX_RATE = 120.0  # that is written; players and headsets keep up with no more
MAX_HEADER_RATE = 1000.0  # headers that say more give the unit of their clock
ASSUMED_RATE = 30.0
SEQUENCE_RATE = 10.0  # frames per second of sequences without stamps


@dataclass(frozen=True)
class VideoTiming:
    """The frames of a video in time.

    Attributes:
        times_s: (N,) float64, seconds of each frame, ascending.
        rate: constant rate in frames per second at which the video is written.
        repeats: (N,) int64, how often each frame is written at that rate; if the rate of the video is constant, 1 for
            each frame that is written and 0 for those between.
        variable: the rate of the video varies.
        announced: number of frames by the header, 0 if it does not say.
        lost: number of frames that cannot be decoded, because the file is truncated or damaged.
        pixel_aspect: width of a pixel in heights, by the header; 1 for square ones.
        every: of a constant rate above `MAX_RATE`, every how-manieth frame is written; else 1.
        repaired: number of times that did not ascend, in place of which others between their neighbours are given.
        stamped: the times are those of the frames; false: they count at a constant rate, as those were of no use.
    """

    times_s: np.ndarray
    rate: float
    repeats: np.ndarray
    variable: bool
    announced: int
    lost: int = 0
    pixel_aspect: float = 1.0
    every: int = 1
    repaired: int = 0
    stamped: bool = True

    def __len__(self) -> int:
        return len(self.times_s)

    def damage_notes(self, name: str) -> list[str]:
        """Sentences for the user about frames of the video `name` that cannot be decoded."""
        if not self.lost:
            return []
        return [
            f"{name} is truncated or damaged: {len(self)} of {len(self) + self.lost} frames can be decoded, and these "
            "are used."
        ]

    def stamp_notes(self, name: str) -> list[str]:
        """Sentences for the user about stamps of the source `name` that were repaired or not used."""
        if not self.stamped and len(self) > 1:
            rate = self.rate * self.every
            return [f"Most stamps of {name} do not ascend: none is used, and {rate:g} frames a second are assumed."]
        if self.repaired:
            return [
                f"{self.repaired} of the {len(self)} stamps of {name} do not ascend: times between those of the frames "
                "beside are used instead."
            ]
        return []


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
        damaged = 0
        while (passed := grab_frame(capture)) is not None:
            damaged += passed
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    finally:
        capture.release()
    if not times:
        raise DatasetError(f"No frame of the video {path} can be decoded; it may be truncated or damaged.")
    timing = plan_timing(np.array(times), header_rate, announced)
    return replace(timing, lost=frames_lost(timing.times_s, announced, damaged), pixel_aspect=aspect)


def _pixel_aspect(capture: cv2.VideoCapture) -> float:
    wide, high = capture.get(cv2.CAP_PROP_SAR_NUM), capture.get(cv2.CAP_PROP_SAR_DEN)
    if not (np.isfinite([wide, high]).all() and wide > 0 and high > 0):
        return 1.0
    turned = round(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 180 == 90  # frames are decoded upright
    return high / wide if turned else wide / high


def plan_timing(times_s: np.ndarray, header_rate: float, announced: int = 0) -> VideoTiming:
    """Plans the constant rate for frames at these times.

    A frame of a variable rate is repeated until the next one comes, so that sound stays in step; the rate is that of
    the shortest usual distance between frames, so that hardly any is lost. Of a constant rate above `MAX_RATE`, every
    second frame, third frame and so on is written: even steps look smoother than a rate that is nearer to the limit.

    Args:
        times_s: (N,) seconds, N at least 1. The few that do not ascend are repaired; where half of them or more do not,
            `header_rate` is used.
        header_rate: frames per second by the header.
        announced: see `VideoTiming`.
    """
    given, repaired = times_s, 0
    gaps = np.diff(times_s)
    if not _ascend(gaps):
        times_s, repaired = _repaired(given)
        gaps = np.diff(times_s)
    if not len(gaps) or not _ascend(gaps):
        rate = header_rate if 0 < header_rate <= MAX_HEADER_RATE else ASSUMED_RATE
        return replace(_constant(np.arange(len(given)) / rate, rate, announced), stamped=False)
    low, middle = np.percentile(gaps, (5, 50))
    if not is_variable(gaps):
        return replace(_constant(times_s, 1 / float(gaps.mean()), announced), repaired=repaired)
    rate = min(_round_rate(1 / float(low)), MAX_RATE)
    edges = np.rint((np.append(times_s, times_s[-1] + middle) - times_s[0]) * rate).astype(np.int64)
    return VideoTiming(times_s, rate, np.diff(edges), True, announced, repaired=repaired)


def plan_sequence(stamps_ns: np.ndarray, name: str) -> tuple[VideoTiming, list[str]]:
    """The frames of a sequence in time; without stamps they count at `SEQUENCE_RATE`.

    Args:
        stamps_ns: (N,) int64 nanoseconds, 0 where a stamp is unknown, N at least 1.
        name: of the sequence.

    Returns:
        Their timing, and sentences for the user about stamps that are missing, repaired or not used.
    """
    timing = plan_timing(stamps_ns.astype(np.float64) / 1e9, SEQUENCE_RATE)
    if len(timing) > 1 and not stamps_ns.any():
        return timing, [f"{name} has no stamps: {SEQUENCE_RATE:g} frames a second are assumed."]
    return timing, timing.stamp_notes(name)


def _constant(times_s: np.ndarray, rate: float, announced: int) -> VideoTiming:
    rate = _round_rate(rate)
    every = math.ceil(rate / MAX_RATE)
    repeats = (np.arange(len(times_s)) % every == 0).astype(np.int64)
    return VideoTiming(times_s, _round_rate(rate / every), repeats, False, announced, every=every)


def _ascend(gaps: np.ndarray) -> bool:
    return bool(np.isfinite(gaps).all() and (gaps > 0).all())


def _repaired(times_s: np.ndarray) -> tuple[np.ndarray, int]:
    """Times of which those that do not ascend are replaced by evenly spaced ones between their neighbours.

    Returns:
        The times and the number of those replaced; the times as they are, and 0, where half of them or more are bad.
    """
    kept = _longest_ascending(times_s)
    if len(kept) < 2 or 2 * len(kept) <= len(times_s):
        return times_s, 0
    step = float(np.median(np.diff(times_s[kept]) / np.diff(kept)))
    # Of frames with the same stamp, the one is right that leaves the others room: those after it, or those before.
    for at, index in enumerate(kept):
        last = index
        while last + 1 < len(times_s) and times_s[last + 1] == times_s[index]:
            last += 1
        before = times_s[index] - times_s[kept[at - 1]] if at > 0 else step
        after = times_s[kept[at + 1]] - times_s[index] if at + 1 < len(kept) else step
        if before > after:
            kept[at] = last
    numbers = np.arange(len(times_s))
    times = np.interp(numbers, kept, times_s[kept])
    times += step * (np.minimum(numbers - kept[0], 0) + np.maximum(numbers - kept[-1], 0))
    return times, len(times_s) - len(kept)


def _longest_ascending(times_s: np.ndarray) -> np.ndarray:
    """Numbers of the finite times that make up the longest ascending row, (K,) int64."""
    ends: list[float] = []  # the least time at which a row of each length ends
    at: list[int] = []  # and its number
    previous = np.full(len(times_s), -1, np.int64)
    for index in np.flatnonzero(np.isfinite(times_s)).tolist():
        time = float(times_s[index])
        length = bisect_left(ends, time)
        previous[index] = at[length - 1] if length else -1
        if length == len(ends):
            ends.append(time)
            at.append(index)
        elif time < ends[length]:  # of equal times the first stays
            ends[length], at[length] = time, index
    row: list[int] = []
    index = at[-1] if at else -1
    while index >= 0:
        row.append(index)
        index = int(previous[index])
    return np.array(row[::-1], np.int64)


def read_frames(path: Path, start: int = 0) -> Iterator[np.ndarray]:
    """Yields the frames of a video from frame `start` on, (H, W, 3) uint8 RGB, upright.

    Frames before are decoded and dropped: a jump by number misses in videos of variable rate.

    Raises:
        DatasetError: the video is missing or damaged.
    """
    capture = _open_capture(path)
    try:
        for _ in range(start):
            if grab_frame(capture) is None:
                return
        while grab_frame(capture) is not None:
            ok, frame = capture.retrieve()
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
