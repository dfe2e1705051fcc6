"""Depth and poses of frames: cuts, black frames, followed poses, one scale."""

import numpy as np
import pytest
from helpers.stereo_scene import CAMERA, view_from

from worldstereo_ros.depth.estimators import DepthEstimate
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.shots import ShotDetector, is_black
from worldstereo_ros.pipelines.stereo.frame_geometry import MAX_DOUBT, TRUSTED, GeometryTracker
from worldstereo_ros.utils.errors import InputError


def textured(x, seed=0):
    """A wall with corners to follow and a nearer half, seen from x metres to the right: (image, depth)."""
    camera = Camera.from_fov(320, 192, np.radians(60))
    rng = np.random.default_rng(seed)
    marks = rng.integers(0, 256, (60, 60, 3))
    rays = camera.rays().astype(np.float64)
    depth = np.where(rays[..., 1] > 0, 2.0, 4.0)
    points = rays[..., :2] * depth[..., None] + (x, 0)
    cells = np.floor(points * np.where(depth < 3, 6, 4)[..., None]).astype(int) % 60
    return camera, marks[cells[..., 1], cells[..., 0]].astype(np.uint8), depth.astype(np.float32)


class FakeEstimator:
    """An estimator that is wrong by another factor for each image."""

    def __init__(self, depth, factors):
        self.depth, self.factors = depth, iter(factors)

    def __call__(self, image, camera):
        return self.depth * np.float32(next(self.factors))


def test_pose_follows_from_measured_depth():
    camera, image, depth = textured(0.0)
    tracker = GeometryTracker(camera, None)
    tracker.step(image, depth)
    _, moved, moved_depth = textured(0.05)
    found = tracker.step(moved, moved_depth)
    assert found.world_from_camera is not None
    np.testing.assert_allclose(found.world_from_camera[:3, 3], [0.05, 0, 0], atol=0.01)
    assert not found.new_shot
    assert not found.estimated


def test_scale_of_estimates_does_not_jump():
    camera, _, depth = textured(0.0)
    tracker = GeometryTracker(camera, FakeEstimator(depth, [1.0, 1.2, 0.9, 1.1, 1.0]))
    medians = []
    for index in range(5):
        _, image, _ = textured(0.02 * index)
        found = tracker.step(image)
        assert found.estimated
        medians.append(float(np.median(found.depth)))
    assert np.ptp(medians) < 0.1 * medians[0]  # the estimates themselves differ by 30 %


def test_cut_is_found_and_scale_starts_anew():
    camera, image, depth = textured(0.0)
    bright = 255 - np.clip(image[::-1, ::-1] // 3, 0, 255).astype(np.uint8)
    tracker = GeometryTracker(camera, FakeEstimator(depth, [1.0, 1.5]))
    tracker.step(image)
    found = tracker.step(bright)
    assert found.new_shot
    assert tracker.cuts == 1
    np.testing.assert_allclose(found.depth, 1.5 * depth)


def test_motion_is_no_cut():
    detector = ShotDetector()
    assert not any(detector.is_cut(view_from(x)[0]) for x in np.arange(0, 1, 0.1))


def test_black_frames_are_infinitely_far_and_end_a_shot():
    camera, image, depth = textured(0.0)
    black = np.zeros_like(image)
    assert is_black(black)
    assert not is_black(image)
    tracker = GeometryTracker(camera, FakeEstimator(depth, [1.0, 1.0]))
    tracker.step(image)
    found = tracker.step(black)
    assert found.black
    assert np.isinf(found.depth).all()
    assert tracker.step(image).new_shot


def test_frame_without_depth_and_estimator_is_refused():
    image, _ = view_from(0.0)
    with pytest.raises(InputError, match="depth-model"):
        GeometryTracker(CAMERA, None).step(image)


def test_image_without_anything_to_follow_restarts_the_shot():
    camera, image, depth = textured(0.0)
    tracker = GeometryTracker(camera, None)
    tracker.step(image, depth)
    plain = np.full_like(image, int(image.mean()))
    found = tracker.step(plain, depth)
    assert found.new_shot
    assert tracker.lost + tracker.cuts == 1


def test_state_is_restored():
    camera, image, depth = textured(0.0)
    first, second = GeometryTracker(camera, None), GeometryTracker(camera, None)
    first.step(image, depth)
    second.restore(first.state())
    _, moved, moved_depth = textured(0.05)
    one, other = (tracker.step(moved, moved_depth) for tracker in (first, second))
    np.testing.assert_array_equal(one.world_from_camera, other.world_from_camera)


def test_given_poses_hold_across_a_cut():
    camera, image, depth = textured(0.0)
    bright = 255 - np.clip(image[::-1, ::-1] // 3, 0, 255).astype(np.uint8)
    tracker = GeometryTracker(camera, None)
    tracker.step(image, depth, np.eye(4))
    assert not tracker.step(bright, depth, np.eye(4)).new_shot
    assert tracker.cuts == 0


@pytest.mark.parametrize(("confidence", "factor"), [(0.6, 1.0), (TRUSTED, 1.0), (TRUSTED / 2, 2.0), (0.0, MAX_DOUBT)])
def test_depth_that_its_estimator_doubts_is_moved_away(confidence, factor):
    image, depth = view_from(0.0)

    class Doubtful(FakeEstimator):
        def estimate(self, image, camera):
            return DepthEstimate(self(image, camera), np.full(depth.shape, confidence, np.float32))

    found = GeometryTracker(CAMERA, Doubtful(depth, [1.0])).step(image).depth
    np.testing.assert_allclose(found, factor * depth, rtol=1e-5)
