"""Decoding of image files and of `sensor_msgs/CompressedImage`: the one place that opens encoded images.

Only the formats of `IMAGE_FORMATS` are opened. Pillow knows many more, among them EPS, which it gives to Ghostscript
to be run as a program. The size in the header is checked before pixels are decoded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from worldstereo_ros.imaging.image_checks import (
    MAX_PIXELS,
    ImageError,
    ImageSizeError,
    check_size,
    clean_depth,
    depth_from_counts,
)
from worldstereo_ros.imaging.orientation import decoded_orientation, stored_size, turn_back
from worldstereo_ros.imaging.pixel_formats import COLOUR_FORMATS, grey_to_8_bits
from worldstereo_ros.utils.file_kinds import HEAD_BYTES, explain_kind, explain_unreadable, identify, identify_file

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")  # Pillow's names; MPO is opened as JPEG
_KINDS = tuple(name.lower() for name in IMAGE_FORMATS)
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_PNG = b"\x89PNG\r\n\x1a\n"
_CONFIG_HEADER_BYTES = 12  # of compressed_depth_image_transport: int32 format, float32 a, float32 b


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps Pillow from printing a warning for each damaged tag; what cannot be decoded becomes an error anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def open_image(source: bytes | memoryview | Path, what: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image and checks its header; pixels are not decoded.

    Args:
        source: the encoded image, or its file.
        what: subject of the error messages, such as "The image a.png".
        max_pixels: largest width * height that is accepted.

    Returns:
        The image as Pillow opens it, to be closed by the caller.

    Raises:
        ImageError: not one of `IMAGE_FORMATS` (the message says what it is instead), or too large.
    """
    try:
        with without_warnings():  # of large images, too; `check_size` rejects them
            file = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageSizeError(f"{what} is too large; at most {max_pixels} pixels are accepted.") from error
    except FileNotFoundError:
        raise ImageError(f"{what} does not exist.") from None
    except Exception as error:
        raise ImageError(f"{what} is not a readable image{_why_not(source)}") from error
    try:
        check_size(*file.size, what=what, max_pixels=max_pixels)
        tile = _tile_size(file, what)
        if tile is not None:  # may be declared larger than its image, and is decoded whole
            check_size(*tile, what=f"A tile of {what[:1].lower()}{what[1:]}", max_pixels=max(max_pixels, 2**20))
    except ImageError:
        file.close()
        raise
    return file


def _tile_size(file: Image.Image, what: str) -> tuple[int, int] | None:
    """(width, height) of the tiles of a TIFF; None of images without tiles."""
    if not isinstance(file, TiffImageFile):
        return None
    try:
        with without_warnings():  # tags are decoded when they are read
            if _TILE_WIDTH not in file.tag_v2 or _TILE_LENGTH not in file.tag_v2:
                return None
            return int(file.tag_v2[_TILE_WIDTH]), int(file.tag_v2[_TILE_LENGTH])
    except Exception as error:
        raise ImageError(f"{what} is damaged: {error}.") from error


def _why_not(source: bytes | memoryview | Path) -> str:
    """End of the sentence about bytes that no decoder opens."""
    if isinstance(source, Path):
        size, why = "", explain_unreadable(source, *_KINDS)
        is_image = not why and source.is_file() and identify_file(source).name in _KINDS
    else:
        kind = identify(bytes(memoryview(source)[:HEAD_BYTES]), len(source))
        size, why, is_image = f" ({len(source)} bytes)", explain_kind(kind, *_KINDS), kind.name in _KINDS
    if is_image:
        why = "It is damaged, or cut off; fetch it again."
    return f"{size}. {why or 'JPEG, PNG, WebP, TIFF or BMP was expected.'}"


