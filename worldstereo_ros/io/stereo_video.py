"""Writes stereo videos in parts with the bundled ffmpeg, and joins them with the sound of their source.

Each part appears whole or not at all, so that an interrupted conversion resumes where it stopped.
"""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.utils.atomic_files import atomic_path, readable_path, write_text

QUALITY = "17"  # constant rate factor of x264; 18 is taken for visually lossless
_TIMEOUT_S = 20
_FRAME_TIME = re.compile(rb" pts_time:\s*(-?[\d.]+(?:e[-+]?\d+)?) ")
_AUDIO = re.compile(rb"Stream #\d+:\d+.*: Audio: ")


@dataclass(frozen=True)
class VideoCodec:
    """How a stream of images is encoded.

    Attributes:
        suffix: of the file.
        codec: name in ffmpeg.
        options: further options of ffmpeg.
        pixels: pixel format of the frames given: rgb24 or gray.
    """

    suffix: str
    codec: str
    options: tuple[str, ...]
    pixels: str = "rgb24"


LABELS = VideoCodec(".mkv", "ffv1", ("-pix_fmt", "gray"), "gray")  # without loss


def h264(packing: int | None) -> VideoCodec:
    """H.264 for players, with a frame packing message (ITU-T H.264, D.1.26) if `packing` is not None."""
    options = ["-pix_fmt", "yuv420p", "-preset", "fast", "-crf", QUALITY, "-movflags", "+faststart"]
    if packing is not None:
        options += ["-x264-params", f"frame-packing={packing}"]
    return VideoCodec(".mp4", "libx264", tuple(options))


@lru_cache(maxsize=1)
def frame_packing_problem() -> str:
    """Why the installed ffmpeg cannot write H.264 frame packing messages, one sentence; empty if it can.

    Raises:
        DatasetError: there is no ffmpeg with an H.264 encoder at all.
    """
    frame = bytes(64 * 64 * 3)
    for packing in (3, None):
        codec = h264(packing)
        command = [*_ffmpeg(), "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-i", "pipe:0"]
        command += ["-c:v", codec.codec, *codec.options, "-f", "h264", "pipe:1"]
        command = [word for word in command if word not in ("-movflags", "+faststart")]
        done = subprocess.run(command, input=frame, capture_output=True, timeout=_TIMEOUT_S, check=False)
        if done.returncode == 0 and done.stdout:
            if packing is not None:
                return ""
            return (
                "The installed ffmpeg has no x264 that writes frame packing: the file's name alone says how its eyes "
                "are arranged."
            )
    raise DatasetError(
        "The installed ffmpeg cannot encode H.264, so no video can be written. Run: pip install -U imageio-ffmpeg"
    )


class PartWriter:
    """Context manager that writes one part of a video, which appears when the block ends without an exception.

        with PartWriter(path, 30.0, h264(3)) as part:
            part.write(frame)

    Args:
        path: file with the suffix of the codec.
        rate: frames per second.
        codec: how to encode.
    """

    def __init__(self, path: Path, rate: float, codec: VideoCodec) -> None:
        self._path, self._rate, self._codec = path, rate, codec
        self._stack = ExitStack()
        self._count = 0
        self._writer: Generator[None, np.ndarray, None] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame (H, W, 3) or (H, W) uint8 of even size, as the codec's `pixels` says; all are of one size.

        Raises:
            OSError: ffmpeg ended, as when the disk is full.
        """
        if self._writer is None:
            self._writer = self._start(frame.shape[1], frame.shape[0])
        self._writer.send(np.ascontiguousarray(frame))
        self._count += 1

    def _start(self, width: int, height: int) -> Generator[None, np.ndarray, None]:
        from imageio_ffmpeg import write_frames

        writer = write_frames(
            self._target, (width, height), pix_fmt_in=self._codec.pixels, fps=self._rate, codec=self._codec.codec,
            quality=None, macro_block_size=1, ffmpeg_log_level="error", output_params=list(self._codec.options),
            pix_fmt_out=_pixel_format(self._codec),
        )  # fmt: skip
        writer.send(None)
        return writer

    def __enter__(self) -> PartWriter:
        self._target = str(self._stack.enter_context(atomic_path(self._path)).absolute())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._writer is not None:
            self._writer.close()
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        try:
            self._check()
        except OSError as problem:
            # Within the block of `atomic_path`, which removes the file and names it in the error.
            self._stack.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._stack.close()

    def _check(self) -> None:
        """Counts the frames in the file: ffmpeg's exit status is not passed on. Raises OSError."""
        from imageio_ffmpeg import count_frames_and_secs

        try:
            found = count_frames_and_secs(self._target)[0]
        except (RuntimeError, OSError):
            found = 0
        if found != self._count:
            raise OSError(errno.EIO, f"{found} of its {self._count} frames are in the file; the disk may be full")


