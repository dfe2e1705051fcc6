"""Decoding of RVL, the lossless compression of depth images in compressed_depth_image_transport.

Wilson, "Fast Lossless Depth Image Compression", ISS 2017. The image is a series of runs: a number of zeros, a number
of measured pixels, and the difference of each measured pixel to the one before. Numbers are of variable length, three
bits in each nibble, whose highest bit says whether the number continues; nibbles are packed in 32-bit words, the
highest first.
"""

from __future__ import annotations

import struct

import numpy as np

from worldstereo_ros.imaging.image_checks import MAX_PIXELS, ImageError, check_size
from worldstereo_ros.utils.jit import compiled


def decode_rvl(data: bytes, what: str = "The RVL image", *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an RVL image.

    Args:
        data: int32 width, int32 height, and the runs, little-endian.
        what: subject of the error messages.
        max_pixels: largest width * height that is accepted.

    Returns:
        (H, W) uint16 counts, 0 = unknown.

    Raises:
        ImageError: the data is truncated or inconsistent, or the image is too large.
    """
    if len(data) < 8:
        raise ImageError(f"{what} has {len(data)} bytes; RVL data starts with its width and height.")
    width, height = struct.unpack_from("<ii", data)
    check_size(width, height, what, max_pixels)
    words = np.frombuffer(data, "<u4", count=(len(data) - 8) // 4, offset=8)
    counts = np.zeros(width * height, np.uint16)
    if not _decode(np.ascontiguousarray(words, dtype=np.uint32), counts):
        raise ImageError(f"{what} is damaged: its RVL data does not give {width}x{height} pixels.")
    return counts.reshape(height, width)


@compiled
def _number(words: np.ndarray, position: int) -> tuple[int, int]:
    """Reads the number at a nibble; returns (number, position of the next nibble), the number -1 past the end."""
    value, shift = 0, 0
    while position < words.size * 8 and shift <= 30:
        nibble = np.int64((words[position >> 3] >> np.uint32(28 - 4 * (position & 7))) & np.uint32(15))
        position += 1
        value |= int((nibble & 7) << shift)
        shift += 3
        if nibble < 8:
            return value, position
    return -1, position


@compiled
def _decode(words: np.ndarray, out: np.ndarray) -> bool:
    """Fills `out` (N,) from the nibbles of `words`; False if they end too early or give more pixels than N."""
    position, filled, previous = 0, 0, 0
    while filled < out.size:
        zeros, position = _number(words, position)
        if zeros < 0 or zeros > out.size - filled:
            return False
        filled += zeros
        measured, position = _number(words, position)
        if measured < 0 or measured > out.size - filled or zeros + measured == 0:
            return False
        for _ in range(measured):
            value, position = _number(words, position)
            if value < 0:
                return False
            previous += (value >> 1) ^ -(value & 1)
            out[filled] = np.uint16(previous & 0xFFFF)
            filled += 1
    return True
