"""Fields of serialized and decoded messages: stamps, frames, poses, images."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.imaging import codecs
from worldstereo_ros.io.bags.topics import COMPRESSED


def read_stamp(raw: memoryview, recorded_ns: int) -> int:
    """Reads the stamp of the header in nanoseconds, the first field of a message; the receive time if it is zero."""
    if len(raw) < 12:
        return recorded_ns
    seconds, nanoseconds = struct.unpack_from("<iI" if raw[1] & 1 else ">iI", raw, 4)
    return seconds * 1_000_000_000 + nanoseconds or recorded_ns


def read_frame_id(raw: memoryview) -> str:
    """Reads the frame_id of the header, which follows the stamp."""
    if len(raw) < 16:
        return ""
    (length,) = struct.unpack_from("<I" if raw[1] & 1 else ">I", raw, 12)
    return bytes(raw[16 : 16 + min(length, 256)]).rstrip(b"\0").decode("utf-8", "replace")


def pose_matrix(position: Any, orientation: Any) -> np.ndarray:
    """Converts position and orientation to a (4, 4) matrix. Raises InputError for a null pose, NaN and the like."""
    return pose_from_quaternion(
        (position.x, position.y, position.z), (orientation.x, orientation.y, orientation.z, orientation.w)
    )


def decode_colour(message: Any) -> np.ndarray:
    """Decodes an Image or CompressedImage to (H, W, 3) uint8 RGB. Raises ImageError."""
    if message.__msgtype__ == COMPRESSED:
        return codecs.decode_compressed(message.data, format=message.format)
    return codecs.decode_colour(
        message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    )


def decode_depth(message: Any, metres_per_count: float | None = None) -> np.ndarray:
    """Decodes an Image or CompressedImage of depth.

    Args:
        message: the decoded message.
        metres_per_count: metres of one stored value; None = by the encoding (16UC1 millimetres, 32FC1 metres).

    Returns:
        (H, W) float32 metres, 0 = unknown.

    Raises:
        ImageError: it is damaged, or no depth image.
    """
    if message.__msgtype__ == COMPRESSED:
        return codecs.decode_compressed_depth(message.data, message.format, unit=metres_per_count)
    fields = message.encoding, message.height, message.width, message.step, bool(message.is_bigendian), message.data
    return codecs.decode_depth(*fields, unit=metres_per_count)