def join_parts(path: Path, parts: list[Path], sound: Path | None, start_s: float = 0.0) -> str:
    """Joins parts to a video, without encoding again, and adds the sound of the source.

    Args:
        path: file to write, of the parts' suffix.
        parts: the parts in order, in one folder.
        sound: video whose sound is kept; None for none.
        start_s: when the first frame is shown, on the clock of the sound, seconds; see `picture_start`.

    Returns:
        What became of the sound: "copied", "encoded again as AAC", "none in the source", or "lost: REASON".

    Raises:
        WriteError: the file cannot be written.
    """
    listing = parts[0].parent / "parts.txt"
    write_text(listing, "ffconcat version 1.0\n" + "".join(f"file '{part.name}'\n" for part in parts))
    video = ["-itsoffset", f"{start_s:.6f}", "-f", "concat", "-i", str(listing.absolute())]
    with_sound = sound is not None and has_sound(sound)
    reason = ""
    for codec, outcome in (("copy", "copied"), ("aac", "encoded again as AAC")) if with_sound else ():
        assert sound is not None
        with readable_path(sound) as name:
            inputs = [*video, "-i", name, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", codec]
            reason = _join(path, inputs)
        if not reason:
            return outcome
    problem = _join(path, [*video, "-map", "0:v", "-c:v", "copy"])
    if problem:
        with atomic_path(path):  # says that it cannot be written
            raise OSError(errno.EIO, f"ffmpeg cannot join the parts: {problem}")
    return f"lost: {reason}" if with_sound else "none in the source"


def has_sound(path: Path) -> bool:
    """Whether a file has a sound track."""
    with readable_path(path) as name:
        done = subprocess.run([*_ffmpeg(), "-loglevel", "info", "-i", name], capture_output=True, check=False)
    return _AUDIO.search(done.stderr) is not None


def picture_start(path: Path) -> float:
    """When the first frame of a video is shown on the clock of its sound, seconds; 0 where it does not say.

    The times that OpenCV gives count from the start of the picture. Those of ffmpeg count from the start of the file,
    which is that of the sound if it comes first.
    """
    with readable_path(path) as name:
        command = [*_ffmpeg(), "-loglevel", "info", "-i", name, "-map", "0:V:0", "-frames:v", "1", "-vf", "showinfo"]
        done = subprocess.run([*command, "-f", "null", "-"], capture_output=True, check=False)
    found = _FRAME_TIME.search(done.stderr)
    return float(found[1]) if found else 0.0


def _join(path: Path, inputs: list[str]) -> str:
    """Runs ffmpeg; returns its last line if it fails."""
    try:
        with atomic_path(path) as partial:
            command = [*_ffmpeg(), "-y", *inputs, "-movflags", "+faststart", str(partial.absolute())]
            if path.suffix != ".mp4":
                command = [word for word in command if word not in ("-movflags", "+faststart")]
            done = subprocess.run(command, capture_output=True, check=False)
            if done.returncode != 0:
                lines = done.stderr.decode(errors="replace").strip().splitlines()
                raise _JoinError(lines[-1] if lines else f"exit status {done.returncode}")
    except _JoinError as error:
        return str(error)
    return ""


class _JoinError(Exception):
    """ffmpeg failed."""


def _pixel_format(codec: VideoCodec) -> str:
    options = list(codec.options)
    return options[options.index("-pix_fmt") + 1]


def _ffmpeg() -> list[str]:
    from imageio_ffmpeg import get_ffmpeg_exe

    try:
        program = get_ffmpeg_exe()
    except RuntimeError as error:
        raise DatasetError(f"There is no ffmpeg to write videos with: {error}") from error
    # Playlists name other files and servers; a local file may open local files only.
    return [program, "-hide_banner", "-nostdin", "-loglevel", "error", "-protocol_whitelist", "file,pipe"]
