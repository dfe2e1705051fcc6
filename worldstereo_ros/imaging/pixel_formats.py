"""Layouts of the pixels of a `sensor_msgs/Image`: size of a row, and conversion to RGB.

Encodings are named as in sensor_msgs/image_encodings.hpp, with `nv12` as camera_ros publishes it. YUV is converted as
cv_bridge does: BT.601 of limited range. 16-bit colour and grey are scaled by the whole range of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.imaging.image_checks import ImageError


@dataclass(frozen=True)
class PixelFormat:
    """Layout of an encoding.

    Attributes:
        row_bytes_per_pixel: bytes of a row per pixel of width.
        rows_per_line: rows of `step` bytes per line of the image; 1.5 where the chroma planes follow at half height.
        width_multiple, height_multiple: the size is a multiple of these.
        to_rgb: (rows (R, width * row_bytes_per_pixel) uint8, height, width, is_bigendian) -> (H, W, 3) uint8 RGB.
            None for depth.
    """

    row_bytes_per_pixel: int
    to_rgb: Callable[[np.ndarray, int, int, bool], np.ndarray] | None
    rows_per_line: float = 1.0
    width_multiple: int = 1
    height_multiple: int = 1

    def rows(self, height: int) -> int:
        """Number of rows of `step` bytes of an image of this height."""
        return int(height * self.rows_per_line)


def grey_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scales 16-bit levels (0..65535) to uint8 (0..255), as the PNG specification does."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _channels(order: tuple[int, ...], count: int, dtype: type = np.uint8) -> Callable:
    """Interleaved channels; `order` picks those that give RGB."""

    def to_rgb(rows: np.ndarray, height: int, width: int, is_bigendian: bool) -> np.ndarray:
        pixels = _typed(rows, dtype, is_bigendian).reshape(height, width, count)
        if dtype is np.uint16:
            pixels = grey_to_8_bits(pixels)
        if count == 1:
            return np.repeat(pixels, 3, axis=2)
        return (
            np.array(pixels) if order == (0, 1, 2) == tuple(range(count)) else np.ascontiguousarray(pixels[..., order])
        )

    return to_rgb


def _bayer(pattern: str, dtype: type = np.uint8) -> Callable:
    """A Bayer mosaic, interpolated; `pattern` names the colours of the first two rows."""
    code = getattr(cv2, f"COLOR_Bayer{pattern}2RGB")

    def to_rgb(rows: np.ndarray, height: int, width: int, is_bigendian: bool) -> np.ndarray:
        mosaic = _typed(rows, dtype, is_bigendian).reshape(height, width)
        if min(height, width) < 4:
            raise ImageError(f"The Bayer image is {width}x{height}; at least 4x4 was expected.")
        rgb = cv2.cvtColor(np.ascontiguousarray(mosaic), code)
        return grey_to_8_bits(rgb) if dtype is np.uint16 else rgb

    return to_rgb


def _yuv(code: int) -> Callable:
    """4:2:2 in pairs of pixels (`step` of two bytes a pixel), or 4:2:0 with the chroma rows after the luma rows."""

    def to_rgb(rows: np.ndarray, height: int, width: int, is_bigendian: bool) -> np.ndarray:
        rows = np.ascontiguousarray(rows)
        if len(rows) == height:
            rows = rows.reshape(height, width, 2)
        return cv2.cvtColor(rows, code)

    return to_rgb


def _typed(rows: np.ndarray, dtype: type, is_bigendian: bool) -> np.ndarray:
    """Views rows of bytes as numbers of either byte order."""
    return np.ascontiguousarray(rows).view(np.dtype(dtype).newbyteorder(">" if is_bigendian else "<"))


_UYVY = PixelFormat(2, _yuv(cv2.COLOR_YUV2RGB_UYVY), width_multiple=2)
_YUYV = PixelFormat(2, _yuv(cv2.COLOR_YUV2RGB_YUY2), width_multiple=2)
COLOUR_FORMATS: dict[str, PixelFormat] = {
    "rgb8": PixelFormat(3, _channels((0, 1, 2), 3)),
    "bgr8": PixelFormat(3, _channels((2, 1, 0), 3)),
    "rgba8": PixelFormat(4, _channels((0, 1, 2), 4)),
    "bgra8": PixelFormat(4, _channels((2, 1, 0), 4)),
    "mono8": PixelFormat(1, _channels((0,), 1)),
    "8UC1": PixelFormat(1, _channels((0,), 1)),
    "8UC3": PixelFormat(3, _channels((2, 1, 0), 3)),  # no colour order in the name: OpenCV's, as in cv_bridge
    "8UC4": PixelFormat(4, _channels((2, 1, 0), 4)),
    "rgb16": PixelFormat(6, _channels((0, 1, 2), 3, np.uint16)),
    "bgr16": PixelFormat(6, _channels((2, 1, 0), 3, np.uint16)),
    "rgba16": PixelFormat(8, _channels((0, 1, 2), 4, np.uint16)),
    "bgra16": PixelFormat(8, _channels((2, 1, 0), 4, np.uint16)),
    "mono16": PixelFormat(2, _channels((0,), 1, np.uint16)),
    "yuv422": _UYVY,
    "uyvy": _UYVY,
    "yuv422_yuy2": _YUYV,
    "yuyv": _YUYV,
    "nv12": PixelFormat(1, _yuv(cv2.COLOR_YUV2RGB_NV12), 1.5, 2, 2),
    "nv21": PixelFormat(1, _yuv(cv2.COLOR_YUV2RGB_NV21), 1.5, 2, 2),
    **{
        f"bayer_{pattern}{bits}": PixelFormat(bits // 8, _bayer(pattern.upper(), dtype))
        for pattern in ("rggb", "bggr", "gbrg", "grbg")
        for bits, dtype in ((8, np.uint8), (16, np.uint16))
    },
}
# encoding -> (type of the pixels, metres per count); REP 118
DEPTH_SCALES: dict[str, tuple[type, float]] = {
    "16UC1": (np.uint16, 1e-3),
    "mono16": (np.uint16, 1e-3),
    "32FC1": (np.float32, 1.0),
}
DEPTH_FORMATS: dict[str, PixelFormat] = {
    name: PixelFormat(np.dtype(dtype).itemsize, None) for name, (dtype, _) in DEPTH_SCALES.items()
}
