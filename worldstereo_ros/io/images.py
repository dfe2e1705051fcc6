"""Reads and writes image and depth files."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from worldstereo_ros.imaging.codecs import ImageError, check_size, clean_depth, decode_image


def read_image(path: Path) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8 RGB.

    EXIF orientation is ignored, because intrinsics refer to the stored pixels.

    Raises:
        ImageError: the file is missing, not an image, truncated, or larger than `MAX_PIXELS` pixels.
    """
    return decode_image(_read_bytes(path), f"The image {path}", depth=False)


def read_depth(path: Path, scale: float = 1000.0) -> np.ndarray:
    """Reads a 16-bit PNG as depth.

    Args:
        path: file to read.
        scale: stored values per metre.

    Returns:
        (H, W) float32 metres, 0 = unknown.

    Raises:
        ImageError: the scale is not positive, or the file is missing, invalid or too large.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ImageError(f"The depth scale is {scale}; a positive number (1000 for millimetres) was expected.")
    counts = decode_image(_read_bytes(path), f"The depth image {path}", depth=True)
    return clean_depth(counts.astype(np.float32) / np.float32(scale))


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of an image file from its header. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                size = file.size
    except FileNotFoundError:
        raise ImageError(f"The file {path} does not exist.") from None
    except Exception as error:
        raise ImageError(f"The image {path} cannot be read: {error}.") from error
    check_size(*size, what=f"The image {path}")
    return size


def _read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"The file {path} does not exist.") from None
    except OSError as error:
        raise ImageError(f"The file {path} cannot be read: {error.strerror}.") from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an (H, W, 3) uint8 RGB image as PNG or JPEG, by the suffix of `path`. Raises OSError."""
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"The image could not be written to {path}.")
