"""Limits and checks that all decoders of images share: size in pixels, range of depth."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.errors import WorldStereoError

MAX_PIXELS = 64_000_000  # above the resolution of robot cameras, below 200 MB as RGB
MAX_DEPTH_M = 1000.0  # farther depth is sky or a sensor fault
NO_DEPTH_COUNT = 65535  # largest value of 16 bits: no return, or saturated; no measurement either way


class ImageError(WorldStereoError, ValueError):
    """An image that is invalid, damaged, too large or of an unsupported encoding."""


class ImageSizeError(ImageError):
    """An image without pixels, or of too many."""


def check_size(width: int, height: int, what: str = "The image", max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageSizeError for an image without pixels or of more than `max_pixels`.

    Args:
        width, height: size in pixels, as a header declares it; no memory is taken for it before this check.
        what: subject of the message.
        max_pixels: largest width * height that is accepted.
    """
    if width <= 0 or height <= 0:
        raise ImageSizeError(f"{what} is {width}x{height}; at least one pixel was expected.")
    if width * height > max_pixels:
        raise ImageSizeError(f"{what} is {width}x{height}; at most {max_pixels} pixels are accepted.")


def clean_depth(depth: np.ndarray) -> np.ndarray:
    """Returns depth in metres as float32 with invalid values (NaN, infinite, negative, over 1000 m) set to 0."""
    depth = np.asarray(depth, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return np.where((depth > 0) & (depth <= MAX_DEPTH_M), depth, np.float32(0))


def depth_from_counts(counts: np.ndarray, counts_per_metre: float = 1000.0) -> np.ndarray:
    """Converts the stored values of a 16-bit depth image to metres.

    Args:
        counts: (H, W) integers; 0 and 65535 are unknown.
        counts_per_metre: stored values per metre.

    Returns:
        (H, W) float32 metres, 0 = unknown.
    """
    metres = counts.astype(np.float32) / np.float32(counts_per_metre)
    return clean_depth(np.where(counts == NO_DEPTH_COUNT, np.float32(0), metres))


def depth_to_counts(depth: np.ndarray, counts_per_metre: float = 1000.0) -> np.ndarray:
    """Converts metres to the values of a 16-bit depth image, the inverse of `depth_from_counts`.

    Args:
        depth: (H, W) float32 metres, 0 = unknown.
        counts_per_metre: stored values per metre.

    Returns:
        (H, W) uint16; 0 where the depth is unknown or too far for 16 bits (65.534 m in millimetres).
    """
    counts = np.rint(clean_depth(depth) * np.float32(counts_per_metre))
    return np.where(counts < NO_DEPTH_COUNT, counts, np.float32(0)).astype(np.uint16)
