"""Borders of constant colour are cut off; bright ceilings, dark floors and pictures without a border are not."""

import logging

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.borders import MAX_BORDER, RINGING_PX, STEP_PX, valid_area
from worldstereo_ros.io.images import read_image
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.world import WorldModel

HEIGHT, WIDTH = 240, 320
WHOLE = slice(0, HEIGHT), slice(0, WIDTH)
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def picture(rng: np.random.Generator) -> np.ndarray:
    """A textured image of middle brightness."""
    coarse = rng.uniform(40, 210, (8, 10, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def framed(image: np.ndarray, widths: tuple[int, int, int, int], level: int, quality: int) -> np.ndarray:
    """`image` with a border (top, bottom, left, right), JPEG-compressed."""
    top, bottom, left, right = widths
    out = image.copy()
    out[:top], out[:, :left] = level, level
    out[HEIGHT - bottom :], out[:, WIDTH - right :] = level, level
    return cv2.imdecode(cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def cut_off(image: np.ndarray) -> np.ndarray:
    rows, columns = valid_area(image)
    return np.array([rows.start, image.shape[0] - rows.stop, columns.start, image.shape[1] - columns.stop])


@settings(max_examples=60, deadline=None)
@given(
    rng=generators,
    widths=st.tuples(*[st.integers(6, 15)] * 4),
    level=st.sampled_from([0, 5, 248, 255]),
    quality=st.integers(85, 100),
)
def test_a_border_is_cut_off_and_little_else(rng, widths, level, quality):
    excess = cut_off(framed(picture(rng), widths, level, quality)) - widths
    assert (excess >= 0).all()
    assert (excess <= RINGING_PX + STEP_PX).all()


def test_compression_of_the_outermost_line_hides_no_border():
    image = framed(picture(np.random.default_rng(9)), (6, 6, 6, 6), 248, 85)
    assert (cut_off(image) >= 6).all()


@settings(max_examples=40, deadline=None)
@given(rng=generators, level=st.sampled_from([0, 255]), vertical=st.booleans())
def test_letterboxes_are_cut_off(rng, level, vertical):
    widths = (0, 0, 9, 14) if vertical else (9, 14, 0, 0)
    excess = cut_off(framed(picture(rng), widths, level, 95)) - widths
    assert (excess >= 0).all()
    assert (excess <= RINGING_PX + STEP_PX).all()


@settings(max_examples=60, deadline=None)
@given(rng=generators)
def test_an_image_without_a_border_is_unchanged(rng):
    assert valid_area(picture(rng)) == WHOLE


@settings(max_examples=40, deadline=None)
@given(
    rng=generators,
    widths=st.sampled_from([(9, 0, 0, 0), (0, 9, 0, 0), (0, 0, 9, 0), (9, 0, 9, 0), (0, 9, 0, 9)]),
    level=st.sampled_from([0, 255]),
)
def test_one_side_or_two_adjacent_ones_may_belong_to_the_place(rng, widths, level):
    assert valid_area(framed(picture(rng), widths, level, 95)) == WHOLE


@pytest.mark.parametrize("slope", [0.03, 0.1, 0.3])
def test_a_bright_ceiling_and_a_bright_floor_are_not_a_border(slope):
    image = picture(np.random.default_rng(0))
    x = np.arange(WIDTH)
    rows = np.arange(HEIGHT)[:, None]
    image[rows < 6 + slope * x] = 255
    image[rows > HEIGHT - 8 - slope * x[::-1]] = 255
    assert valid_area(image) == WHOLE


@pytest.mark.parametrize("level", [0, 128, 255])
def test_uniform_images_and_wide_bands_are_unchanged(level):
    assert valid_area(np.full((HEIGHT, WIDTH, 3), level, np.uint8)) == WHOLE
    wide = round(2 * MAX_BORDER * HEIGHT)
    assert valid_area(framed(picture(np.random.default_rng(1)), (wide, wide, 0, 0), level, 95)) == WHOLE


def test_black_above_and_white_below_are_not_a_border():
    image = picture(np.random.default_rng(2))
    image[:9], image[-9:] = 0, 255
    assert valid_area(image) == WHOLE


def test_a_window_that_touches_a_white_border_does_not_keep_it():
    image = picture(np.random.default_rng(3))
    image[:100, 40:270] = 255  # 72 % of the upper border
    assert (cut_off(framed(image, (9, 9, 9, 9), 255, 95)) >= 9).all()


def test_recordings_without_a_border_are_unchanged(shared_data):
    paths = [path for suffix in ("jpg", "png") for path in shared_data.glob(f"**/frames/*.{suffix}")]
    assert len(paths) > 100
    for path in sorted(paths)[::4]:
        image = read_image(path)
        assert valid_area(image) == (slice(0, image.shape[0]), slice(0, image.shape[1])), path


def test_the_border_leaves_no_streak_in_other_views(caplog):
    camera = Camera.from_fov(WIDTH, HEIGHT, 1.2)
    image = framed(picture(np.random.default_rng(4)), (9, 9, 9, 9), 255, 92)
    depth = np.full((HEIGHT, WIDTH), 2, np.float32)
    world = WorldModel(GeometricPipeline())
    with caplog.at_level(logging.INFO, "worldstereo_ros.world"):
        world.observe(View(image, camera, np.eye(4), depth))
        world.observe(View(image, camera, np.eye(4), depth, stamp_ns=1))
    assert sum("border" in record.message for record in caplog.records) == 1
    remembered = world.bank.views[0]
    assert 9 <= camera.cx - remembered.camera.cx <= 9 + RINGING_PX + STEP_PX
    pose = np.eye(4)
    pose[0, 3] = 0.5
    (seen,) = world.imagine(pose[None], camera)
    assert (seen.image.min(axis=2) > 235).mean() < 0.001
