"""Decoding and encoding of colour and depth images: the fields of `sensor_msgs/Image`.

The functions do not import ROS, so that the node and the bag reader share them. Sizes are checked before memory is
allocated. Image files and compressed messages are decoded by `compressed_images`.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.imaging.compressed_images import (
    IMAGE_FORMATS,
    compressed_size,
    decode_compressed,
    decode_compressed_depth,
    decode_image,
    holds_depth,
    open_image,
)
from worldstereo_ros.imaging.image_checks import (
    MAX_DEPTH_M,
    MAX_PIXELS,
    ImageError,
    check_size,
    clean_depth,
    depth_from_counts,
    depth_to_counts,
)
from worldstereo_ros.imaging.pixel_formats import COLOUR_FORMATS, DEPTH_FORMATS, DEPTH_SCALES

__all__ = [
    "COLOUR_ENCODINGS",
    "DEPTH_ENCODINGS",
    "IMAGE_FORMATS",
    "MAX_DEPTH_M",
    "MAX_PIXELS",
    "ImageError",
    "check_fields",
    "check_size",
    "clean_depth",
    "compressed_size",
    "decode_colour",
    "decode_compressed",
    "decode_compressed_depth",
    "decode_depth",
    "decode_image",
    "depth_from_counts",
    "depth_to_counts",
    "encode_colour",
    "encode_depth",
    "holds_depth",
    "open_image",
]

COLOUR_ENCODINGS = tuple(COLOUR_FORMATS)
DEPTH_ENCODINGS = tuple(DEPTH_FORMATS)


def check_fields(
    encoding: str,
    height: int,
    width: int,
    step: int,
    size: int,
    *,
    depth: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Checks the fields of a `sensor_msgs/Image` without reading its pixels, which is cheap enough for a callback.

    Args:
        encoding, height, width, step: fields of the message.
        size: length of its data in bytes.
        depth: a depth image is expected instead of a colour image.
        max_pixels: largest width * height that is accepted.

    Raises:
        ImageError: unknown encoding, no pixels, too many pixels, a step too short, or data of the wrong length.
    """
    formats = DEPTH_FORMATS if depth else COLOUR_FORMATS
    if encoding not in formats:
        raise ImageError(_unsupported(encoding, depth))
    layout = formats[encoding]
    check_size(width, height, max_pixels=max_pixels)
    if width % layout.width_multiple or height % layout.height_multiple:
        raise ImageError(f"The image is {width}x{height}; {encoding} needs an even {_even(layout.height_multiple)}.")
    row = width * layout.row_bytes_per_pixel
    if step < row:
        raise ImageError(f"The image's step is {step} bytes; {width} pixels of {encoding} need {row} bytes per row.")
    rows = layout.rows(height)
    # Some drivers omit the padding of the last row.
    if not (rows - 1) * step + row <= size <= rows * step:
        raise ImageError(
            f"The image's data has {size} bytes; {rows} rows of step {step} are {rows * step}. "
            "The message is truncated or its sizes are wrong."
        )


def _even(height_multiple: int) -> str:
    return "width" if height_multiple == 1 else "width and height"


def _unsupported(encoding: str, depth: bool) -> str:
    """Message for an encoding that is not decoded, or not as what was asked for."""
    came = encoding[:32]
    if depth:
        hint = "Is this the colour topic?" if encoding in COLOUR_FORMATS else "Convert it first (`image_proc`)."
        return f"The depth image has encoding '{came}'; depth is 16UC1 (millimetres) or 32FC1 (metres). {hint}"
    hint = "Is this the depth topic?" if encoding in DEPTH_FORMATS else "Convert it first (`image_proc`, `cv_bridge`)."
    return f"The image has encoding '{came}'; a colour image is one of {', '.join(COLOUR_FORMATS)}. {hint}"


def decode_colour(
    encoding: str, height: int, width: int, step: int, is_bigendian: bool, data: bytes | memoryview | np.ndarray
) -> np.ndarray:
    """Decodes the colour image of a `sensor_msgs/Image`.

    YUV is converted by BT.601 of limited range, as cv_bridge does; a Bayer mosaic is interpolated bilinearly; 16 bits
    are scaled to 8 by their whole range.

    Args:
        encoding: one of `COLOUR_ENCODINGS`.
        height, width: image size in pixels.
        step: bytes from one row to the next, padding included.
        is_bigendian: byte order of 16-bit pixels.
        data: height * step bytes (3/2 of it for nv12 and nv21), any object with the buffer protocol. No reference is
            kept.

    Returns:
        (height, width, 3) uint8 RGB, a copy.

    Raises:
        ImageError: the encoding is unsupported, or the sizes are inconsistent or too large.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    check_fields(encoding, height, width, step, raw.size)
    layout = COLOUR_FORMATS[encoding]
    assert layout.to_rgb is not None
    rows = _rows(raw, layout.rows(height), width * layout.row_bytes_per_pixel, step)
    return layout.to_rgb(rows, height, width, is_bigendian)


def decode_depth(
    encoding: str,
    height: int,
    width: int,
    step: int,
    is_bigendian: bool,
    data: bytes | memoryview | np.ndarray,
    *,
    unit: float | None = None,
) -> np.ndarray:
    """Decodes the depth image of a `sensor_msgs/Image`: 16UC1 is millimetres, 32FC1 metres (REP 118).

    Args:
        encoding: one of `DEPTH_ENCODINGS`.
        height, width, step, data: see `decode_colour`.
        is_bigendian: byte order of the pixels.
        unit: metres per stored value, for drivers that do not keep to REP 118; None = by the encoding.

    Returns:
        (height, width) float32 metres, 0 where unknown (0, 65535 of 16 bits, NaN, infinity, negative or over 1000 m).

    Raises:
        ImageError: the encoding is unsupported, or the sizes are inconsistent or too large.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    check_fields(encoding, height, width, step, raw.size, depth=True)
    dtype, scale = DEPTH_SCALES[encoding]
    rows = _rows(raw, height, width * np.dtype(dtype).itemsize, step)
    values = np.ascontiguousarray(rows).view(np.dtype(dtype).newbyteorder(">" if is_bigendian else "<"))
    metres = unit or scale
    if dtype is np.float32:
        return clean_depth(values.astype(np.float32) * np.float32(metres))
    return depth_from_counts(values, 1 / metres)


def _rows(raw: np.ndarray, count: int, row: int, step: int) -> np.ndarray:
    """Returns the bytes as (count, row) uint8 without the padding; sizes as `check_fields` checks them.

    No array is taken by `step`: a message of one row may declare any step, whatever data it has.
    """
    if raw.size == count * step:
        return raw.reshape(count, step)[:, :row]
    head = raw[: (count - 1) * step].reshape(count - 1, step)[:, :row] if count > 1 else raw[:0].reshape(0, row)
    last = raw[(count - 1) * step :][:row]
    return np.concatenate([head, last[None]])


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
        encoding: "32FC1" (metres, NaN = unknown) or "16UC1" (millimetres, 0 = unknown or beyond 65.534 m).

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
        raw = depth_to_counts(depth).astype("<u2")
    else:
        raise ImageError(f"The depth encoding '{encoding}' is unsupported; 16UC1 or 32FC1 was expected.")
    return encoding, height, width, width * raw.itemsize, np.ascontiguousarray(raw).view(np.uint8).reshape(-1)
