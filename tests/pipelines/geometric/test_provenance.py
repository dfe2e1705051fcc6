"""Which pixels may be labelled as observed."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.planes import CAMERA, FAR, floor, pose_at, two_planes
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.evaluation.metrics import seen_pixels
from worldstereo_ros.evaluation.world_sequences import WorldSequence, world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.depth_noise import depth_noise
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.provenance import observed_pixels
from worldstereo_ros.pipelines.geometric.supporting_views import SupportingView, sensor_doubt
from worldstereo_ros.scenes import SensorNoise
from worldstereo_ros.scenes.sensor import noisy_depth
from worldstereo_ros.world import WorldModel


def support(view: View, degrees: float, checked: bool = True) -> SupportingView:
    measured = (view.depth > 0).astype(np.uint8)
    return SupportingView(view, measured, np.radians(degrees), checked, sensor_doubt(view.depth))


def labels(target: View, views: list[View], degrees: float = 0.0, checked: bool = True) -> np.ndarray:
    observed = np.ones(target.depth.shape, bool)
    supporting_views = [support(view, degrees, checked) for view in views]
    return observed_pixels(target.depth, observed, CAMERA, target.world_from_camera, supporting_views)


def moved_floor(x: float) -> View:
    """The floor of `floor`, which looks the same from everywhere beside."""
    return replace(floor(), world_from_camera=pose_at(x))


# --- single rules ----------------------------------------------------------------------------------------------------


def test_pixels_without_measured_depth_do_not_support():
    target, view = two_planes(0.0), two_planes(0.0)
    assert labels(target, [view])[8, 8]
    view.depth[4:13, 4:13] = 0
    assert not labels(target, [view])[8, 8]


def test_points_of_evicted_views_are_observed_and_imagined_ones_are_not():
    target = two_planes(0.0)
    far_off = View(target.image, CAMERA, pose_at(100.0), target.depth)
    assert labels(target, [far_off]).mean() > 0.9
    imagined = np.zeros(target.depth.shape, bool)
    supporting_views = [support(target, 0.0)]
    assert not observed_pixels(target.depth, imagined, CAMERA, target.world_from_camera, supporting_views).any()


def test_points_beside_what_a_view_shows_are_not_those_of_an_evicted_view():
    """Rendered points cover a pixel or two beyond the border of the only view that measured them."""
    target, view = two_planes(0.6), two_planes(0.0)
    border = round(CAMERA.width - 0.6 * CAMERA.fx / FAR)  # the view ends here, in the target
    observed = labels(target, [view])
    assert not observed[10, border : border + 2].any()


def test_a_slanted_surface_needs_good_registration():
    target, view = moved_floor(0.4), floor()
    row, column = 66, 40
    assert labels(target, [view], 0.1)[row, column]
    assert not labels(target, [view], 4.0)[row, column]
    wall = two_planes(0.0).depth.copy()
    wall[:] = FAR
    flat = replace(two_planes(0.0), depth=wall)
    assert labels(replace(flat, world_from_camera=pose_at(0.4)), [flat], 1.0)[36, 40]  # not a frontal one


def test_the_same_view_is_no_second_witness():
    target, view, beside = moved_floor(0.4), floor(), moved_floor(0.8)
    once = labels(target, [view], 2.0)
    np.testing.assert_array_equal(labels(target, [view, view, view], 2.0), once)
    assert labels(target, [view, beside], 2.0).sum() > once.sum()


def test_registration_does_not_matter_beside_the_observation():
    view = floor()
    near, far = labels(moved_floor(0.005), [view], 4.0), labels(moved_floor(0.4), [view], 4.0)
    assert near.sum() > 1.5 * far.sum()


def test_pixels_beside_edges_need_good_registration():
    # Slanted surfaces whose depth depends on the row alone, so that they look the same from everywhere beside; a step
    # between rows 44 and 45.
    rows = np.arange(CAMERA.height)
    profile = 3 * np.exp(-(rows - CAMERA.cy) / CAMERA.fy) * np.where(rows < 45, 1, 0.5)
    view = replace(floor(), depth=np.repeat(profile.astype(np.float32)[:, None], CAMERA.width, axis=1))
    target = replace(view, world_from_camera=pose_at(0.2))
    well, badly = labels(target, [view], 0.1)[:, 30:60], labels(target, [view], 8.0)[:, 30:60]
    assert well[41:44].all()
    assert not badly[41:44].any()
    assert badly[18:30].all()


def test_lines_of_sight_through_hidden_space_are_not_observed():
    # The supporting view sees a board from the front. From the side, the line of sight to the wall passes behind it.
    view = two_planes(0.0)
    side = np.eye(4)
    side[:3, :3] = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along +x
    side[:3, 3] = (-0.9, 0.0, 2.0)
    depth = np.full((72, 96), 0, np.float32)
    depth[30:42, 40:56] = 1.9  # points at x = 1.0, z about 2 that memory holds as observed
    assert not observed_pixels(depth, depth > 0, CAMERA, side, [support(view, 0.0)]).any()


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 4), st.floats(0, 2), st.floats(-0.4, 0.4), st.booleans())
def test_worse_registration_never_adds_observed_pixels(degrees, more, x, checked):
    target, view = two_planes(x), two_planes(0.0)
    better, worse = labels(target, [view], degrees, checked), labels(target, [view], degrees + more, checked)
    assert not (worse & ~better).any()
    assert not (labels(target, [view], degrees, False) & ~labels(target, [view], degrees, True)).any()


# --- noise of depth --------------------------------------------------------------------------------------------------


def test_depth_noise_of_a_plane_is_its_noise():
    rng = np.random.default_rng(0)
    plane = np.full((72, 96), 2.0, np.float32) + np.linspace(0, 1, 96, dtype=np.float32)
    assert depth_noise(plane)[6:-6].max() < 0.01
    tolerance = 0.05 * 2.5 + 0.02
    for sigma in (0.05, 0.1):
        noisy = plane + rng.normal(0, sigma * tolerance, plane.shape).astype(np.float32)
        # Mean absolute second difference of independent noise: sigma * sqrt(6) * sqrt(2 / pi).
        assert np.median(depth_noise(noisy)) == pytest.approx(sigma * 1.95, rel=0.15)
    ledges = plane.copy()
    ledges[::12] += 0.1
    assert np.median(depth_noise(ledges)) < 0.02  # structure in one direction is no noise
    assert (depth_noise(np.zeros((8, 8), np.float32)) == 1).all()


def test_noisy_depth_is_doubted():
    rng = np.random.default_rng(0)
    view = floor()
    tolerance = 0.05 * view.depth + 0.02
    noise = np.clip(rng.normal(0, 0.5, view.depth.shape), -0.95, 0.95) * tolerance
    noisy = replace(view, depth=np.where(view.depth > 0, view.depth + noise, 0).astype(np.float32))
    assert np.median(sensor_doubt(noisy.depth)[50:]) > np.median(sensor_doubt(view.depth)[50:]) + 1
    target = moved_floor(0.4)
    assert labels(target, [noisy], 1.0).sum() < 0.7 * labels(target, [view], 1.0).sum()


# --- on procedural worlds --------------------------------------------------------------------------------------------


def disturbed(view: View, rng: np.random.Generator, degrees: float, metres: float, noise: SensorNoise | None) -> View:
    """The view with errors in its pose, and with the depth of a stereo sensor."""
    axis, direction = rng.normal(size=(2, 3))
    turn = np.radians(abs(rng.normal(0, degrees))) / 2 * axis / np.linalg.norm(axis)
    shift = metres * direction / np.linalg.norm(direction)
    pose = view.world_from_camera @ pose_from_quaternion(shift, (*turn, 1.0))
    depth = view.depth
    if noise is not None:
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))
        depth = noisy_depth(torch.from_numpy(depth)[None], view.camera, noise, generator)[0].numpy()
    return replace(view, world_from_camera=pose, depth=depth)


@functools.cache
def walk_through_world(number: int) -> WorldSequence:
    """A walk whose views are rendered once for all tests."""
    return world_sequence("test", number, views=21, camera=Camera.from_fov(160, 120, np.radians(75)))


@pytest.mark.parametrize(
    ("degrees", "metres", "noise", "precision", "recall"),
    [
        (0.0, 0.0, None, 0.99, 0.85),
        (0.5, 0.01, None, 0.97, 0.85),
        (1.5, 0.02, None, 0.9, 0.8),
        (0.0, 0.0, SensorNoise(), 0.97, 0.6),
    ],
)
def test_precision_and_recall_with_wrong_poses_and_noisy_depth(degrees, metres, noise, precision, recall):
    correct = labelled = seen_count = 0
    for number in (0, 2):
        walk = walk_through_world(number)
        rng = np.random.default_rng(number)
        views = [disturbed(view, rng, degrees, metres, noise) for view in walk]
        observations, targets = views[::5], [views[index] for index in range(2, 21, 6)]
        world = WorldModel(GeometricPipeline(threads=1))
        for view in observations:
            world.observe(view)
        poses = np.stack([target.world_from_camera for target in targets])
        for view, target in zip(world.imagine(poses, walk.camera), targets, strict=True):
            seen = seen_pixels(target, observations)
            correct += (view.observed_mask & seen).sum()
            labelled += (view.observed_mask & (target.depth > 0)).sum()
            seen_count += seen.sum()
    assert correct / labelled > precision
    assert correct / seen_count > recall
