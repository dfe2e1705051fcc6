"""Decoding and encoding of colour and depth images: ROS message fields and image file bytes.

The functions do not import ROS. They take the fields of `sensor_msgs/Image` (encoding, height, width, step,
is_bigendian, data), so that the node and the bag reader share them. Sizes are checked before memory is allocated.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from worldstereo_ros.utils.errors import WorldStereoError

MAX_PIXELS = 64_000_000  # above the resolution of robot cameras, below 200 MB as RGB
MAX_DEPTH_M = 1000.0  # farther depth is sky or a sensor fault

# encoding -> (channels, channel order that gives RGB)
_COLOUR = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC3": (3, (2, 1, 0)),  # no colour order in the name: OpenCV's, as in cv_bridge
    "8UC1": (1, (0, 0, 0)),
}
_DEPTH = {"16UC1": (np.uint16, 1e-3), "mono16": (np.uint16, 1e-3), "32FC1": (np.float32, 1.0)}
COLOUR_ENCODINGS = tuple(_COLOUR)
DEPTH_ENCODINGS = tuple(_DEPTH)


class ImageError(WorldStereoError, ValueError):
    """An image that is invalid, damaged, too large or of an unsupported encoding."""


# --- fields of sensor_msgs/Image -------------------------------------------------------------------------------------


def decode_colour(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: bytes | memoryview | np.ndarray
) -> np.ndarray:
    """Decodes the colour image of a `sensor_msgs/Image`.

    Args:
        encoding: one of `COLOUR_ENCODINGS`.
        height, width: image size in pixels.
        step: bytes from one row to the next, padding included.
        is_bigendian: ignored, as pixels have 8 bits.
        data: height * step bytes, any object with the buffer protocol. No reference is kept.

    Returns:
        (height, width, 3) uint8 RGB, a copy.

    Raises:
        ImageError: the encoding is unsupported, or the sizes are inconsistent or too large.
    """
    if encoding not in _COLOUR:
        raise ImageError(
            f"The image has encoding '{encoding}'; a colour image is one of {', '.join(_COLOUR)}. "
            "Convert it first (image_proc debayers and converts)."
        )
    channels, order = _COLOUR[encoding]
    rows = _rows(encoding, height, width, step, data, channels)
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    if order == (0, 1, 2) and channels == 3:
        return pixels.copy()
    if channels == 1:
        return np.repeat(pixels, 3, axis=2)
    return np.ascontiguousarray(pixels[..., list(order)])


def decode_depth(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: bytes | memoryview | np.ndarray
) -> np.ndarray:
    """Decodes the depth image of a `sensor_msgs/Image`: 16UC1 is millimetres, 32FC1 metres (REP 118).

    Args:
        encoding: one of `DEPTH_ENCODINGS`.
        height, width, step, data: see `decode_colour`.
        is_bigendian: byte order of the pixels.

    Returns:
        (height, width) float32 metres, 0 where unknown (0, NaN, infinity, negative or over 1000 m).

    Raises:
        ImageError: the encoding is unsupported, or the sizes are inconsistent or too large.
    """
    if encoding not in _DEPTH:
        raise ImageError(
            f"The depth image has encoding '{encoding}'; depth is 16UC1 (millimetres) or 32FC1 (metres). "
            "Is this the colour topic?"
        )
    dtype, scale = _DEPTH[encoding]
    size = np.dtype(dtype).itemsize
    rows = _rows(encoding, height, width, step, data, size)
    raw = np.ascontiguousarray(rows[:, : width * size]).view(np.dtype(dtype).newbyteorder(">" if is_bigendian else "<"))
    depth = raw.astype(np.float32)
    return clean_depth(depth * np.float32(scale) if scale != 1 else depth)


def clean_depth(depth: np.ndarray) -> np.ndarray:
    """Returns depth in metres as float32 with invalid values (NaN, infinite, negative, over 1000 m) set to 0."""
    depth = np.asarray(depth, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return np.where((depth > 0) & (depth <= MAX_DEPTH_M), depth, np.float32(0))


def encode_colour(image: np.ndarray) -> tuple[str, int, int, int, np.ndarray]:
    """Encodes an image as the fields of a `sensor_msgs/Image`.

    Args:
        image: (H, W, 3) uint8 RGB or (H, W) uint8.

    Returns:
        (encoding, height, width, step, data); data is flat uint8.

    Raises:
        ImageError: another type or shape.
    """
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise ImageError(f"The image is {image.dtype} of shape {image.shape}; uint8 (H, W, 3) or (H, W) was expected.")
    height, width = image.shape[:2]
    channels = 1 if image.ndim == 2 else 3
    return (
        "mono8" if channels == 1 else "rgb8",
        height,
        width,
        width * channels,
        np.ascontiguousarray(image).reshape(-1),
    )


def encode_depth(depth: np.ndarray, encoding: str = "32FC1") -> tuple[str, int, int, int, np.ndarray]:
    """Encodes depth as the fields of a little-endian `sensor_msgs/Image`.

    Args:
        depth: (H, W) float32 metres, 0 = unknown.
        encoding: "32FC1" (metres, NaN = unknown) or "16UC1" (millimetres, 0 = unknown or beyond 65.535 m).

    Returns:
        (encoding, height, width, step, data); data is flat uint8.

    Raises:
        ImageError: another shape or encoding.
    """
    if depth.ndim != 2:
        raise ImageError(f"The depth has shape {depth.shape}; (H, W) was expected.")
    depth = clean_depth(depth)
    height, width = depth.shape
    if encoding == "32FC1":
        raw = np.where(depth > 0, depth, np.float32(np.nan)).astype("<f4")
    elif encoding == "16UC1":
        millimetres = np.rint(depth * 1000)
        raw = np.where(millimetres <= 65535, millimetres, 0).astype("<u2")
    else:
        raise ImageError(f"The depth encoding '{encoding}' is unsupported; 16UC1 or 32FC1 was expected.")
    return encoding, height, width, width * raw.itemsize, np.ascontiguousarray(raw).view(np.uint8).reshape(-1)


def _rows(
    encoding: str, height: int, width: int, step: int, data: bytes | memoryview | np.ndarray, pixel_bytes: int
) -> np.ndarray:
    """Returns the bytes as (height, step) uint8 after checking the sizes."""
    if height <= 0 or width <= 0:
        raise ImageError(f"The image is {width}x{height}; at least one pixel was expected.")
    check_size(width, height)
    if step < width * pixel_bytes:
        raise ImageError(
            f"The image's step is {step} bytes; {width} pixels of {encoding} need {width * pixel_bytes} per row."
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    # Some drivers omit the padding of the last row.
    needed = (height - 1) * step + width * pixel_bytes
    if raw.size < needed or raw.size > height * step:
        raise ImageError(
            f"The image's data has {raw.size} bytes; {height} rows of step {step} are {height * step}. "
            "The message is truncated or its sizes are wrong."
        )
    if raw.size < height * step:
        raw = np.concatenate([raw, np.zeros(height * step - raw.size, np.uint8)])
    return raw.reshape(height, step)


# --- files and compressed messages -----------------------------------------------------------------------------------


def check_size(width: int, height: int, what: str = "The image") -> None:
    """Raises ImageError for an image of more than `MAX_PIXELS` pixels; `what` is the subject of the message."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{what} is {width}x{height}; at most {MAX_PIXELS} pixels are accepted.")


