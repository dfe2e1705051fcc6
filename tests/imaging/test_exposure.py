"""Exposure alignment: bounded, only where it helps, and without a colour cast on clipped pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.exposure import (
    MAX_BALANCE,
    MAX_GAIN,
    align_exposure,
    apply_gain,
    bounded_gains,
    colour_error,
)
from worldstereo_ros.imaging.overlap import Overlap
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.world import WorldModel

NAN = float("nan")


def overlap(one: np.ndarray, other: np.ndarray) -> Overlap:
    return Overlap(np.stack([one, other], axis=1).clip(0, 255).astype(np.float64), NAN)


def glossy_pair(rng: np.random.Generator) -> Overlap:
    """A wall that clips in the brighter view, and a glossy red object: all that is left of the unclipped points."""
    wall = rng.normal((235, 232, 225), 6, (700, 3))
    thing = rng.normal((60, 14, 40), 4, (200, 3)).clip(7, 245)
    return overlap(np.concatenate([wall, thing]), np.concatenate([wall * 1.25, thing * (1.7, 1.05, 1.7)]))


def errors(overlaps: dict[tuple[int, int], Overlap], gains: np.ndarray) -> float:
    return sum(float(colour_error(o.colours, gains[i], gains[j]).sum()) for (i, j), o in overlaps.items())


def casts(gains: np.ndarray) -> np.ndarray:
    """(N,) ratio between the strongest and the weakest channel."""
    return gains.max(axis=1) / gains.min(axis=1)


def test_few_points_of_a_glossy_object_do_not_tint_the_view():
    pair = glossy_pair(np.random.default_rng(0))
    gains = align_exposure(2, {(0, 1): pair})
    assert casts(gains).max() < 1.15  # the median of the unclipped points alone says 1.6 : 1
    white = np.clip(apply_gain(np.full(3, 255.0), gains[1] / gains[0]), 0, 255)
    assert np.ptp(white) < 1e-6
    assert errors({(0, 1): pair}, gains) < 0.5 * errors({(0, 1): pair}, np.ones((2, 3)))
    assert gains[0, 0] / gains[1, 0] == pytest.approx(1.2, abs=0.15)


def test_true_exposure_and_white_balance_are_found():
    rng = np.random.default_rng(1)
    surface = rng.uniform(30, 180, (800, 3))
    gain = np.array([1.3, 1.2, 1.1])
    gains = align_exposure(2, {(0, 1): overlap(surface, surface * gain)})
    np.testing.assert_allclose(gains[0] / gains[1], gain, rtol=0.05)


def test_a_view_whose_points_disagree_is_left_out_and_the_others_are_aligned():
    rng = np.random.default_rng(2)
    surface = rng.uniform(40, 150, (500, 3))
    noise = rng.uniform(10, 240, (500, 3)), np.exp(rng.normal(0, 1, (500, 3)))
    overlaps = {
        (0, 1): overlap(surface, 1.5 * surface),
        (0, 2): overlap(noise[0], (noise[0] * noise[1]).clip(8, 245)),
    }
    gains = align_exposure(3, overlaps)
    assert (gains[0] / gains[1]).mean() == pytest.approx(1.5, rel=0.1)
    assert errors(overlaps, gains) < errors(overlaps, np.ones((3, 3)))


colour_lists = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=60, deadline=None)
@given(rng=colour_lists, count=st.integers(2, 5), points=st.integers(1, 120))
def test_gains_are_bounded_and_never_make_overlaps_worse(rng, count, points):
    overlaps = {}
    for i in range(count):
        for j in range(i + 1, count):
            if rng.uniform() < 0.7:
                one = rng.uniform(0, 255, (points, 3)) * rng.uniform(0.2, 1.5, 3)
                other = one * np.exp(rng.normal(0, 0.5, 3)) * np.exp(rng.normal(0, rng.uniform(0, 0.6), (points, 3)))
                overlaps[i, j] = overlap(one, other)
    gains = align_exposure(count, overlaps)
    assert gains.shape == (count, 3)
    brightness = np.exp(np.log(gains).mean(axis=1, keepdims=True))
    assert (np.abs(np.log(brightness)) <= np.log(MAX_GAIN) + 1e-9).all()
    assert (np.abs(np.log(gains / brightness)) <= np.log(MAX_BALANCE) + 1e-9).all()
    assert errors(overlaps, gains) <= errors(overlaps, np.ones((count, 3))) + 1e-6
    # Each view: no worse than without its gain or without its balance, where every point was looked at.
    if points <= 100:
        for view in range(count):
            own = {pair: o for pair, o in overlaps.items() if view in pair}
            for other in (np.ones(3), brightness[view].repeat(3)):
                changed = gains.copy()
                changed[view] = other
                assert errors(own, gains) <= errors(own, changed) * (1 + 1e-4) + 1e-3


@settings(max_examples=60, deadline=None)
@given(rng=colour_lists)
def test_bounds_keep_brightness_and_small_gains(rng):
    gains = np.exp(rng.normal(0, 0.6, (4, 3)))
    bounded = bounded_gains(gains)
    np.testing.assert_allclose(bounded_gains(bounded), bounded, rtol=1e-9)
    brightness = np.log(gains).mean(axis=1).clip(-np.log(MAX_GAIN), np.log(MAX_GAIN))
    np.testing.assert_allclose(np.log(bounded).mean(axis=1), brightness, atol=1e-9)
    small = np.exp(rng.uniform(-0.06, 0.06, (4, 3)))
    np.testing.assert_allclose(bounded_gains(small), small, rtol=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    rgb=st.tuples(*[st.integers(0, 255)] * 3),
    gain=st.tuples(*[st.floats(0.5, 2.0)] * 3),
)
def test_clipped_pixels_keep_their_hue(rgb, gain):
    colour, gain = np.array(rgb, np.float32), np.array(gain)
    out = apply_gain(colour, gain)
    neutral = np.cbrt(gain.prod())
    assert out.dtype == np.float32
    low, high = np.minimum(gain, neutral), np.maximum(gain, neutral)
    assert (out >= colour * low - 1e-3).all()
    assert (out <= colour * high + 1e-3).all()
    if max(rgb) >= 252:
        np.testing.assert_allclose(out, colour * neutral, rtol=1e-5)
    if max(rgb) <= 235:
        np.testing.assert_allclose(out, colour * gain, rtol=1e-5)


def wall(camera: Camera, x: float, gain: tuple[float, float, float]) -> View:
    """A grey, textured wall 2 m ahead with an overexposed window in it."""
    world_x = camera.rays()[..., 0] * 2 + x
    world_y = camera.rays()[..., 1] * 2
    grey = 90 + 30 * np.sin(5 * world_x) * np.cos(7 * world_y)
    window = (np.abs(world_x) < 0.3) & (np.abs(world_y) < 0.3)
    image = np.where(window[..., None], 400, grey[..., None] * np.asarray(gain))
    pose = np.eye(4)
    pose[0, 3] = x
    depth = np.full((camera.height, camera.width), 2, np.float32)
    return View(np.clip(np.rint(image), 0, 255).astype(np.uint8), camera, pose, depth)


def test_a_white_window_stays_white():
    """Seen from between two views of different white balance."""
    camera = Camera(96, 72, 80.0, 80.0, 47.5, 35.5)
    world = WorldModel(GeometricPipeline())
    world.observe(wall(camera, -0.3, (1.1, 0.95, 1.1)))
    world.observe(wall(camera, 0.3, (0.8, 0.92, 0.8)))
    for x in (-0.3, 0.0, 0.3):
        pose = np.eye(4)
        pose[0, 3] = x
        (view,) = world.imagine(pose[None], camera)
        column = round(47.5 - x / 2 * 80)
        window = view.image[31:41, column - 6 : column + 6].astype(int)
        assert window.min() > 180
        assert np.ptp(window, axis=2).max() <= 3
