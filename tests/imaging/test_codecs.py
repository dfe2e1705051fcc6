"""Image codecs: ROS message fields, compressed images, and image files."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from worldstereo_ros.imaging import codecs
from worldstereo_ros.imaging.codecs import (
    ImageError,
    clean_depth,
    decode_colour,
    decode_compressed,
    decode_compressed_depth,
    decode_depth,
    encode_colour,
    encode_depth,
)
from worldstereo_ros.io.images import image_size, read_depth, read_image

RGB = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)


def _padded(rows: np.ndarray, step: int) -> bytes:
    """Rows of bytes with arbitrary padding, as drivers with aligned rows send."""
    out = np.full((len(rows), step), 0xAB, np.uint8)
    out[:, : rows.shape[1]] = rows
    return out.tobytes()


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("8UC3", RGB[..., ::-1]),
        ("rgba8", np.concatenate([RGB, RGB[..., :1]], -1)),
        ("bgra8", np.concatenate([RGB[..., ::-1], RGB[..., :1]], -1)),
    ],
)
def test_decode_colour_converts_every_channel_order_to_rgb(encoding, pixels, padding):
    rows = pixels.reshape(4, -1)
    step = rows.shape[1] + padding
    image = decode_colour(encoding, 4, 5, step, False, _padded(rows, step))
    np.testing.assert_array_equal(image, RGB)
    image[0, 0, 0] ^= 1  # the image is writeable


def test_decode_colour_converts_grey_to_rgb():
    grey = RGB[..., 0]
    for encoding in ("mono8", "8UC1"):
        image = decode_colour(encoding, 4, 5, 7, False, _padded(grey, 7))
        np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, 2))


def test_decode_colour_copies_the_data():
    data = bytearray(RGB.tobytes())
    image = decode_colour("rgb8", 4, 5, 15, False, data)
    data[:] = bytes(len(data))
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 2])
def test_decode_depth_reads_both_encodings_and_byte_orders(big, padding):
    order = ">" if big else "<"
    millimetres = np.array([[0, 1, 1500], [65534, 250, 3]])
    rows = np.frombuffer(millimetres.astype(order + "u2").tobytes(), np.uint8).reshape(2, -1)
    step = rows.shape[1] + padding
    depth = decode_depth("16UC1", 2, 3, step, big, _padded(rows, step))
    np.testing.assert_allclose(depth, millimetres / 1000, rtol=1e-6)
    assert depth.dtype == np.float32
    metres = np.array([[np.nan, np.inf, 1.5], [-np.inf, -2, 2000]])
    rows = np.frombuffer(metres.astype(order + "f4").tobytes(), np.uint8).reshape(2, -1)
    step = rows.shape[1] + padding
    np.testing.assert_array_equal(
        decode_depth("32FC1", 2, 3, step, big, _padded(rows, step)), np.array([[0, 0, 1.5], [0, 0, 0]], np.float32)
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("h264", 4, 5, 5, 20), "encoding 'h264'; a colour image is one of rgb8, bgr8, .* Convert it first"),
        (("16UC1", 4, 5, 10, 40), "encoding '16UC1'; .* Is this the depth topic"),
        (("yuv422", 4, 5, 10, 40), "is 5x4; yuv422 needs an even width"),
        (("nv12", 5, 4, 4, 30), "is 4x5; nv12 needs an even width and height"),
        (("nv12", 4, 4, 4, 16), "data has 16 bytes; 6 rows of step 4 are 24"),
        (("bayer_rggb8", 3, 4, 4, 12), "Bayer image is 4x3; at least 4x4"),
        (("", 4, 5, 15, 60), "encoding ''"),
        (("rgb8", 4, 5, 14, 60), "step is 14 bytes; 5 pixels of rgb8 need 15"),
        (("rgb8", 4, 5, 0, 60), "step is 0 bytes"),
        (("rgb8", 4, 5, 15, 59), "data has 59 bytes; 4 rows of step 15 are 60"),
        (("rgb8", 4, 5, 15, 61), "data has 61 bytes"),
        (("rgb8", 4, 5, 15, 0), "data has 0 bytes"),
        (("rgb8", 0, 5, 15, 0), "is 5x0; at least one pixel"),
        (("rgb8", 4, 0, 0, 0), "is 0x4"),
        (("rgb8", 2**31, 2**31, 2**33, 60), "pixels are accepted"),
    ],
)
def test_decode_colour_rejects_inconsistent_fields(fields, sentence):
    encoding, height, width, step, size = fields
    with pytest.raises(ImageError, match=sentence):
        decode_colour(encoding, height, width, step, False, bytes(size))


def test_decode_colour_accepts_a_last_row_without_padding():
    data = _padded(RGB.reshape(4, -1), 20)[:-5]
    np.testing.assert_array_equal(decode_colour("rgb8", 4, 5, 20, False, data), RGB)


def test_decode_depth_rejects_colour_encodings():
    with pytest.raises(ImageError, match=r"encoding 'rgb8'; depth is 16UC1 .* Is this the colour topic"):
        decode_depth("rgb8", 4, 5, 15, False, RGB.tobytes())


@settings(max_examples=200, deadline=None)
@given(
    encoding=st.sampled_from([*codecs.COLOUR_ENCODINGS, *codecs.DEPTH_ENCODINGS, "yuv422", ""]),
    height=st.integers(0, 6), width=st.integers(0, 6), step=st.integers(0, 40), data=st.binary(max_size=120),
    big=st.booleans(), decode=st.sampled_from([decode_colour, decode_depth]),
)  # fmt: skip
def test_decoders_return_the_declared_size_or_raise(encoding, height, width, step, data, big, decode):
    try:
        out = decode(encoding, height, width, step, big, data)
    except ImageError as error:
        message = str(error)
    else:
        message = "."
        assert out.shape[:2] == (height, width)
        assert np.isfinite(out).all()
    assert message.endswith((".", "?", ")"))


def test_encoding_inverts_decoding():
    encoding, height, width, step, data = encode_colour(RGB)
    np.testing.assert_array_equal(decode_colour(encoding, height, width, step, False, data), RGB)
    assert encode_colour(RGB[..., 0])[0] == "mono8"
    depth = np.array([[0, 0.001, 1.2345], [65.535, 70, 0.5]], np.float32)
    encoding, height, width, step, data = encode_depth(depth)
    assert np.isnan(data.view("<f4")[0])  # unknown depth is NaN
    np.testing.assert_array_equal(decode_depth(encoding, height, width, step, False, data), depth)
    encoding, height, width, step, data = encode_depth(depth, "16UC1")
    expected = np.array([[0, 0.001, 1.234], [0, 0, 0.5]])  # 65535 means none, so nothing is written as that
    np.testing.assert_allclose(decode_depth(encoding, height, width, step, False, data), expected, atol=6e-4)
    with pytest.raises(ImageError, match="16UC1 or 32FC1"):
        encode_depth(depth, "rgb8")
    with pytest.raises(ImageError, match="uint8"):
        encode_colour(depth)


def test_clean_depth_sets_invalid_depth_to_zero():
    dirty = np.array([np.nan, np.inf, -np.inf, -1, 0, 1000.5, 999], np.float32)
    np.testing.assert_array_equal(clean_depth(dirty), np.array([0, 0, 0, 0, 0, 0, 999], np.float32))


def test_the_largest_value_of_16_bits_is_unknown_depth(tmp_path):
    """65535 is no return or saturation, in whatever unit, and wherever 16 bits are read."""
    counts = np.array([[65535, 65534, 1000]], np.uint16)
    expected = np.array([[0, 65.534, 1.0]], np.float32)
    np.testing.assert_allclose(decode_depth("16UC1", 1, 3, 6, False, counts.tobytes()), expected, rtol=1e-6)
    np.testing.assert_allclose(decode_compressed_depth(_png(counts), "16UC1; png compressed "), expected, rtol=1e-6)
    Image.fromarray(counts).save(tmp_path / "d.png")
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), expected, rtol=1e-6)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png", 5000)[0, 0], 0)
    np.testing.assert_array_equal(codecs.depth_to_counts(np.array([[65.6, 65.535, 65.534]])), [[0, 0, 65534]])


def _peak_bytes(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("step", [3, 1000, 2_000_000_000, 2**32 - 1])
def test_memory_follows_the_pixels_and_not_the_step(step):
    """One row with any step: the padding that is not there is not allocated either."""
    peak = _peak_bytes(lambda: decode_colour("rgb8", 1, 1, step, False, b"abc"))
    assert peak < 1_000_000
    np.testing.assert_array_equal(
        decode_colour("rgb8", 1, 1, step, False, b"abc"), np.frombuffer(b"abc", np.uint8)[None, None]
    )


# --- layouts of cameras ----------------------------------------------------------------------------------------------


def _smooth(height: int = 16, width: int = 24) -> np.ndarray:
    """A colourful image whose chroma may be halved without loss to speak of."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.clip(np.stack([40 + 180 * x, 60 + 150 * y, 200 - 120 * x], -1), 0, 255).astype(np.uint8)