def decode_compressed(data: bytes | memoryview, what: str = "The compressed image") -> np.ndarray:
    """Decodes the bytes of a PNG, JPEG, WebP, ... image, as in `sensor_msgs/CompressedImage`.

    Args:
        data: the encoded image.
        what: subject of the error messages.

    Returns:
        (H, W, 3) uint8 RGB, without alpha.

    Raises:
        ImageError: not an image, truncated, or more than `MAX_PIXELS` pixels (checked before decoding).
    """
    return decode_image(data, what, depth=False)


def decode_compressed_depth(
    data: bytes | memoryview, format: str = "", what: str = "The compressed depth image"
) -> np.ndarray:
    """Decodes the depth of a `sensor_msgs/CompressedImage` or of a plain 16-bit PNG (millimetres).

    A `compressedDepth` message has a header of 12 bytes before the PNG: a compression type and two parameters a, b. If
    `format` starts with 32FC1, the PNG holds quantised inverse depth, depth = a / (value - b); otherwise millimetres.

    Args:
        data: the data of the message.
        format: the format of the message.
        what: subject of the error messages.

    Returns:
        (H, W) float32 metres, 0 = unknown.

    Raises:
        ImageError: not a 16-bit PNG, truncated, or too large.
    """
    raw = bytes(data)
    start = raw.find(b"\x89PNG\r\n\x1a\n", 0, 20)
    if start < 0:
        raise ImageError(
            f"{what} ('{format}') has no PNG data; only PNG compression is supported. Record it raw or as png."
        )
    counts = decode_image(raw[start:], what, depth=True)
    if start == 12 and format.lstrip().startswith("32FC1"):
        a, b = np.frombuffer(raw, "<f4", count=2, offset=4).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return clean_depth(np.where(counts > 0, a / (counts - b), 0))
    return clean_depth(counts.astype(np.float32) * np.float32(1e-3))


def decode_image(data: bytes | memoryview, what: str, *, depth: bool) -> np.ndarray:
    """Decodes the bytes of an image file.

    Args:
        data: the whole file.
        what: subject of the error messages, such as "The image a.png".
        depth: decode one 16-bit channel instead of RGB.

    Returns:
        (H, W, 3) uint8 RGB; if `depth`, (H, W) of a 16-bit or 32-bit integer type.

    Raises:
        ImageError: not an image, damaged, more than `MAX_PIXELS` pixels, or not a 16-bit image if `depth`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; `check_size` rejects them
            file = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{what} is too large; at most {MAX_PIXELS} pixels are accepted.") from error
    except Exception as error:
        raise ImageError(f"{what} is not a readable image ({len(data)} bytes).") from error
    check_size(*file.size, what=what)
    if depth and not file.mode.startswith("I"):
        raise ImageError(f"{what} has pixel mode '{file.mode}'; one channel of 16 bits was expected.")
    try:
        with file:
            return np.array(file if depth else file.convert("RGB"))
    except Exception as error:
        raise ImageError(f"{what} is damaged: {error}.") from error
