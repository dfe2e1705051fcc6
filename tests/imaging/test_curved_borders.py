"""Curved black borders of undistorted images are cut off; dark things and vignettes are not."""

import cv2
import numpy as np
import pytest

from worldstereo_ros.imaging.borders import valid_area

HEIGHT, WIDTH = 240, 320
WHOLE = slice(0, HEIGHT), slice(0, WIDTH)
K = np.array([[240.0, 0, 161.0], [0, 240.0, 118.0], [0, 0, 1]])


def picture(seed: int = 0) -> np.ndarray:
    """A textured image of middle brightness."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(
        rng.uniform(40, 210, (8, 10, 3)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 25, 255).astype(np.uint8)


def undistorted(image: np.ndarray, d, new_k) -> tuple[np.ndarray, np.ndarray]:
    """(the image without distortion, as OpenCV leaves it; (H, W) bool, True = inside the raw image)."""
    maps = cv2.initUndistortRectifyMap(K, np.array(d, float), None, new_k, (WIDTH, HEIGHT), cv2.CV_32FC1)
    inside = (maps[0] >= 0) & (maps[0] <= WIDTH - 1) & (maps[1] >= 0) & (maps[1] <= HEIGHT - 1)
    return cv2.remap(image, *maps, cv2.INTER_LINEAR), inside


@pytest.mark.parametrize("quality", [None, 95, 85])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("d", "alpha"),
    [((0.25, 0.1, 0, 0, 0), None), ((0.12, 0.02, 0.002, -0.003, 0), None), ((-0.3, 0.1, 0, 0, 0), 1.0)],
)
def test_the_border_of_undistortion_is_cut_off(d, alpha, seed, quality):
    new_k = K if alpha is None else cv2.getOptimalNewCameraMatrix(K, np.array(d), (WIDTH, HEIGHT), alpha)[0]
    image, inside = undistorted(picture(seed), d, new_k)
    if quality is not None:
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    rows, columns = valid_area(image)
    assert not inside.all()
    assert inside[rows, columns].all()
    assert inside[rows, columns].size > 0.75 * inside.sum()


def test_images_without_a_border_are_unchanged():
    assert valid_area(picture()) == WHOLE
    dark = picture()
    dark[:30, 40:200] = 5  # a dark shelf above and a dark floor below
    dark[-50:, :] = 8
    assert valid_area(dark) == WHOLE
    arch = picture()
    cv2.circle(arch, (160, 300), 120, (0, 0, 0), -1)  # something round and black, at one side
    assert valid_area(arch) == WHOLE


def test_jagged_darkness_on_both_sides_is_not_a_border():
    image, rng = picture(), np.random.default_rng(1)
    for column in range(0, WIDTH, 8):
        image[: rng.integers(0, 30), column : column + 8] = 3
        image[HEIGHT - rng.integers(0, 30) :, column : column + 8] = 3
    assert valid_area(image) == WHOLE


def test_a_vignette_that_fades_is_not_a_border():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot((x - 160) / 160, (y - 120) / 120)
    image = (picture() * np.clip(1.4 - radius, 0, 1)[..., None]).astype(np.uint8)
    assert (image[0, 0] == 0).all()
    assert valid_area(image) == WHOLE


def test_a_night_view_is_unchanged():
    image = np.full((HEIGHT, WIDTH, 3), 4, np.uint8)
    image[100:140, 140:180] = 200
    assert valid_area(image) == WHOLE
    assert valid_area(np.zeros((HEIGHT, WIDTH, 3), np.uint8)) == WHOLE
