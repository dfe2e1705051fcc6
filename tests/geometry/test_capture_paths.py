"""Paths made from captures: through all of them, smooth, around what they look at; order does not matter."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.capture_paths import (
    CAPTURE_PATHS,
    capture_path,
    common_target,
    path_between,
    walk_order,
)
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.trajectories import look_at, trajectory
from worldstereo_ros.utils.errors import InputError

UP = np.array([0.0, 0.0, 1.0])
TARGET = np.array([1.0, -2.0, 0.5])


def ring(count=9, span=1.6, radius=3.0):
    """Cameras on an arc that look at TARGET, at changing heights."""
    bearings = np.linspace(-0.5 * span, 0.5 * span, count)
    rows = [np.array([np.cos(b), np.sin(b), 0.1 * np.sin(5 * b)]) * radius + TARGET for b in bearings]
    return np.stack([look_at(row, TARGET, up=UP) for row in rows])


def angle_between(a, b):
    return Rotation.from_matrix(a[:3, :3].T @ b[:3, :3]).magnitude()


def test_path_between_passes_through_every_capture():
    captures = ring()
    path = path_between(captures, 2000)
    np.testing.assert_allclose(path[0], captures[0], atol=1e-9)
    np.testing.assert_allclose(path[-1], captures[-1], atol=1e-9)
    for capture in captures:
        near = np.linalg.norm(path[:, :3, 3] - capture[:3, 3], axis=1).argmin()
        assert np.linalg.norm(path[near, :3, 3] - capture[:3, 3]) < 0.004
        assert angle_between(path[near], capture) < 0.004
    np.testing.assert_allclose(path @ invert_pose(path), np.tile(np.eye(4), (2000, 1, 1)), atol=1e-9)


def test_path_between_is_smooth_and_evenly_spaced():
    captures = ring(6)
    path = path_between(captures, 301)
    steps = np.diff(path[:, :3, 3], axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    assert lengths.max() < 1.5 * np.median(lengths)
    directions = steps / lengths[:, None]
    bends = np.arccos(np.clip((directions[1:] * directions[:-1]).sum(1), -1, 1))
    corners = np.diff(captures[:, :3, 3], axis=0)
    corners = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    assert bends.max() < 0.25 * np.arccos((corners[1:] * corners[:-1]).sum(1)).max()  # no corner at a capture


def test_path_between_few_or_equal_captures():
    captures = ring(2)
    assert path_between(captures[:1], 3).shape == (3, 4, 4)
    np.testing.assert_allclose(path_between(np.stack([captures[0]] * 3), 2), captures[[0, 0]], atol=1e-12)
    np.testing.assert_allclose(path_between(captures, 3)[[0, 2]], captures, atol=1e-9)
    doubled = ring(5)[[0, 0, 1, 2, 2, 2, 3, 4]]
    np.testing.assert_allclose(path_between(doubled, 20), path_between(ring(5), 20), atol=1e-9)


def test_order_of_the_captures_does_not_matter():
    captures = ring(12)
    expected = path_between(captures, 40)
    rng = np.random.default_rng(0)
    for _ in range(5):
        path = capture_path("between", captures[rng.permutation(12)], 40, up=UP)
        if np.abs(path[0] - expected[0]).max() > 1e-6:
            path = path[::-1]  # either direction is as short
        np.testing.assert_allclose(path, expected, atol=1e-4)  # the rotation spline is found by iteration


def test_walk_order_is_near_the_shortest_way_through_scattered_captures():
    rng = np.random.default_rng(3)
    poses = np.tile(np.eye(4), (30, 1, 1))
    poses[:, :3, 3] = rng.uniform(0, 10, (30, 3)) * (1, 1, 0)
    way = walk_order(poses)
    assert sorted(way) == list(range(30))
    length = np.linalg.norm(np.diff(poses[way][:, :3, 3], axis=0), axis=1).sum()
    assert length < 0.7124 * np.sqrt(30 * 100) * 1.15  # of random points (Beardwood et al. 1959), for a closed tour


def test_target_is_where_the_cameras_look():
    np.testing.assert_allclose(common_target(ring()), TARGET, atol=1e-9)


@pytest.mark.parametrize("name", ["around", "spiral-around"])
def test_paths_around_look_at_the_target_and_span_the_captures(name):
    captures = ring()
    path = capture_path(name, captures, 41, up=UP)
    toward = TARGET - path[:, :3, 3]
    distance = np.linalg.norm(toward, axis=1)
    np.testing.assert_allclose(path[:, :3, 2], toward / distance[:, None], atol=1e-9)
    assert (-path[:, 2, 1] > 0.9).all()  # upright
    bearings = np.arctan2(*(path[:, :3, 3] - TARGET).T[[1, 0]])
    assert np.ptp(bearings) == pytest.approx(1.6 * 1.15, rel=0.01)
    heights = path[:, 2, 3] - TARGET[2]
    if name == "around":
        np.testing.assert_allclose(np.linalg.norm(path[:, :2, 3] - TARGET[:2], axis=1), 3, rtol=0.01)
        assert np.ptp(heights) < 1e-9
    else:
        assert np.ptp(heights) == pytest.approx(1.5, rel=0.02)
    wide = capture_path(name, captures, 5, up=UP, angle=3.0)
    assert np.ptp(np.arctan2(*(wide[:, :3, 3] - TARGET).T[[1, 0]])) == pytest.approx(3.0)


def test_dolly_goes_past_the_middle_capture_towards_the_target():
    captures = ring()
    path = capture_path("dolly", captures, 11, up=UP)
    np.testing.assert_allclose(path[5], captures[4], atol=1e-9)
    distance = np.linalg.norm(path[:, :3, 3] - TARGET, axis=1)
    middle = distance[5]
    np.testing.assert_allclose(distance[[0, -1]], [1.4 * middle, 0.6 * middle], rtol=1e-6)
    assert (np.diff(distance) < 0).all()


def test_cameras_without_a_common_target_are_refused():
    parallel = trajectory("right", np.eye(4), 5)
    outward = ring()
    outward[:, :3, :3] = outward[:, :3, :3] @ np.diag([-1.0, 1, -1])
    for name in CAPTURE_PATHS[1:]:
        with pytest.raises(InputError, match="look in the same direction"):
            capture_path(name, parallel, 5, up=UP)
        with pytest.raises(InputError, match="9 of 9 captures look away"):
            capture_path(name, outward, 5, up=UP)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="at least two"):
        capture_path("between", ring(9)[:1], 5, up=UP)
    with pytest.raises(InputError, match="'sideways' is unknown; one of between, around"):
        capture_path("sideways", ring(), 5, up=UP)
    with pytest.raises(InputError, match="number of poses is 0"):
        capture_path("around", ring(), 0, up=UP)
    with pytest.raises(InputError, match="not finite"):
        path_between(np.full((3, 4, 4), np.nan), 5)
    with pytest.raises(InputError, match="cannot look at that point"):
        look_at(TARGET, TARGET, up=UP)


def test_spiral_widens_and_looks_at_the_point_ahead():
    start = look_at(np.array([3.0, 1, 0]), TARGET, up=UP)
    path = trajectory("spiral", start, 33, distance=0.8, radius=2.0)
    local = invert_pose(start) @ path
    widths = np.linalg.norm(local[:, :2, 3], axis=1)
    assert (np.diff(widths) > 0).all()
    assert widths[-1] == pytest.approx(0.4)
    toward = np.array([0, 0, 2.0]) - local[:, :3, 3]
    np.testing.assert_allclose(local[:, :3, 2], toward / np.linalg.norm(toward, axis=1, keepdims=True), atol=1e-9)
    back = trajectory("backward", start, 3, distance=0.5)
    np.testing.assert_allclose((invert_pose(start) @ back[-1])[:3, 3], [0, 0, -0.5], atol=1e-12)
