"""Reads and writes image and depth files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.imaging.compressed_images import decode_image, open_image
from worldstereo_ros.imaging.image_checks import ImageError, depth_from_counts
from worldstereo_ros.imaging.orientation import stored_size
from worldstereo_ros.utils.atomic_files import write_bytes


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
        (H, W) float32 metres, 0 = unknown (0 and 65535 in the file).

    Raises:
        ImageError: the scale is not positive, or the file is missing, invalid or too large.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise ImageError(f"The depth scale is {scale}; a positive number (1000 for millimetres) was expected.")
    counts = decode_image(_read_bytes(path), f"The depth image {path}", depth=True)
    return depth_from_counts(counts, scale)


def image_size(path: Path) -> tuple[int, int]:
    """Returns (width, height) of an image file from its header. Raises ImageError."""
    if not Path(path).is_file():
        _read_bytes(path)  # says what is wrong with it
    with open_image(Path(path), f"The image {path}") as file:
        return stored_size(file)


def _read_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(f"The file {path} does not exist.") from None
    except OSError as error:
        raise ImageError(f"The file {path} cannot be read: {error.strerror}.") from error


def encode_png(image: np.ndarray) -> bytes:
    """Encodes an RGB image (H, W, 3) uint8, or a single channel (H, W) uint8 or uint16, as PNG."""
    return _encode(image, ".png")


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes an RGB image (H, W, 3) uint8, or a single channel (H, W) uint8 or uint16, by the suffix of `path`.

    The image is encoded in memory: OpenCV's own writer ends the process on paths that are not UTF-8, and does not
    notice a full disk.

    Args:
        path: .png, .jpg or .jpeg file, written with `atomic_file`. A JPEG has three channels.
        image: the image.

    Raises:
        ImageError: another suffix.
        WriteError: the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise ImageError(f"{path} ends in '{suffix}'; an image is written as .png or .jpg.")
    write_bytes(path, _encode(image, suffix))


def _encode(image: np.ndarray, suffix: str) -> bytes:
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else np.ascontiguousarray(image)
    done, content = cv2.imencode(suffix, stored)
    if not done:
        raise ImageError(f"An image of shape {image.shape} and {image.dtype} cannot be encoded as {suffix}.")
    return content.tobytes()
