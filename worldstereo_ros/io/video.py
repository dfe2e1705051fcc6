"""Reads and writes video files frame by frame."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from worldstereo_ros.imaging.codecs import ImageError, check_size
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.utils.atomic_files import atomic_path, readable_path, write_bytes
from worldstereo_ros.utils.file_kinds import explain_unreadable, identify_file

MAX_DAMAGED = 1000  # packets in a row; what comes after more of them is not looked for
VARIATION = 0.2  # of the median distance between frames; more is a variable rate


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float = 8) -> None:
    """Writes a video that has all its frames, or none.

    Args:
        path: .mp4 (H.264) or .gif file.
        frames: (H, W, 3) uint8 RGB, at least one; an odd height or width loses its last row or column in .mp4.
        fps: frames per second.

    Raises:
        WriteError: the file cannot be written, or does not hold all frames when it is read back.
    """
    if path.suffix.lower() == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        file = io.BytesIO()
        images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=1000 / fps, loop=0)
        write_bytes(path, file.getvalue())
        return
    from imageio_ffmpeg import count_frames_and_secs, write_frames

    height, width = (size // 2 * 2 for size in frames[0].shape[:2])
    with atomic_path(path) as partial:
        # An absolute path is no option (-out/a.mp4) and no protocol (a:b.mp4) of ffmpeg.
        target = str(partial.absolute())
        writer = write_frames(target, (width, height), fps=fps, codec="libx264", quality=8, macro_block_size=2)
        writer.send(None)
        try:
            for frame in frames:
                writer.send(np.ascontiguousarray(frame[:height, :width]))
        finally:
            writer.close()
        # ffmpeg's exit status is not passed on: count the frames that it wrote.
        try:
            found, _ = count_frames_and_secs(target)
        except (RuntimeError, OSError):
            found = 0
        if found != len(frames):
            raise OSError(errno.EIO, f"{found} of its {len(frames)} frames are in the file; the disk may be full")


def video_size(path: Path) -> tuple[int, int, int, float]:
    """Returns (width, height, number of frames, frames per second) as frames are read: turned upright if they are not.

    Frames are counted one by one if the header does not say how many there are, as in recordings of a stream.

    Raises:
        DatasetError: the file is missing, no video, empty, or its frames are too large.
    """
    capture = _open_capture(path)
    try:
        width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        frames = _frame_count(capture)
        if frames == 0:
            frames = sum(1 for _ in iter(capture.grab, False))
        if width <= 0 or height <= 0 or frames <= 0:
            raise DatasetError(f"The video {path} has {frames} frames of {width}x{height}; at least one was expected.")
        try:
            check_size(width, height, f"The video {path}")
        except ImageError as error:
            raise DatasetError(str(error)) from None
        return width, height, frames, float(capture.get(cv2.CAP_PROP_FPS)) or 30.0
    finally:
        capture.release()


def read_video(path: Path, on_lost: Callable[[int], None] | None = None) -> Iterator[np.ndarray]:
    """Yields the frames of a video, (H, W, 3) uint8 RGB; those that cannot be decoded are left out.

    Args:
        path: video file.
        on_lost: called at the end with the number of frames that were left out, if there are some.

    Raises:
        DatasetError: see `video_size`.
    """
    video_size(path)
    capture = _open_capture(path)
    damaged, times = 0, []
    try:
        while (passed := grab_frame(capture)) is not None:
            damaged += passed
            ok, frame = capture.retrieve()
            if not ok:
                damaged += 1
                continue
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if on_lost and (lost := frames_lost(np.array(times), _frame_count(capture), damaged)):
            on_lost(lost)
    finally:
        capture.release()


def read_video_frame(path: Path, number: int) -> np.ndarray:
    """Returns one frame of a video, (H, W, 3) uint8 RGB. Raises DatasetError, also if it cannot be decoded."""
    *_, rate = video_size(path)
    capture = _open_capture(path)
    try:
        if number and _frame_count(capture):
            capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        elif number:  # a stream has no index, and a jump in it ends at the first frame
            for _ in range(number):
                capture.grab()
        ok, frame = capture.read()
        if not ok and number:  # a jump begins some frames before, and a damaged packet on the way ends it
            capture.release()
            capture = _open_capture(path)
            at = -1
            while at < number and grab_frame(capture) is not None:
                at = round(capture.get(cv2.CAP_PROP_POS_MSEC) * rate / 1000)
            ok, frame = capture.retrieve() if at == number else (False, None)
    finally:
        capture.release()
    if not ok:
        raise DatasetError(f"The video {path} ends before frame {number}, or is damaged there.")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def grab_frame(capture: cv2.VideoCapture) -> int | None:
    """Decodes the next frame; returns how many damaged packets were passed before it, None at the end.

    OpenCV says at a damaged packet, too, that there is no frame.
    """
    for passed in range(MAX_DAMAGED):
        if capture.grab():
            return passed
    return None


def frames_lost(times_s: np.ndarray, announced: int, damaged: int) -> int:
    """How many frames of a video could not be decoded.

    Args:
        times_s: (N,) seconds of the frames that were.
        announced: number of frames by the header, 0 if it does not say.
        damaged: number of damaged packets before the last frame. More frames may depend on them.
    """
    missing = announced - len(times_s)
    if damaged:
        return max(damaged, missing)
    # Some containers count by their duration, which is right for a constant rate and up to rounding.
    return missing if missing > max(2, 0.02 * announced) and not is_variable(np.diff(times_s)) else 0


def is_variable(gaps: np.ndarray) -> bool:
    """Whether the distances (N,) between frames are those of a variable rate."""
    if not len(gaps):
        return False
    low, middle, high = np.percentile(gaps, (5, 50, 95))
    return bool(high - low > VARIATION * middle or gaps.max() > 1.5 * middle)


def _frame_count(capture: cv2.VideoCapture) -> int:
    """The number of frames by the header; 0 if it does not say."""
    return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))


def _open_capture(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise DatasetError(f"The file {path} does not exist.")
    # A playlist is text that names other files and servers, whatever its suffix; FFmpeg would open them.
    if identify_file(path).name in ("text", "html", "lfs-pointer", "empty"):
        raise DatasetError(f"{path} is not a readable video. {explain_unreadable(path)}")
    with readable_path(path) as name:
        capture = cv2.VideoCapture(name)
    if not capture.isOpened():
        raise DatasetError(f"{path} is not a readable video. {explain_unreadable(path, 'video')}".rstrip())
    return capture
