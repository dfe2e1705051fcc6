import struct

import numpy as np
import pytest

from worldstereo_ros.io.colmap_models import calibration_from_colmap, find_colmap_model, read_colmap_model
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.utils.errors import InputError

CAMERAS = "# comment\n1 SIMPLE_RADIAL 640 480 500 320 240 0.05\n2 PINHOLE 100 80 90 91 50 40\n"
IMAGES = "# comment\n7 1 0 0 0 1 2 3 1 b c.jpg\n10.5 20.5 -1\n8 0.70710678 0 0.70710678 0 0 0 2 2 a.jpg\n\n"


def _write(folder, cameras=CAMERAS, images=IMAGES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(cameras)
    (folder / "images.txt").write_text(images)
    return folder


def test_a_text_model_is_read_in_our_conventions(tmp_path):
    assert find_colmap_model(tmp_path) is None
    folder = _write(tmp_path / "sparse" / "0")
    assert find_colmap_model(tmp_path) == folder
    first, second = read_colmap_model(folder)
    assert (first.name, second.name) == ("a.jpg", "b c.jpg")
    assert (second.calibration.camera.cx, second.calibration.camera.cy) == (319.5, 239.5)
    np.testing.assert_allclose(second.calibration.coefficients, [0.05, 0, 0, 0])
    np.testing.assert_allclose(second.world_from_camera[:3, 3], [-1, -2, -3])
    np.testing.assert_allclose(first.world_from_camera[:3, 3], [2, 0, 0], atol=1e-7)  # turned by 90 degrees about y
    assert not first.calibration.distorted


def test_a_binary_model_is_read_and_a_part_of_it_is_an_error(tmp_path):
    camera = struct.pack("<Q", 1) + struct.pack("<IiQQ", 3, 1, 100, 80) + struct.pack("<4d", 90, 91, 50, 40)
    image = struct.pack("<Q", 1) + struct.pack("<I7dI", 1, 1, 0, 0, 0, 0, 0, 5, 3) + b"a.png\0"
    image += struct.pack("<Q", 1) + struct.pack("<ddq", 3.0, 4.0, -1)
    (tmp_path / "cameras.bin").write_bytes(camera)
    (tmp_path / "images.bin").write_bytes(image)
    (only,) = read_colmap_model(tmp_path)
    assert (only.name, only.calibration.camera.fy) == ("a.png", 91)
    np.testing.assert_allclose(only.world_from_camera[:3, 3], [0, 0, -5])
    for cut in range(1, len(image), 7):
        (tmp_path / "images.bin").write_bytes(image[:cut])
        with pytest.raises(DatasetError, match="damaged"):
            read_colmap_model(tmp_path)
    (tmp_path / "images.bin").write_bytes(struct.pack("<Q", 2**60) + image[8:])
    with pytest.raises(DatasetError, match="damaged"):
        read_colmap_model(tmp_path)


@pytest.mark.parametrize(
    ("cameras", "images", "expected"),
    [
        ("1 FOV 640 480 1 2 3 4 5\n", IMAGES, "FOV is not supported"),
        ("1 PINHOLE 640 480 1 2\n", IMAGES, "4 finite parameters"),
        ("1 PINHOLE 640\n", IMAGES, "is no camera"),
        (CAMERAS, "1 1 0 0 0 0 0 0 9 a.jpg\n\n", "camera 9"),
        (CAMERAS, "1 1 0 0 0 0 a.jpg\n\n", "ten were expected"),
        (CAMERAS, "1 0 0 0 0 0 0 0 1 a.jpg\n\n", "norm"),
        (CAMERAS, "# nothing\n", "no images"),
    ],
)
def test_a_damaged_text_model_is_an_error_that_says_where(tmp_path, cameras, images, expected):
    with pytest.raises(DatasetError, match=expected):
        read_colmap_model(_write(tmp_path, cameras, images))


def test_fisheye_and_full_models_keep_their_distortion():
    fisheye = calibration_from_colmap("OPENCV_FISHEYE", 10, 10, [5, 5, 5, 5, 0.1, 0.2, 0.3, 0.4])
    assert (fisheye.model, fisheye.coefficients.tolist()) == ("equidistant", [0.1, 0.2, 0.3, 0.4])
    full = calibration_from_colmap("FULL_OPENCV", 10, 10, [5, 5, 5, 5, 1, 2, 3, 4, 5, 6, 7, 8])
    assert full.model == "rational_polynomial"
    with pytest.raises(InputError, match="finite"):
        calibration_from_colmap("PINHOLE", 10, 10, [5, 5, np.nan, 5])
