import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.similarity import (
    Similarity,
    align_points,
    align_poses,
    mean_rotation,
    pose_errors,
    rotation_angles,
)
from worldstereo_ros.utils.errors import InputError


def _similarity(seed: int, scale: float) -> Similarity:
    random = np.random.default_rng(seed)
    return Similarity(scale, Rotation.random(random_state=seed).as_matrix(), random.normal(size=3) * 10)


def _poses(seed: int, count: int) -> np.ndarray:
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    poses[:, :3, 3] = np.random.default_rng(seed).normal(size=(count, 3))
    return poses


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), count=st.integers(3, 30))
def test_points_that_were_moved_are_moved_back(seed, scale, count):
    truth, points = _similarity(seed, scale), np.random.default_rng(seed + 1).normal(size=(count, 3))
    found = align_points(points, truth.points(points))
    np.testing.assert_allclose(found.scale, truth.scale, rtol=1e-6)
    np.testing.assert_allclose(found.points(points), truth.points(points), rtol=1e-6, atol=1e-6 * scale)
    assert np.linalg.det(found.rotation) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), count=st.integers(2, 10))
def test_poses_determine_a_similarity_from_two_cameras_on(seed, scale, count):
    truth, poses = _similarity(seed, scale), _poses(seed, count)
    found = align_poses(poses, truth.poses(poses))
    np.testing.assert_allclose(found.poses(poses), truth.poses(poses), rtol=1e-6, atol=1e-6 * max(scale, 1))


def test_inverse_and_composition_agree_with_points():
    one, two, points = _similarity(1, 2.5), _similarity(2, 0.3), np.random.default_rng(3).normal(size=(5, 3))
    np.testing.assert_allclose(one.inverse().points(one.points(points)), points, atol=1e-12)
    np.testing.assert_allclose(two.after(one).points(points), two.points(one.points(points)), atol=1e-12)


def test_a_mirrored_cloud_is_not_mirrored_back():
    points = np.random.default_rng(0).normal(size=(20, 3))
    found = align_points(points, points * [1, 1, -1])
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def test_points_on_a_line_are_refused_and_poses_on_a_line_are_not():
    poses = _poses(4, 5)
    poses[:, :3, 3] = np.arange(5)[:, None] * [1.0, 2.0, 3.0]
    truth = _similarity(5, 0.5)
    with pytest.raises(InputError, match="one line"):
        align_points(poses[:, :3, 3], truth.points(poses[:, :3, 3]))
    errors = pose_errors(poses, truth.poses(poses))
    assert errors.ate_percent < 1e-6
    assert errors.degrees.max() < 1e-5


def test_cameras_at_one_place_leave_the_scale_open():
    poses = _poses(6, 3)
    poses[:, :3, 3] = 1.0
    with pytest.raises(InputError, match="scale"):
        align_poses(poses, poses)


def test_errors_are_those_that_were_made():
    reference = _poses(7, 40)
    estimated = reference.copy()
    estimated[:, :3, :3] = reference[:, :3, :3] @ Rotation.from_euler("x", 2, degrees=True).as_matrix()
    estimated = _similarity(8, 3.0).poses(estimated)
    errors = pose_errors(estimated, reference)
    np.testing.assert_allclose(errors.degrees, 2, atol=1e-6)
    estimated[:, :3, 3] += np.random.default_rng(9).normal(size=(40, 3)) * 0.03
    assert 0.05 < pose_errors(estimated, reference).ate_percent < 2


def test_the_mean_of_rotations_is_between_them():
    pair = Rotation.from_euler("z", [[10], [30]], degrees=True).as_matrix()
    mean = mean_rotation(pair)
    np.testing.assert_allclose(np.degrees(rotation_angles(pair, mean[None])), 10, atol=1e-6)
