"""EXIF orientation: turning stored pixels upright and back.

Pillow leaves the pixels of most formats as they are stored, but turns those of a TIFF while it decodes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

TURNED = (5, 6, 7, 8)  # orientations that exchange width and height
_BACK = {6: 8, 8: 6}  # the others are their own inverse


def turn(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels (H, W) or (H, W, C) upright.

    Args:
        array: the pixels as they are stored.
        orientation: EXIF orientation, 1 to 8.
    """
    if orientation in TURNED:
        array = np.swapaxes(array, 0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def turn_back(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns upright pixels back to how they are stored, the inverse of `turn`."""
    return turn(array, _BACK.get(orientation, orientation))


def exif_orientation(file: Image.Image) -> int:
    """EXIF orientation of an image that is not decoded yet, 1 to 8; 1 if it has none or its EXIF is damaged."""
    try:
        value: Any = file.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in range(1, 9) else 1
    except Exception:  # Pillow raises whatever the bytes lead to
        return 1


def decoded_orientation(file: Image.Image) -> int:
    """The orientation by which Pillow turns an image while it decodes it; 1 = not at all."""
    return exif_orientation(file) if isinstance(file, TiffImageFile) else 1


def stored_size(file: Image.Image) -> tuple[int, int]:
    """(width, height) of the stored pixels of an image that is not decoded yet.

    Pillow exchanges those of a TIFF when it opens it.
    """
    width, height = file.size
    turned = isinstance(file, TiffImageFile) and file.tag_v2.get(ExifTags.Base.Orientation) in TURNED
    return (height, width) if turned else (width, height)