def decode_image(
    data: bytes | memoryview, what: str, *, depth: bool = False, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes the bytes of an image file.

    Args:
        data: the whole file.
        what: subject of the error messages, such as "The image a.png".
        depth: decode one 16-bit channel instead of RGB.
        max_pixels: largest width * height that is accepted.

    Returns:
        The stored pixels, whatever EXIF says: (H, W, 3) uint8 RGB, without alpha, 16-bit levels scaled to 8; if
        `depth`, (H, W) of a 16-bit or 32-bit integer type.

    Raises:
        ImageError: not an image, damaged, more than `max_pixels` pixels (checked before decoding), not a 16-bit image
            if `depth`, or levels that are no colour otherwise.
    """
    with open_image(data, what, max_pixels=max_pixels) as file:
        if depth and not file.mode.startswith("I"):
            raise ImageError(f"{what} has pixel mode '{file.mode}'; one channel of 16 bits was expected.")
        try:
            with without_warnings():
                turned = decoded_orientation(file)
                if depth:
                    image = np.array(file)
                elif file.mode.startswith("I") or file.mode == "F":
                    image = _grey_to_rgb(np.array(file), file.mode, what)
                else:
                    image = np.array(file.convert("RGB"))
                return turn_back(image, turned)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{what} is damaged: {error}.") from error


def _grey_to_rgb(levels: np.ndarray, mode: str, what: str) -> np.ndarray:
    """Scales grey of 16 bits to (H, W, 3) uint8. Pillow's own conversion clips it, which shows white."""
    if mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ImageError(f"{what} has 32-bit levels (mode '{mode}'); 8 or 16 bits were expected for colour.")
    return np.repeat(grey_to_8_bits(levels)[..., None], 3, axis=2)


def decode_compressed(
    data: bytes | memoryview, what: str = "The compressed image", *, format: str = "", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decodes the colour image of a `sensor_msgs/CompressedImage`.

    Args:
        data: the encoded image: JPEG, PNG, WebP, TIFF or BMP.
        what: subject of the error messages.
        format: field of the message, such as "rgb8; jpeg compressed bgr8"; says what the pixels are.
        max_pixels: largest width * height that is accepted.

    Returns:
        (H, W, 3) uint8 RGB, without alpha.

    Raises:
        ImageError: not an image, depth by its format, truncated, or too large (checked before decoding).
    """
    if holds_depth(format):
        raise ImageError(f"{what} holds depth (format '{format[:64]}'), not colour. Is this the depth topic?")
    image = decode_image(data, what, max_pixels=max_pixels)
    encoding = _encoding(format)
    if encoding.startswith("bayer_") and encoding.endswith("8") and encoding in COLOUR_FORMATS:
        # Some publishers compress the mosaic itself: it is grey, while an interpolated image has three channels.
        with open_image(data, what, max_pixels=max_pixels) as file:
            mosaic = file.mode == "L"
        to_rgb = COLOUR_FORMATS[encoding].to_rgb
        if mosaic and to_rgb is not None:
            height, width = image.shape[:2]
            return to_rgb(np.ascontiguousarray(image[..., 0]), height, width, False)
    return image


def compressed_size(
    data: bytes | memoryview, what: str = "The compressed image", *, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Returns (width, height) of an encoded image from its header. Raises ImageError as `open_image`."""
    with open_image(data, what, max_pixels=max_pixels) as file:
        return stored_size(file)


def holds_depth(format: str, data: bytes | memoryview = b"", topic: str = "") -> bool:
    """Tells whether a `sensor_msgs/CompressedImage` holds depth.

    Its `format` says so ("16UC1; png compressed", "32FC1; compressedDepth"). Where it names no encoding ("png"), a
    16-bit grey PNG on a topic with "depth" in its name is depth.

    Args:
        format: field of the message.
        data: data of the message.
        topic: name of the topic.
    """
    encoding = _encoding(format)
    if encoding in ("16UC1", "32FC1") or "compressedDepth" in format or topic.endswith("/compressedDepth"):
        return True
    if "depth" not in topic.lower() or (encoding in COLOUR_FORMATS and encoding != "mono16"):
        return False
    head = bytes(memoryview(data)[:32])
    return encoding == "mono16" or (head.startswith(_PNG) and head[24:26] == b"\x10\x00")  # 16 bits, grey


def _encoding(format: str) -> str:
    """Encoding of the image before compression: the first part of `format`; "" if that is a codec such as "png"."""
    first = format.split(";")[0].strip()
    return first if first in COLOUR_FORMATS or first in ("16UC1", "32FC1") else ""


def decode_compressed_depth(
    data: bytes | memoryview,
    format: str = "",
    what: str = "The compressed depth image",
    *,
    unit: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes the depth of a `sensor_msgs/CompressedImage` or of a plain 16-bit PNG (millimetres).

    A `compressedDepth` message has a header of 12 bytes before the PNG or RVL data: a compression type and two
    parameters a, b. If `format` starts with 32FC1, the counts are quantised inverse depth, depth = a / (value - b);
    otherwise millimetres. (compressed_depth_image_transport, codec.cpp and rvl_codec.cpp)

    Args:
        data: the data of the message.
        format: the format of the message.
        what: subject of the error messages.
        unit: metres per stored value (of 32FC1 per unquantised one), see `codecs.decode_depth`; None = as above.
        max_pixels: largest width * height that is accepted.

    Returns:
        (H, W) float32 metres, 0 = unknown.

    Raises:
        ImageError: neither a 16-bit PNG nor RVL, truncated, or too large.
    """
    from worldstereo_ros.imaging.rvl import decode_rvl  # imports numba, which few messages need

    raw = bytes(data)
    start = raw.find(_PNG, 0, 20)
    if start >= 0:
        counts = decode_image(raw[start:], what, depth=True, max_pixels=max_pixels)
    elif "rvl" in format.lower():
        start = _CONFIG_HEADER_BYTES
        counts = decode_rvl(raw[start:], what, max_pixels=max_pixels)
    elif raw.startswith(b"\xff\xd8\xff") or raw[_CONFIG_HEADER_BYTES:].startswith(b"\xff\xd8\xff"):
        raise ImageError(
            f"{what} ('{format[:64]}') is a JPEG: its 8 bits hold no distances. Record depth raw, as png, or with "
            "compressedDepth."
        )
    else:
        raise ImageError(
            f"{what} ('{format[:64]}') has neither PNG nor RVL data; only these are supported. Record it raw or as png."
        )
    if start == _CONFIG_HEADER_BYTES and format.lstrip().startswith("32FC1"):
        a, b = np.frombuffer(raw, "<f4", count=2, offset=4).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return clean_depth(np.where(counts > 0, a / (counts - b), 0) * (unit or 1.0))
    return depth_from_counts(counts, 1 / (unit or 1e-3))
