"""Videos with damaged packets."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

RATE, SIZE = 10, (64, 48)


def write_damaged_video(path: Path, frames: int, damaged: set[int], *, sound: bool = False) -> None:
    """Writes a video whose frame k has the grey level 8 k, and overwrites the packets of some frames.

    Its frames are independent of each other, so that each damaged packet loses one.
    """
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    width, height = SIZE
    images = b"".join(np.full((height, width, 3), 8 * k, np.uint8).tobytes() for k in range(frames))
    command = [ffmpeg, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(RATE), "-i", "-"]
    if sound:
        command += ["-f", "lavfi", "-i", f"sine=frequency=440:duration={frames / RATE}", "-c:a", "aac"]
    command += ["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p", str(path)]
    subprocess.run(command, input=images, check=True)
    content = path.read_bytes()
    packets = list(re.finditer(rb"\xff\xd8\xff.*?\xff\xd9", content, re.DOTALL))
    assert len(packets) == frames
    for number in damaged:
        start, end = packets[number].span()
        content = content[:start] + bytes(end - start) + content[end:]
    path.write_bytes(content)


def levels(frames) -> list[int]:
    """Numbers of the frames by their grey level."""
    return [round(float(frame.mean()) / 8) for frame in frames]
