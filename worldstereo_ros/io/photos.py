"""Photographs: the orientation and the focal length in their EXIF, and reading at reduced size.

A photograph that comes without intrinsics is read as a person sees it. With intrinsics, `io.images.read_image` reads
the stored pixels, which they refer to.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from worldstereo_ros.imaging.compressed_images import decode_image, open_image, without_warnings
from worldstereo_ros.imaging.image_checks import MAX_PIXELS, ImageError
from worldstereo_ros.imaging.orientation import TURNED, exif_orientation, stored_size, turn
from worldstereo_ros.imaging.resizing import resize_image

# A JPEG is decoded at an eighth of its size or more; the limit is Pillow's own. Other formats are decoded whole.
MAX_JPEG_PIXELS, MAX_OTHER_PIXELS = 178_000_000, 16384 * 8192

_EXIF, _FOCAL_35MM = 0x8769, 0xA405  # tags, EXIF 2.32
_FULL_FRAME_DIAGONAL_MM = 43.2666  # of 36 x 24 mm; the equivalent focal length compares diagonals (CIPA DCG-001)
_MIN_35MM, _MAX_35MM = 5, 3000  # focal lengths of lenses for that format; others are errors


@dataclass(frozen=True)
class PhotoHeader:
    """What the header of a photograph says.

    Attributes:
        stored_size: (width, height) of the stored pixels.
        orientation: EXIF orientation, 1 to 8; 1 = the stored pixels are upright, also if there is none.
        focal_35mm: focal length in millimetres of a lens of the same field of view for 36 x 24 mm; None if unknown.
        several_images: the file is an animation or has pages, of which only the first is read. The second image of a
            camera's JPEG (MPO: a depth map, a gain map, the other eye) does not count.
    """

    stored_size: tuple[int, int]
    orientation: int = 1
    focal_35mm: float | None = None
    several_images: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as a person sees it."""
        width, height = self.stored_size
        return (height, width) if self.orientation in TURNED else (width, height)

    def focal_px(self, width: int, height: int) -> float | None:
        """Focal length in pixels at another size of the same image; None if unknown."""
        if self.focal_35mm is None:
            return None
        return self.focal_35mm / _FULL_FRAME_DIAGONAL_MM * float(np.hypot(width, height))


def read_photo_header(path: Path) -> PhotoHeader:
    """Reads size, orientation and focal length of an image file; damaged EXIF counts as none.

    Raises:
        ImageError: the file is missing, not an image, or larger than can be read at reduced size.
    """
    with _open(path) as file:
        focal, several = None, False
        with without_warnings():
            size, orientation = stored_size(file), exif_orientation(file)
        try:
            with without_warnings():
                focal = _number(file.getexif().get_ifd(_EXIF).get(_FOCAL_35MM))
        except Exception:  # Pillow raises whatever the bytes lead to
            focal = None
        if file.format in ("PNG", "WEBP", "TIFF"):
            with without_warnings(), contextlib.suppress(Exception):  # EOFError if there is one image
                file.seek(1)  # unlike n_frames, does not go through all pages
                several = True
    if focal is not None and not _MIN_35MM <= focal <= _MAX_35MM:
        focal = None
    return PhotoHeader(size, orientation, focal, several)


def read_photo(path: Path, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> np.ndarray:
    """Reads a photograph as a person sees it: turned by its EXIF orientation, reduced if it is large.

    Args:
        path: image file.
        upright: turn the stored pixels.
        max_pixels: a larger image is reduced to `reduced_size`. A JPEG is reduced while it is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is missing, not an image, damaged, or larger than can be read at reduced size.
    """
    header = read_photo_header(path)
    width, height = reduced_size(header.stored_size, max_pixels)
    with _open(path) as file:
        large = file.size[0] * file.size[1] > max_pixels
        if large and file.format in ("JPEG", "MPO"):
            try:
                with without_warnings():
                    file.draft(None, (width, height))
                    image = np.array(file.convert("RGB"))
            except Exception as error:
                raise ImageError(f"The image {path} is damaged: {error}.") from error
        else:
            image = decode_image(path.read_bytes(), f"The image {path}", max_pixels=MAX_OTHER_PIXELS)
    if image.shape[:2] != (height, width):
        image = resize_image(image, width, height)
    return turn(image, header.orientation) if upright else image


def reduced_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """(width, height) of at most `max_pixels` in the same proportion; `size` itself if it has no more."""
    width, height = size
    if width * height <= max_pixels:
        return width, height
    factor = (max_pixels / (width * height)) ** 0.5
    rounded = round(width * factor), round(height * factor)
    if min(rounded) >= 1 and rounded[0] * rounded[1] <= max_pixels:
        return rounded
    width, height = max(1, int(width * factor)), max(1, int(height * factor))
    width = max(1, min(width, max_pixels // height))
    return width, min(height, max_pixels // width)


def _open(path: Path) -> Image.Image:
    """Opens an image that can be read at reduced size."""
    file = open_image(path, f"The image {path}", max_pixels=MAX_JPEG_PIXELS)
    if file.format not in ("JPEG", "MPO") and file.size[0] * file.size[1] > MAX_OTHER_PIXELS:
        width, height = file.size
        file.close()
        raise ImageError(
            f"The image {path} is {width}x{height}; at most {MAX_OTHER_PIXELS} pixels are accepted "
            f"({MAX_JPEG_PIXELS} of a JPEG)."
        )
    return file


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if np.isfinite(number) else None
