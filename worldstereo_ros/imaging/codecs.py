"""Pictures and depth images as bytes, files and ROS fields; the one place where they become numpy arrays.

Nothing here knows ROS: the functions take the fields of `sensor_msgs/Image` (encoding, height, width, step,
is_bigendian, data), so that the node and the bag reader share them. Every size is checked before memory is taken.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from worldstereo_ros.utils.errors import WorldStereoError

MAX_PIXELS = 64_000_000  # more than any camera a robot carries, and below 200 MB as RGB
MAX_DEPTH_METRES = 1000.0  # what is farther is sky or a fault, and would ruin a cloud

# encoding -> (channels, order that gives RGB)
_COLOUR = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC3": (3, (2, 1, 0)),  # no colour order is named; OpenCV's, as cv_bridge takes it
    "8UC1": (1, (0, 0, 0)),
}
_DEPTH = {"16UC1": (np.uint16, 1e-3), "mono16": (np.uint16, 1e-3), "32FC1": (np.float32, 1.0)}
COLOUR_ENCODINGS = tuple(_COLOUR)
DEPTH_ENCODINGS = tuple(_DEPTH)


class ImageError(WorldStereoError, ValueError):
    """A picture that cannot be used. The message is a sentence: what came, what was expected, what to do."""


# --- fields of sensor_msgs/Image -------------------------------------------------------------------------------------


def decode_colour(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: bytes | memoryview | np.ndarray
) -> np.ndarray:
    """Colour of a `sensor_msgs/Image`.

    Args:
        encoding: one of `COLOUR_ENCODINGS`.
        height, width: pixels. step: bytes from one row to the next, padding included.
        is_bigendian: has no meaning for 8-bit pixels.
        data: height * step bytes, as anything with the buffer protocol. It is not kept.

    Returns:
        (height, width, 3) uint8 RGB, a copy of its own.

    Raises:
        ImageError: encoding unknown, or the sizes disagree or are absurd.
    """
    if encoding not in _COLOUR:
        raise ImageError(
            f"The image has encoding '{encoding}'; a colour image is one of {', '.join(_COLOUR)}. "
            "Convert it before (image_proc debayers and converts)."
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
    """Depth of a `sensor_msgs/Image`: 16UC1 is millimetres, 32FC1 metres (REP 118).

    Returns:
        (height, width) float32 metres, 0 where the sensor says nothing (0, NaN, infinity, negative, over 1000 m).

    Raises:
        ImageError: encoding unknown, or the sizes disagree or are absurd.
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
    """Depth in metres with everything that is no distance (NaN, infinite, negative, over 1000 m) set to 0; float32."""
    depth = np.asarray(depth, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return np.where((depth > 0) & (depth <= MAX_DEPTH_METRES), depth, np.float32(0))


def encode_colour(image: np.ndarray) -> tuple[str, int, int, int, np.ndarray]:
    """(encoding, height, width, step, data) of an (H, W, 3) uint8 RGB or (H, W) uint8 image; data is flat uint8."""
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
    """(encoding, height, width, step, data) of (H, W) float32 metres; little endian, data is flat uint8.

    32FC1 says NaN where depth is 0 (unknown), 16UC1 says 0 and cuts off at 65.535 m (farther becomes unknown).
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
        raise ImageError(f"Depth cannot be encoded as '{encoding}'; 16UC1 or 32FC1 was expected.")
    return encoding, height, width, width * raw.itemsize, np.ascontiguousarray(raw).view(np.uint8).reshape(-1)


def _rows(
    encoding: str, height: int, width: int, step: int, data: bytes | memoryview | np.ndarray, pixel_bytes: int
) -> np.ndarray:
    """The bytes as (height, step) uint8, after every size has been checked."""
    if height <= 0 or width <= 0:
        raise ImageError(f"The image is {width}x{height}; at least one pixel was expected.")
    check_size(width, height)
    if step < width * pixel_bytes:
        raise ImageError(
            f"The image's step is {step} bytes; {width} pixels of {encoding} need {width * pixel_bytes} a row."
        )
    raw = np.frombuffer(data, dtype=np.uint8)
    # Some drivers leave the padding of the last row out.
    needed = (height - 1) * step + width * pixel_bytes
    if raw.size < needed or raw.size > height * step:
        raise ImageError(
            f"The image's data has {raw.size} bytes; {height} rows of step {step} are {height * step}. "
            "The message was cut off or its sizes are wrong."
        )
    if raw.size < height * step:
        raw = np.concatenate([raw, np.zeros(height * step - raw.size, np.uint8)])
    return raw.reshape(height, step)


# --- files and compressed messages -----------------------------------------------------------------------------------


def check_size(width: int, height: int, what: str = "The image") -> None:
    """Raises ImageError for a picture with more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{what} is {width}x{height} pixels; more than {MAX_PIXELS} are refused.")


def decode_compressed(data: bytes | memoryview, what: str = "The compressed image") -> np.ndarray:
    """Colour of PNG, JPEG, WebP ... bytes, as in `sensor_msgs/CompressedImage`.

    Returns:
        (H, W, 3) uint8 RGB. Transparency is dropped.

    Raises:
        ImageError: no picture, cut off, or more than `MAX_PIXELS` pixels (told from its header, before decoding).
    """
    return decode_image(data, what, depth=False)


def decode_compressed_depth(
    data: bytes | memoryview, format: str = "", what: str = "The compressed depth image"
) -> np.ndarray:
    """Depth of a `sensor_msgs/CompressedImage` or of plain 16-bit PNG bytes (millimetres).

    A `compressedDepth` message has 12 bytes before the PNG: a kind and two numbers a, b. Where `format` begins with
    32FC1 the PNG holds quantised inverse depth, depth = a / (value - b); else it holds millimetres.

    Returns:
        (H, W) float32 metres, 0 = unknown.

    Raises:
        ImageError: no 16-bit PNG, cut off, or too large.
    """
    raw = bytes(data)
    start = raw.find(b"\x89PNG\r\n\x1a\n", 0, 20)
    if start < 0:
        raise ImageError(f"{what} ('{format}') holds no PNG; only PNG compression is read. Record it raw or as png.")
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
        what: how an error names it, e.g. "The image a.png".
        depth: keep the one 16-bit channel instead of converting to RGB.

    Returns:
        (H, W, 3) uint8 RGB, or (H, W) of a 16-bit or 32-bit integer type where `depth`.

    Raises:
        ImageError: not an image, damaged, more than `MAX_PIXELS` pixels, or not 16-bit where `depth`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning about size comes later than our check
            picture = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{what} has more than {MAX_PIXELS} pixels and is refused.") from error
    except Exception as error:
        raise ImageError(f"{what} is no picture that can be read ({len(data)} bytes).") from error
    check_size(*picture.size, what=what)
    if depth and not picture.mode.startswith("I"):
        raise ImageError(f"{what} has pixels of kind '{picture.mode}'; 16 bits in one channel were expected.")
    try:
        with picture:
            return np.array(picture if depth else picture.convert("RGB"))
    except Exception as error:
        raise ImageError(f"{what} is damaged: {error}.") from error
