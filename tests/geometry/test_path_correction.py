"""Corrections of a path: at their times, between them and beyond."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.path_correction import PathCorrection, between
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.utils.errors import InputError


def turned(degrees: float, shift: list[float], scale: float = 1.0) -> Similarity:
    return Similarity(scale, Rotation.from_euler("y", degrees, degrees=True).as_matrix(), np.array(shift))


STAMPS = np.array([100, 200, 400])
CHANGES = (Similarity.identity(), turned(10, [1, 0, 0], 1.2), turned(20, [3, 0, 0], 1.44))
CORRECTION = PathCorrection(STAMPS, CHANGES)


def test_at_a_time_its_change_holds_and_beyond_the_nearest_one():
    pose = np.eye(4)
    pose[:3, 3] = [0.5, -1, 2]
    for stamp, change in ((100, CHANGES[0]), (200, CHANGES[1]), (400, CHANGES[2]), (50, CHANGES[0]), (900, CHANGES[2])):
        moved, scale = CORRECTION.pose(pose, stamp)
        np.testing.assert_allclose(moved, change.poses(pose), atol=1e-9)
        assert scale == pytest.approx(change.scale)
        points, factor = CORRECTION.points(pose[None, :3, 3], np.array([stamp]))
        np.testing.assert_allclose(points[0], change.points(pose[:3, 3]), atol=1e-6)
        assert factor[0] == pytest.approx(change.scale)


def test_between_two_times_the_results_are_blended():
    pose, stamp = np.eye(4), 350  # three quarters of the way
    moved, scale = CORRECTION.pose(pose, stamp)
    np.testing.assert_allclose(moved[:3, 3], [2.5, 0, 0])
    assert np.degrees(Rotation.from_matrix(moved[:3, :3]).magnitude()) == pytest.approx(17.5, abs=0.1)
    assert scale == pytest.approx(1.2**0.25 * 1.44**0.75)
    assert np.linalg.det(moved[:3, :3]) == pytest.approx(1)
    points, _ = CORRECTION.points(np.zeros((1, 3)), np.array([stamp]))
    np.testing.assert_allclose(points[0], moved[:3, 3], atol=1e-6)


def test_points_of_many_times_move_as_each_alone():
    random = np.random.default_rng(0)
    points, stamps = random.normal(size=(200, 3)), random.integers(0, 500, 200)
    moved, scale = CORRECTION.points(points, stamps)
    for row in range(0, 200, 7):
        alone, factor = CORRECTION.points(points[row : row + 1], stamps[row : row + 1])
        np.testing.assert_allclose(moved[row], alone[0], atol=1e-6)
        assert scale[row] == pytest.approx(factor[0])
    assert CORRECTION.points(np.zeros((0, 3)), np.zeros(0, np.int64))[0].shape == (0, 3)


def test_it_takes_cameras_to_cameras_and_needs_one():
    before, after = turned(5, [1, 2, 3]), turned(-7, [0, 1, 0], 0.5)
    made = between([(before, after)], [7])
    np.testing.assert_allclose(made.changes[0].points(before.points(np.ones(3))), after.points(np.ones(3)))
    with pytest.raises(InputError, match="0 times and 0 changes"):
        PathCorrection(np.zeros(0, np.int64), ())
