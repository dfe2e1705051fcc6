"""Photographs: orientation and focal length of EXIF, large images, depth and intrinsics beside them."""

import json
import logging
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.imaging.orientation import turn, turn_back
from worldstereo_ros.io import photos
from worldstereo_ros.io.datasets import open_image, open_sequence
from worldstereo_ros.io.images import image_size, read_depth, read_image
from worldstereo_ros.io.photos import read_photo, read_photo_header, reduced_size

UPRIGHT = np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)  # taller than wide
FOCAL_35MM = 0xA405


def _write(path, upright=UPRIGHT, orientation=6, focal=None):
    """Stores an upright image as a phone does that is held in this orientation."""
    stored = next(a for a in (np.rot90(upright, k) for k in range(4)) if np.array_equal(turn(a, orientation), upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if focal is not None:
        exif.get_ifd(0x8769)[FOCAL_35MM] = focal
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    return stored


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_agrees_with_pillow(tmp_path, orientation):
    stored = UPRIGHT[:, ::-1].copy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        expected = np.array(ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(turn(stored, orientation), expected)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_without_intrinsics_is_seen_upright(tmp_path, orientation):
    _write(tmp_path / "a.png", orientation=orientation)
    sequence = open_sequence(tmp_path / "a.png")
    assert (sequence.camera.width, sequence.camera.height) == (40, 60)
    np.testing.assert_array_equal(sequence[0].image, UPRIGHT)
    longer = 2 * np.degrees(np.arctan(0.5 * 60 / sequence.camera.fy))
    assert longer == pytest.approx(60)


def test_the_focal_length_of_exif_sets_the_camera(tmp_path):
    """A lens of 26 mm for 36 x 24 mm film sees 69.4 degrees along the longer side of a 3:2 image."""
    _write(tmp_path / "a.png", focal=26)
    sequence = open_sequence(tmp_path / "a.png")
    assert sequence.photo.focal_35mm == 26
    assert np.degrees(2 * np.arctan(0.5 * 60 / sequence.camera.fy)) == pytest.approx(69.4, abs=0.1)
    assert sequence.camera.fx == sequence.camera.fy
    assert (sequence.camera.cx, sequence.camera.cy) == (19.5, 29.5)


@pytest.mark.parametrize("focal", [0, 1, 60000])
def test_impossible_focal_lengths_count_as_none(tmp_path, focal):
    _write(tmp_path / "a.png", focal=focal)
    assert read_photo_header(tmp_path / "a.png").focal_35mm is None


def test_damaged_exif_counts_as_none(tmp_path):
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 40
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", exif=exif)
    header = read_photo_header(tmp_path / "a.jpg")
    assert (header.size, header.orientation, header.focal_35mm) == ((40, 60), 1, None)


def _intrinsics(width, height):
    return json.dumps({"width": width, "height": height, "fx": 50, "fy": 50, "cx": 1, "cy": 2})


def test_intrinsics_refer_to_the_stored_pixels(tmp_path):
    stored = _write(tmp_path / "a.png", focal=26)
    (tmp_path / "intrinsics.json").write_text(_intrinsics(60, 40))
    sequence = open_sequence(tmp_path / "a.png")
    assert sequence.camera == Camera(60, 40, 50, 50, 1, 2)
    np.testing.assert_array_equal(sequence[0].image, stored)
    stored_camera = Camera(60, 40, 30, 30, 29.5, 19.5)
    np.testing.assert_array_equal(open_image(tmp_path / "a.png", camera=stored_camera)[0].image, stored)


def test_intrinsics_of_the_upright_size_refer_to_the_upright_image(tmp_path):
    _write(tmp_path / "a.png")
    (tmp_path / "intrinsics.json").write_text(_intrinsics(40, 60))
    sequence = open_sequence(tmp_path / "a.png")
    assert sequence.camera_known
    np.testing.assert_array_equal(sequence[0].image, UPRIGHT)


@pytest.mark.parametrize("depth_is_turned", [True, False])
def test_depth_beside_a_turned_photo_is_turned_by_its_size(tmp_path, depth_is_turned):
    upright = (1000 + np.arange(60 * 40).reshape(60, 40)).astype(np.uint16)
    _write(tmp_path / "a.png")
    Image.fromarray(upright if depth_is_turned else np.rot90(upright, 1)).save(tmp_path / "a_depth.png")
    np.testing.assert_allclose(open_sequence(tmp_path / "a.png")[0].depth, upright / 1000, atol=1e-6)


def test_depth_of_an_upside_down_photo_is_used_as_it_is_with_a_warning(tmp_path, caplog):
    _write(tmp_path / "a.png", orientation=3)
    Image.fromarray(np.full((60, 40), 2000, np.uint16)).save(tmp_path / "a_depth.png")
    with caplog.at_level(logging.WARNING):
        assert open_sequence(tmp_path / "a.png")[0].depth.shape == (60, 40)
    assert "its size does not tell whether the depth beside it is turned" in caplog.text


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_large_photo_is_read_at_reduced_size(tmp_path, name):
    rows = np.linspace(0, 255, 400)[:, None, None] * np.ones((1, 800, 3))
    Image.fromarray(rows.astype(np.uint8)).save(tmp_path / name)
    image = read_photo(tmp_path / name, max_pixels=20_000)
    assert image.shape == (100, 200, 3)
    np.testing.assert_allclose(image[:, 100, 0].astype(float), np.linspace(0, 255, 100), atol=4)


def test_a_photo_above_the_limit_of_decoded_pixels_is_reduced_with_its_camera(tmp_path, monkeypatch):
    monkeypatch.setattr("worldstereo_ros.io.datasets.MAX_PIXELS", 1500)
    monkeypatch.setattr("worldstereo_ros.io.view_sequence.MAX_PIXELS", 1500)
    _write(tmp_path / "a.jpg", focal=26)
    view = open_sequence(tmp_path / "a.jpg")[0]
    assert view.image.shape[:2] == (view.camera.height, view.camera.width) == (47, 31)
    assert np.degrees(2 * np.arctan(0.5 * 47 / view.camera.fy)) == pytest.approx(69.4, abs=0.5)


def test_reduced_size_keeps_the_proportion():
    assert reduced_size((640, 480), 10**6) == (640, 480)
    assert reduced_size((11968, 5984), 4096 * 2048) == (4096, 2048)
    assert reduced_size((10**6, 1), 100) == (100, 1)


def test_photos_that_cannot_be_reduced_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MAX_OTHER_PIXELS", 1000)
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="40x60; at most 1000 pixels are accepted"):
        read_photo(tmp_path / "a.png", max_pixels=100)
    with pytest.raises(ImageError, match="does not exist"):
        read_photo_header(tmp_path / "b.png")


def test_depth_beside_a_photo_has_the_unit_of_its_intrinsics(tmp_path):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.png")
    Image.fromarray(np.full(UPRIGHT.shape[:2], 10_000, np.uint16)).save(tmp_path / "a_depth.png")
    assert open_image(tmp_path / "a.png")[0].depth[0, 0] == pytest.approx(10)
    known = {"width": 40, "height": 60, "fx": 50, "fy": 50, "cx": 19.5, "cy": 29.5, "depth_scale": 5000}
    (tmp_path / "intrinsics.json").write_text(json.dumps(known))
    assert open_image(tmp_path / "a.png")[0].depth[0, 0] == pytest.approx(2)
    assert open_image(tmp_path / "a.png", depth_scale=2000)[0].depth[0, 0] == pytest.approx(5)


def test_a_line_of_pixels_is_reduced():
    assert reduced_size((1, 10**6), 100) == (1, 100)
    assert reduced_size((3, 10**6), 100) == (1, 100)
    assert reduced_size((10**6, 3), 100) == (100, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once_and_stored_pixels_are_not(tmp_path, orientation, compression):
    """Pillow turns a TIFF while it decodes it, unlike other formats."""
    stored = UPRIGHT[:, ::-1].copy()
    path, depth_path = tmp_path / "a.tif", tmp_path / "b.tif"
    Image.fromarray(stored).save(path, tiffinfo={274: orientation}, compression=compression)
    upright = turn(stored, orientation)
    np.testing.assert_array_equal(turn_back(upright, orientation), stored)
    np.testing.assert_array_equal(read_photo(path), upright)
    np.testing.assert_array_equal(read_image(path), stored)
    header = read_photo_header(path)
    assert (header.stored_size, header.orientation) == ((40, 60), orientation)
    assert image_size(path) == (40, 60)
    assert open_image(path)[0].camera.width == upright.shape[1]
    camera = Camera(40, 60, 50.0, 50.0, 10.0, 20.0)
    np.testing.assert_array_equal(open_image(path, camera=camera)[0].image, stored)
    counts = stored[..., 0].astype(np.uint16)
    Image.fromarray(counts).save(depth_path, tiffinfo={274: orientation}, compression=compression)
    np.testing.assert_allclose(read_depth(depth_path), counts / 1000, rtol=1e-6)


def test_a_damaged_second_page_prints_no_warnings(tmp_path, recwarn):
    page = Image.fromarray(UPRIGHT)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    data = bytearray((tmp_path / "a.tif").read_bytes())

    def end(directory):
        return directory + 2 + 12 * int.from_bytes(data[directory : directory + 2], "little")

    first = int.from_bytes(data[4:8], "little")
    second = int.from_bytes(data[end(first) : end(first) + 4], "little")
    data[second + 2 : second + 14] = struct.pack("<HHII", 254, 2, 1000, 2**31)  # a value far outside the file
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.tif"), UPRIGHT)
    assert [str(warning.message) for warning in recwarn] == []
