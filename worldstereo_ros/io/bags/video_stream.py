"""Decodes H.264 and H.265 topics of bags, with the ffmpeg that imageio-ffmpeg brings.

Frames of a video depend on earlier ones, so all messages from the first key frame on are decoded in recorded order, and
those that are not wanted are dropped. Each frame carries the number of its message through the decoder. A message
that is damaged, or was never recorded (`h264_gaps`; decoders of H.265 notice it), loses the frames that depend on it,
up to the next key frame, and never shifts the others.
"""

from __future__ import annotations

import re
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from worldstereo_ros.imaging.codecs import MAX_PIXELS, ImageError
from worldstereo_ros.io.bags.files import Bag, BagError
from worldstereo_ros.io.bags.h264_gaps import FrameCounter
from worldstereo_ros.io.bags.video_types import video_advice, video_codec

_DECODERS = {"h264": "h264", "h265": "hevc"}  # codec -> name in ffmpeg
_H264_KEY_UNITS = (5, 7)  # types of network abstraction layer units: a key frame's slice, a sequence parameter set
_H265_KEY_UNITS = (*range(16, 22), *range(32, 35))
_MAX_PACKET = 64 << 20
_SHOWN = re.compile(rb"\] n: *\d+ pts: *(-?\d+) ")  # of ffmpeg's filter showinfo


def starts_video(data: bytes, codec: str) -> bool:
    """Whether an access unit (Annex B) can be the first of a video: it holds a key frame or its parameters."""
    types = [data[at.end()] for at in re.finditer(b"\x00\x00\x01", data) if at.end() < len(data)]
    if codec == "h264":
        return any(unit & 0x1F in _H264_KEY_UNITS for unit in types)
    return any(unit >> 1 & 0x3F in _H265_KEY_UNITS for unit in types)


class VideoStream:
    """Context manager that decodes a stream of packets.

    Args:
        packets: (number, data in Annex B) in recorded order, numbers ascending; iterated in a thread of its own.
        codec: "h264" or "h265".
        name: of the topic, for messages.
    """

    def __init__(self, packets: Iterator[tuple[int, bytes]], codec: str, name: str) -> None:
        self._packets, self._codec, self._name = packets, codec, name
        self._numbers: deque[int] = deque()  # of the frames that ffmpeg wrote
        # Of the packets it got: number, whether it is a key frame, whether a frame is missing before it.
        self._written: deque[tuple[int, bool, bool]] = deque()
        self._broken = False  # a frame is missing, on which the following ones depend
        self._problem: Exception | None = None
        self._next: tuple[int, np.ndarray] | None = None

    def __enter__(self) -> VideoStream:
        from imageio_ffmpeg import get_ffmpeg_exe

        try:
            program = get_ffmpeg_exe()
        except RuntimeError as error:
            raise BagError(f"'{self._name}' is video, and there is no ffmpeg to decode it: {error}") from error
        command = [program, "-hide_banner", "-nostats", "-loglevel", "info", "-copyts", "-protocol_whitelist", "pipe"]
        command += ["-threads", "1", "-flags", "low_delay", "-err_detect", "explode", "-max_pixels", str(MAX_PIXELS)]
        command += ["-f", "ivf", "-c:v", _DECODERS[self._codec], "-i", "pipe:0"]
        command += ["-vf", "showinfo", "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._feed, self._read_numbers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def frame(self, number: int) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB of a message; numbers ascend from call to call.

        Raises:
            ImageError: the message has no frame: it is damaged, or comes before the first key frame.
            BagError: the bag could not be read on.
        """
        while self._next is None or self._next[0] < number:
            self._next = self._read_intact()
            if self._next is None:
                if self._problem is not None:
                    raise self._problem
                raise ImageError("The video has no frame for this message: it is damaged, or no key frame precedes it.")
        if self._next[0] > number:
            raise ImageError("The video has no frame for this message: it is damaged, or no key frame precedes it.")
        return self._next[1]

    def _read_intact(self) -> tuple[int, np.ndarray] | None:
        """The next frame that depends on no missing one; None at the end."""
        while (found := self._read()) is not None:
            while self._written:
                number, key, gap = self._written.popleft()
                self._broken = number < found[0] or gap or (self._broken and not key)
                if number >= found[0]:
                    break
            if not self._broken:
                return found
        return None

    def _read(self) -> tuple[int, np.ndarray] | None:
        """The next frame with its number; None at the end."""
        stream = self._process.stdout
        assert stream is not None
        if stream.readline() != b"P6\n":
            return None
        width, height = (int(word) for word in stream.readline().split())
        stream.readline()  # the largest value, 255
        size = width * height * 3
        data = stream.read(size)
        if len(data) < size:
            return None
        while not self._numbers:  # ffmpeg writes the line of a frame before the frame; its reader may be behind
            if not self._threads[1].is_alive() and not self._numbers:
                return None
            self._threads[1].join(0.002)
        return self._numbers.popleft(), np.frombuffer(data, np.uint8).reshape(height, width, 3)

    def _feed(self) -> None:
        """Writes the packets in an IVF container, whose frames carry the numbers as times."""
        stream = self._process.stdin
        assert stream is not None
        try:
            # Version, length of the header, codec, width and height (which the command line and the video say), time
            # base of 1 / 1000, number of frames, unused.
            stream.write(b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"H264", 0, 0, 1000, 1, 0, 0))
            started, counter = False, FrameCounter()
            for number, data in self._packets:
                started = started or starts_video(data, self._codec)
                if started and 0 < len(data) <= _MAX_PACKET:
                    gap = self._codec == "h264" and counter.frame_is_missing(data)
                    self._written.append((number, starts_video(data, self._codec), gap))
                    stream.write(struct.pack("<IQ", len(data), number) + data)
        except BrokenPipeError:
            pass  # the stream was closed: no more frames are wanted
        except Exception as error:
            self._problem = error
        finally:
            with suppress(OSError):
                stream.close()

    def _read_numbers(self) -> None:
        """Collects the numbers that ffmpeg prints of the frames it writes."""
        stream = self._process.stderr
        assert stream is not None
        for line in stream:
            if found := _SHOWN.search(line):
                self._numbers.append(int(found[1]))


def open_video(bag: Bag, topic: str) -> VideoStream:
    """The stream of a video topic, to be entered; it reads the bag through a handle of its own.

    Args:
        bag: open bag.
        topic: of one of `video_types.DECODED_TYPES`.

    Raises:
        BagError: the video is of a codec that is not decoded; the message says what converts it.
    """
    for _, _, raw in bag.messages({topic}):
        try:
            message = bag.decode(topic, raw)
        except BagError:
            continue
        if codec := video_codec(message):
            return VideoStream(_packets(bag.path, topic), codec, topic)
        named = str(getattr(message, "format", "") or getattr(message, "encoding", ""))[:32]
        advice = video_advice(bag.topics[topic])
        raise BagError(f"The video on '{topic}' is '{named}'; h264 or h265 was expected. {advice}")
    raise BagError(f"'{topic}' in {bag.path} has no message that is not damaged.")


def _packets(path: Path, topic: str) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the message, data) of a topic; damaged messages are left out."""
    with Bag(path) as bag:
        for number, (_, _, raw) in enumerate(bag.messages({topic})):
            try:
                yield number, bytes(bag.decode(topic, raw).data)
            except BagError:
                continue
