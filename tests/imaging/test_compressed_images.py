"""Encoded images: which formats are opened, how large they may be, and what their `format` says."""

import contextlib
import io
import struct
import subprocess
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from worldstereo_ros.imaging.compressed_images import (
    compressed_size,
    decode_compressed,
    decode_compressed_depth,
    decode_image,
    holds_depth,
    open_image,
)
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.io.images import encode_png, image_size, read_depth, read_image
from worldstereo_ros.io.photos import read_photo
from worldstereo_ros.io.view_labels import read_provenance

RGB = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
MILLIMETRES = np.array([[0, 500, 1500], [2000, 9000, 65534]], np.uint16)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\n1 0 0 setrgbcolor 0 0 9 7 rectfill\n%%EOF\n"


def _encode(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


# --- formats ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "MPO"])
def test_the_formats_of_cameras_are_opened(kind):
    options = {"lossless": True} if kind == "WEBP" else {"save_all": True} if kind == "MPO" else {}
    image = decode_compressed(_encode(RGB, kind, **options))
    assert image.shape == (4, 5, 3)
    if kind not in ("JPEG", "MPO"):
        np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("kind", ["EPS", "GIF", "PDF", "TGA", "PPM", "ICO", "PCX", "SGI"])
def test_no_other_format_is_opened(kind):
    with pytest.raises(ImageError, match="not a readable image"):
        decode_compressed(_encode(RGB, kind))


def test_postscript_never_starts_a_program(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript, which runs it, wherever a picture is read."""

    def started(*arguments, **options):
        raise AssertionError(f"a program was started: {arguments}")

    for name in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, started)
    file = tmp_path / "a.png"
    file.write_bytes(EPS)
    readers = [
        lambda: decode_compressed(EPS),
        lambda: decode_compressed_depth(EPS, "16UC1; compressedDepth"),
        lambda: compressed_size(EPS),
        lambda: read_image(file),
        lambda: read_depth(file),
        lambda: image_size(file),
        lambda: read_provenance(file),
    ]
    for read in readers:
        with pytest.raises(ImageError):
            read()
    with pytest.raises(ImageError, match=r"It is a PostScript \(EPS\) program. Convert it to PNG or JPEG"):
        decode_compressed(EPS)


def test_the_message_says_what_an_unreadable_image_is(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 26012345\n"
    file = tmp_path / "photo.jpg"
    for content, sentence in {
        pointer: "Git LFS pointer .* `git lfs pull`",
        b"<html>": "HTML page.* download the raw file",
        b"": r"\(0 bytes\)|empty file",
        b"\0\0\0\x18ftypheic": "HEIF.*Export it as JPEG",
        bytes(range(256)): "JPEG, PNG, WebP, TIFF or BMP was expected",
    }.items():
        file.write_bytes(content)
        for read in (read_image, image_size):
            with pytest.raises(ImageError, match=sentence):
                read(file)


# --- size ---


def test_the_header_is_checked_before_pixels_are_decoded(monkeypatch):
    data = _encode(np.zeros((300, 400), np.uint8))
    assert compressed_size(data) == (400, 300)
    assert decode_compressed(data, max_pixels=120_000).shape == (300, 400, 3)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    for call in (decode_compressed, compressed_size, decode_compressed_depth, decode_image, open_image):
        with pytest.raises(ImageError, match="is 400x300; at most 119999 pixels are accepted"):
            call(data, what="It", max_pixels=119_999)


def test_a_tiff_tile_far_larger_than_its_image_is_refused():
    """A tile is decoded whole: 1x1 pixels in a tile of 30000x30000 took 900 MB."""
    body = zlib.compress(bytes(1000))
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 30000, 323: 30000, 324: 0, 325: len(body)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body
    with pytest.raises(ImageError, match="A tile of the compressed image is 30000x30000"):
        decode_compressed(data)


def test_rvl_is_checked_before_memory_is_taken():
    with pytest.raises(ImageError, match="pixels are accepted"):
        decode_compressed_depth(bytes(12) + struct.pack("<iiI", 60000, 60000, 0), "16UC1; compressedDepth rvl")


# --- 16 bits as colour ---


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(kind):
    levels = np.array([[0, 257, 20000, 65535]], np.uint16)
    image = decode_compressed(_encode(levels, kind))
    assert image.dtype == np.uint8
    assert image[0, :, 0].tolist() == [0, 1, 78, 255]
    assert (image[..., 0] == image[..., 2]).all()


def test_levels_that_are_no_colour_are_refused():
    for levels in (np.array([[0.5, 2.0]], np.float32), np.array([[-1, 5]], np.int32), np.array([[1, 70000]], np.int32)):
        with pytest.raises(ImageError, match="32-bit levels"):
            decode_compressed(_encode(levels, "TIFF"))


# --- format of the message ---


@pytest.mark.parametrize("format", ["16UC1; png compressed ", "16UC1; compressedDepth", "32FC1; compressedDepth rvl"])
def test_depth_by_its_format_is_not_taken_for_colour(format):
    assert holds_depth(format)
    with pytest.raises(ImageError, match=r"holds depth .* not colour. Is this the depth topic"):
        decode_compressed(_encode(MILLIMETRES), format=format)


def test_where_the_format_names_no_encoding_the_topic_and_the_png_tell_depth():
    grey16, grey8 = _encode(MILLIMETRES), _encode(RGB[..., 0])
    assert holds_depth("png", grey16, "/camera/depth/image_raw/compressed")
    assert not holds_depth("png", grey8, "/camera/depth/image_raw/compressed")
    assert not holds_depth("png", grey16, "/camera/image_raw/compressed")
    assert not holds_depth("rgb8; png compressed bgr8", grey16, "/depth_camera/image_raw/compressed")
    assert holds_depth("", b"", "/camera/depth/image_raw/compressedDepth")
    assert not holds_depth("jpeg", _encode(RGB, "JPEG"), "/camera/depth/image/compressed")
    assert holds_depth("mono16; png compressed ", grey16, "/camera/depth/image/compressed")
    assert not holds_depth("mono16; png compressed ", grey16, "/thermal/image/compressed")


def test_a_compressed_bayer_mosaic_is_interpolated():
    flat = np.tile(np.array([[200, 100], [100, 50]], np.uint8), (4, 4))  # red, green, green, blue
    image = decode_compressed(_encode(flat), format="bayer_rggb8; png compressed ")
    np.testing.assert_array_equal(image[2:-2, 2:-2], np.broadcast_to([200, 100, 50], (4, 4, 3)))
    colour = np.full((8, 8, 3), (200, 100, 50), np.uint8)  # interpolated before it was compressed
    np.testing.assert_array_equal(decode_compressed(_encode(colour), format="bayer_rggb8; png compressed bgr8"), colour)


def test_depth_as_jpeg_is_refused_with_the_reason():
    data = _encode(np.zeros((4, 4), np.uint8), "JPEG")
    with pytest.raises(ImageError, match=r"is a JPEG: its 8 bits hold no distances"):
        decode_compressed_depth(data, "16UC1; jpeg compressed ")


# --- RVL ---


def _rvl(counts: np.ndarray) -> bytes:
    """Encodes RVL as in Wilson 2017: runs of zeros and of differences, in nibbles of three bits."""
    nibbles: list[int] = []

    def number(value: int) -> None:
        while True:
            nibbles.append(value & 7 | (8 if value > 7 else 0))
            value >>= 3
            if not value:
                return

    flat, i, previous = counts.reshape(-1).astype(int).tolist(), 0, 0
    while i < len(flat):
        for zeros in (True, False):
            end = i
            while end < len(flat) and (flat[end] == 0) == zeros:
                end += 1
            number(end - i)
            for value in [] if zeros else flat[i:end]:
                difference, previous = value - previous, value
                number(difference * 2 if difference >= 0 else -difference * 2 - 1)
            i = end
    nibbles += [0] * (-len(nibbles) % 8)
    words = [sum(n << (28 - 4 * k) for k, n in enumerate(nibbles[j : j + 8])) for j in range(0, len(nibbles), 8)]
    height, width = counts.shape
    return struct.pack(f"<ii{len(words)}I", width, height, *words)


@pytest.mark.parametrize("seed", range(4))
def test_rvl_depth_is_decoded(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 65535, (7, 9)).astype(np.uint16) * (rng.random((7, 9)) < 0.7).astype(np.uint16)
    decoded = decode_compressed_depth(bytes(12) + _rvl(counts), "16UC1; compressedDepth rvl")
    np.testing.assert_allclose(decoded, counts / 1000, rtol=1e-6)


def test_rvl_of_32fc1_is_inverse_depth():
    a, b, metres = 1000.0, -20.0, np.array([[0.5, 1.0, 4.0]])
    values = np.rint(a / metres + b).astype(np.uint16)
    header = bytes(4) + np.array([a, b], "<f4").tobytes()
    decoded = decode_compressed_depth(header + _rvl(values), "32FC1; compressedDepth rvl")
    np.testing.assert_allclose(decoded, metres, rtol=0.01)


def test_compressed_depth_is_read_in_its_unit():
    """What is more than 1000 m far counts as unknown, but only after the unit is applied."""
    a, b, millimetres = 1e7, -200.0, np.array([[500.0, 1500.0, 40_000.0]])
    values = np.rint(a / millimetres + b).astype(np.uint16)
    header = bytes(4) + np.array([a, b], "<f4").tobytes()
    data = header + _rvl(values)
    decoded = decode_compressed_depth(data, "32FC1; compressedDepth rvl", unit=1e-3)
    np.testing.assert_allclose(decoded, millimetres / 1000, rtol=0.01)
    counts = np.array([[0, 200, 4000, 65535]], np.uint16)
    decoded = decode_compressed_depth(bytes(12) + _rvl(counts), "16UC1; compressedDepth rvl", unit=1e-4)
    np.testing.assert_allclose(decoded, [[0, 0.02, 0.4, 0]], rtol=1e-6)
    png = encode_png(counts)  # without the header the counts are no inverse depth, whatever the format says
    np.testing.assert_allclose(decode_compressed_depth(png, "32FC1; png", unit=1e-4), [[0, 0.02, 0.4, 0]], rtol=1e-6)


def test_damaged_rvl_is_refused_or_has_the_declared_size():
    whole = bytes(12) + _rvl(np.random.default_rng(5).integers(0, 3000, (7, 9)).astype(np.uint16))
    for end in range(len(whole)):
        with pytest.raises(ImageError):
            decode_compressed_depth(whole[:end], "16UC1; compressedDepth rvl")
    rng = np.random.default_rng(6)
    for _ in range(200):
        noise = bytes(12) + struct.pack("<ii", 9, 7) + rng.bytes(60)
        with contextlib.suppress(ImageError):
            assert decode_compressed_depth(noise, "16UC1; compressedDepth rvl").shape == (7, 9)


# --- damage ---


def test_damaged_files_end_in_an_image_error():
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        whole = _encode(RGB, kind)
        rng = np.random.default_rng(1)
        for _ in range(150):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert decode_compressed(bytes(data), max_pixels=10_000).shape[2] == 3


def test_a_png_with_a_compressed_text_of_a_gigabyte_takes_no_memory():
    """Pillow bounds text chunks; this keeps it so."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9))
    plain = _encode(RGB)
    data = plain[:33] + text + plain[33:]
    tracemalloc.start()
    try:
        assert decode_compressed(data).shape == (4, 5, 3)
    except ImageError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20_000_000


def test_damaged_tags_print_no_warnings(tmp_path, recwarn):
    """A tag for each of thousands of frames of a recording: what can be decoded is, and the rest is an error."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    (directory,) = struct.unpack_from("<I", data, 4)
    for entry in range(struct.unpack_from("<H", data, directory)[0]):
        at = directory + 2 + 12 * entry
        if struct.unpack_from("<H", data, at)[0] == 282:  # XResolution: its value lies outside the file
            struct.pack_into("<I", data, at + 8, 2**31)
            break
    else:
        data[at : at + 12] = struct.pack("<HHII", 270, 2, 1000, 2**31)  # a description, as far outside
    (tmp_path / "a.tif").write_bytes(data)
    for read in (lambda: decode_compressed(bytes(data)), lambda: read_photo(tmp_path / "a.tif")):
        with contextlib.suppress(ImageError):
            assert read().shape == (20, 30, 3)
    assert [str(warning.message) for warning in recwarn] == []
