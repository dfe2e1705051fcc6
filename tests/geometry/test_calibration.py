"""Calibration of raw and rectified images: which camera holds, undistortion without borders, invalid matrices."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from worldstereo_ros.geometry.calibration import calibration_from_info, is_rectified
from worldstereo_ros.utils.errors import InputError

WIDTH, HEIGHT = 160, 120
K = np.array([[120.0, 0, 79.5], [0, 120.0, 59.5], [0, 0, 1]])
BARREL = (-0.32, 0.12, 0.0, 0.0, 0.0)
PINCUSHION = (0.3, 0.1, 0.0, 0.0, 0.0)


def camera_info(k=K, d=(), p=None, model="plumb_bob", **more):
    """The fields of a CameraInfo of 160x120."""
    P = np.zeros((3, 4))
    if p is not None:
        P[:, :3] = p
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    fields = {"width": WIDTH, "height": HEIGHT, "binning_x": 0, "binning_y": 0, "roi": roi, "r": np.eye(3).reshape(-1)}
    matrices = {"k": np.asarray(k, float).reshape(-1), "d": list(d), "p": P.reshape(-1)}
    return SimpleNamespace(**(fields | matrices | {"distortion_model": model} | more))


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("/cam/image_rect_color", True),
        ("/cam/image_rect", True),
        ("/camera/depth/image_rect_raw", True),
        ("/zed/rgb/color/rect/image", True),
        ("/left/rectified/compressed", True),
        ("/cam/image_raw", False),
        ("/unrectified/image", False),
        ("/direct/image", False),
    ],
)
def test_the_topic_says_whether_images_are_rectified(topic, expected):
    assert is_rectified("auto", topic) is expected
    assert is_rectified("true", topic)
    assert not is_rectified("false", topic)


def test_an_unknown_setting_is_rejected():
    with pytest.raises(InputError, match="one of auto, true, false"):
        is_rectified("yes", "/image")


def test_rectified_images_are_seen_with_p_and_not_undistorted():
    P = np.array([[102.0, 0, 80.0], [0, 110.0, 60.0], [0, 0, 1]])
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    calibration = calibration_from_info(camera_info(d=BARREL, p=P), rectified=True)
    straight, _ = calibration.undistort(image, None)
    np.testing.assert_array_equal(calibration.undistorted_camera.matrix, P)
    np.testing.assert_array_equal(straight, image)
    assert calibration_from_info(camera_info(d=BARREL, p=P)).camera.fx == 120.0
    # P is not filled in: it is K if the lens has no distortion, else it is unknown.
    assert calibration_from_info(camera_info(), rectified=True).camera.fx == 120.0
    with pytest.raises(InputError, match=r"P\[0\] = 0"):
        calibration_from_info(camera_info(d=BARREL), rectified=True)


def test_black_borders_of_rectified_images_are_cut_off():
    P, _ = cv2.getOptimalNewCameraMatrix(K, np.array(BARREL), (WIDTH, HEIGHT), 1.0)  # all raw pixels stay visible
    maps = cv2.initUndistortRectifyMap(K, np.array(BARREL), None, P, (WIDTH, HEIGHT), cv2.CV_32FC1)
    rectified = cv2.remap(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), *maps, cv2.INTER_LINEAR)
    assert (rectified == 0).any()
    calibration = calibration_from_info(camera_info(d=BARREL, p=P), rectified=True)
    inside, depth = calibration.undistort(rectified, rectified[..., 0].astype(np.float32))
    assert (inside[1:-1, 1:-1] == 200).all()
    assert depth.shape == inside.shape[:2]
    assert inside.shape[0] > 0.8 * HEIGHT
    camera = calibration.undistorted_camera
    rows, columns = calibration.valid_window
    assert (camera.width, camera.height) == (inside.shape[1], inside.shape[0])
    assert (camera.cx + columns.start, camera.cy + rows.start) == pytest.approx((P[0, 2], P[1, 2]))


@pytest.mark.parametrize(
    ("d", "model"),
    [
        (PINCUSHION, "plumb_bob"),
        ((0.6, 0.4, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0), "rational_polynomial"),
        ((0.9, 0.3, 0.1, 0.1), "equidistant"),
    ],
)
def test_undistorted_images_have_no_pixel_that_was_not_measured(d, model):
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    calibration = calibration_from_info(camera_info(d=d, model=model))
    straight, depth = calibration.undistort(image, np.full((HEIGHT, WIDTH), 2, np.float32))
    assert straight.shape[0] < HEIGHT
    assert (straight == 200).all()
    assert (depth == 2).all()
    assert calibration.camera.width == WIDTH, "the raw images keep their size"


def test_an_undistorted_image_shows_nothing_twice():
    """Beyond the radius where the polynomial turns round, the lens model shows the inner image mirrored."""
    calibration = calibration_from_info(camera_info(d=(-0.6, 0.0, 0.0, 0.0)))
    columns = np.tile(np.arange(WIDTH, dtype=np.uint8)[None, :, None], (HEIGHT, 1, 3))
    straight, _ = calibration.undistort(columns, None)
    assert straight.shape[1] < WIDTH
    assert (np.diff(straight[HEIGHT // 2, :, 0].astype(int)) >= 0).all()
    assert (np.diff(straight[0, :, 0].astype(int)) >= 0).all()


def test_the_largest_window_is_taken():
    k = np.array([[24.0, 0, 15.5], [0, 24.0, 11.5], [0, 0, 1]])
    d = (0.1, 0.0, 0.05, 0.2)  # tangential: an oblique border
    calibration = calibration_from_info(camera_info(k=k, d=d, width=32, height=24))
    x, y = cv2.initUndistortRectifyMap(k, np.array(d), None, k, (32, 24), cv2.CV_32FC1)
    inside = (x >= -0.5) & (x <= 31.5) & (y >= -0.5) & (y <= 23.5)
    total = np.zeros((25, 33), int)
    total[1:, 1:] = inside.cumsum(0).cumsum(1)
    largest = 0
    for top in range(24):
        for bottom in range(top + 1, 25):
            row = total[bottom] - total[top]
            valid = row[None, :] - row[:, None]  # number of valid pixels between two columns
            area = (np.arange(33)[None, :] - np.arange(33)[:, None]) * (bottom - top)
            largest = max(largest, int(area[(valid == area) & (area > 0)].max(initial=0)))
    rows, columns = calibration.valid_window
    assert inside[rows, columns].all()
    assert (rows.stop - rows.start) * (columns.stop - columns.start) == largest < 32 * 24


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        (camera_info(k=np.zeros((3, 3))), "not calibrated"),
        (camera_info(k=[[120, 0, 80], [0, 0, 60], [0, 0, 1]]), "must be positive"),
        (camera_info(k=[[120, 0, 80], [0, 120, 60], [0, 0, 0]]), "was expected"),
        (camera_info(k=[[120, 0, 80], [5, 120, 60], [0, 0, 1]]), "was expected"),
        (camera_info(k=[[120, 9, 80], [0, 120, 60], [0, 0, 1]]), "skew"),
        (camera_info(k=[[np.nan, 0, 80], [0, 120, 60], [0, 0, 1]]), "finite numbers was expected"),
        (camera_info(d=(np.nan, 0, 0, 0)), "not finite"),
        (camera_info(d=(0.1, 0.2)), "2 coefficients"),
        (camera_info(d=(0.1,) * 4, model="fov"), "'fov'"),
    ],
)
def test_matrices_of_no_camera_are_rejected(info, sentence):
    with pytest.raises(InputError, match=sentence):
        calibration_from_info(info)


def test_coefficients_of_no_lens_are_rejected():
    calibration = calibration_from_info(camera_info(d=(-50.0, 0, 0, 0)))
    with pytest.raises(InputError, match="not the camera_info of this lens"):
        calibration.undistort(np.zeros((HEIGHT, WIDTH, 3), np.uint8), None)


def test_a_fisheye_of_zero_coefficients_is_no_pinhole_camera():
    """In the equidistant model the image of a ray at angle t lies at f * t, whatever else the polynomial adds."""
    info = camera_info(d=(0.0,) * 4, model="equidistant")
    columns = np.tile(np.arange(WIDTH, dtype=np.uint8)[None, :, None], (HEIGHT, 1, 3))
    calibration = calibration_from_info(info)
    straight, _ = calibration.undistort(columns, None)
    camera = calibration.undistorted_camera
    middle = round(camera.cy)
    for u in (10, round(camera.cx), camera.width - 11):
        angle = np.arctan((u - camera.cx) / camera.fx)
        assert straight[middle, u, 0] == pytest.approx(120.0 * angle + 79.5, abs=1.0)
    with pytest.raises(InputError, match="'equidistant' with 0 coefficients"):
        calibration_from_info(camera_info(model="equidistant"))
    assert calibration_from_info(camera_info(p=K, model="equidistant"), rectified=True).camera.fx == 120.0


@pytest.mark.parametrize(
    ("d", "model"),
    [((0.1, 0.01, 0.0, 0.0, 0.0), "equidistant"), ((*BARREL, 0.0, 0.0, 0.0), "plumb_bob"), ((0.1,) + (0.0,) * 9, "")],
)
def test_zeros_after_the_coefficients_of_a_model_are_ignored(d, model):
    shorter = calibration_from_info(camera_info(d=d[:4], model=model))
    longer = calibration_from_info(camera_info(d=d, model=model))
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.testing.assert_array_equal(longer.undistort(image, None)[0], shorter.undistort(image, None)[0])


def test_bins_keep_their_size_where_they_do_not_fill_the_region_of_interest():
    roi = SimpleNamespace(x_offset=11, y_offset=6, width=101, height=75)
    calibration = calibration_from_info(camera_info(roi=roi, binning_x=2, binning_y=4))
    camera = calibration.camera
    assert (camera.width, camera.height) == (50, 18)
    assert (camera.fx, camera.fy) == (60.0, 30.0)
    # A ray through the middle of a bin of 2 x 4 full-size pixels: the bin (20, 10) of the region.
    u, v = 11 + 20 * 2 + 0.5, 6 + 10 * 4 + 1.5
    ray = (u - 79.5) / 120.0, (v - 59.5) / 120.0
    assert (camera.fx * ray[0] + camera.cx, camera.fy * ray[1] + camera.cy) == pytest.approx((20, 10))
