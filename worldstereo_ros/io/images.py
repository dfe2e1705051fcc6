"""Image and depth files, read and written."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from worldstereo_ros.imaging.codecs import ImageError, check_size, clean_depth, decode_image


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file; orientation tags are ignored, as camera matrices speak of stored pixels.

    Raises:
        ImageError: missing, no picture, cut off, or more than `MAX_PIXELS` pixels.
    """
    return decode_image(_bytes(path), f"The image {path}", depth=False)


def read_depth(path: Path, scale: float = 1000.0) -> np.ndarray:
    """(H, W) float32 metres of a 16-bit PNG; a value divided by `scale` is metres, 0 = unknown. Raises ImageError."""
    if not (np.isfinite(scale) and scale > 0):
        raise ImageError(f"The depth scale is {scale}; a positive number (1000 for millimetres) was expected.")
    counts = decode_image(_bytes(path), f"The depth image {path}", depth=True)
    return clean_depth(counts.astype(np.float32) / np.float32(scale))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture file, from its header alone. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                size = picture.size
    except FileNotFoundError:
        raise ImageError(f"There is no file {path}.") from None
    except Exception as error:
        raise ImageError(f"The image {path} cannot be read: {error}.") from error
    check_size(*size, what=f"The image {path}")
    return size


def _bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"There is no file {path}.") from None
    except OSError as error:
        raise ImageError(f"The file {path} cannot be read: {error.strerror}.") from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB as PNG or JPEG, by the ending of `path`."""
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
        raise OSError(f"The picture could not be written to {path}.")