def _limited_range_yuv(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) BT.601 Y, U, V of limited range, from the matrix in the standard."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    return np.rint(rgb @ matrix.T + [16, 128, 128]).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_decode_colour_converts_yuv_422_of_both_orders(encoding, padding):
    rgb = _smooth()
    yuv = _limited_range_yuv(rgb)
    pairs = np.empty((*rgb.shape[:2], 2), np.uint8)
    luma = 1 if encoding in ("yuv422", "uyvy") else 0
    pairs[..., luma] = yuv[..., 0]
    pairs[:, 0::2, 1 - luma], pairs[:, 1::2, 1 - luma] = yuv[:, 0::2, 1], yuv[:, 0::2, 2]
    rows = pairs.reshape(16, -1)
    image = decode_colour(encoding, 16, 24, 48 + padding, False, _padded(rows, 48 + padding))
    assert np.abs(image.astype(int) - rgb).max() <= 8  # halved chroma


@pytest.mark.parametrize("padding", [0, 8])
@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_decode_colour_converts_nv12_and_nv21(encoding, padding):
    rgb = _smooth()
    yuv = _limited_range_yuv(rgb)
    chroma = yuv[::2, ::2, 1:] if encoding == "nv12" else yuv[::2, ::2, :0:-1]
    rows = np.concatenate([yuv[..., 0], chroma.reshape(8, 24)])
    image = decode_colour(encoding, 16, 24, 24 + padding, False, _padded(rows, 24 + padding))
    assert np.abs(image.astype(int) - rgb).max() <= 14  # chroma halved twice


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_decode_colour_interpolates_bayer_mosaics(pattern, bits):
    rgb = _smooth()
    mosaic = np.empty((16, 24), np.uint8)
    for place, colour in enumerate(pattern):
        row, column = divmod(place, 2)
        mosaic[row::2, column::2] = rgb[row::2, column::2, "rgb".index(colour)]
    levels = mosaic if bits == 8 else mosaic.astype(">u2") * 257
    data = levels.astype("u1" if bits == 8 else ">u2").tobytes()
    image = decode_colour(f"bayer_{pattern}{bits}", 16, 24, 24 * bits // 8, True, data)
    assert np.abs(image.astype(int) - rgb)[2:-2, 2:-2].max() <= 4


@pytest.mark.parametrize("big", [False, True])
def test_decode_colour_scales_16_bits_by_their_whole_range(big):
    levels = np.array([[0, 128, 257, 65535, 32896]], ">u2" if big else "<u2")
    expected = [0, 0, 1, 255, 128]
    assert decode_colour("mono16", 1, 5, 10, big, levels.tobytes())[0, :, 1].tolist() == expected
    wide = (RGB.astype(np.uint16) * 257).astype(levels.dtype)
    np.testing.assert_array_equal(decode_colour("rgb16", 4, 5, 30, big, wide.tobytes()), RGB)
    np.testing.assert_array_equal(decode_colour("bgr16", 4, 5, 30, big, wide[..., ::-1].tobytes()), RGB)


# --- compressed ------------------------------------------------------------------------------------------------------


def _png(array: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind)
    return out.getvalue()


def test_decode_compressed_reads_png_and_jpeg():
    np.testing.assert_array_equal(decode_compressed(_png(RGB)), RGB)
    np.testing.assert_array_equal(decode_compressed(np.frombuffer(_png(RGB), np.uint8)), RGB)
    assert decode_compressed(_png(RGB, "JPEG")).shape == (4, 5, 3)
    np.testing.assert_array_equal(decode_compressed(_png(np.dstack([RGB, RGB[..., 0]]))), RGB)  # transparency
    np.testing.assert_array_equal(decode_compressed(_png(RGB[..., 0])), np.repeat(RGB[..., :1], 3, 2))
    for broken in (b"", b"hello", _png(RGB)[:60]):
        with pytest.raises(ImageError, match=r"not a readable image|damaged"):
            decode_compressed(broken)


def test_decode_compressed_depth_reads_both_formats():
    millimetres = np.array([[0, 500, 1500], [2000, 9000, 65534]], np.uint16)
    plain = decode_compressed_depth(_png(millimetres))
    np.testing.assert_allclose(plain, millimetres / 1000, rtol=1e-6)
    header = bytes(12)
    np.testing.assert_array_equal(decode_compressed_depth(header + _png(millimetres), "16UC1; compressedDepth"), plain)
    # 32FC1: inverse depth in steps, value = a / depth + b
    a, b, metres = 1000.0, -20.0, np.array([[0.5, 1.0, 4.0]])
    values = np.rint(a / metres + b).astype(np.uint16)
    header = b"\0\0\0\0" + np.array([a, b], "<f4").tobytes()
    decoded = decode_compressed_depth(header + _png(values), "32FC1; compressedDepth png")
    np.testing.assert_allclose(decoded, metres, rtol=0.01)
    with pytest.raises(ImageError, match="neither PNG nor RVL"):
        decode_compressed_depth(bytes(100), "16UC1; compressedDepth zstd")
    with pytest.raises(ImageError, match="one channel of 16 bits"):
        decode_compressed_depth(_png(RGB))


def test_decode_compressed_rejects_decompression_bombs():
    """A PNG whose header declares 60000 x 60000 pixels, without pixel data."""
    import struct
    import zlib

    ihdr = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    idat = b"IDAT" + zlib.compress(bytes(100))
    data += struct.pack(">I", len(idat) - 4) + idat + struct.pack(">I", zlib.crc32(idat))
    with pytest.raises(ImageError, match="are accepted"):
        decode_compressed(data)


def test_read_image_and_depth_files(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 5000]], np.uint16)).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    assert image_size(tmp_path / "a.png") == (5, 4)
    np.testing.assert_array_equal(read_depth(tmp_path / "d.png", 5000), np.array([[0, 1]], np.float32))
    for read in (read_image, read_depth, image_size):
        with pytest.raises(ImageError, match="does not exist"):
            read(tmp_path / "none.png")
        with pytest.raises(ImageError, match="cannot be read"):
            read(tmp_path)
    with pytest.raises(ImageError, match="depth scale"):
        read_depth(tmp_path / "d.png", 0)
