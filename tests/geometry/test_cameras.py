import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.cameras import Camera, project, unproject
from worldstereo_ros.geometry.poses import interpolate_poses, invert_pose, pose_from_quaternion, quaternion_from_pose
from worldstereo_ros.geometry.trajectories import TRAJECTORIES, trajectory

CAMERA = Camera(64, 48, 50.0, 52.0, 31.0, 25.0)
finite = st.floats(-50, 50, allow_nan=False)
vectors = st.tuples(finite, finite, finite)


def pose(rotation_vector, translation):
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    out[:3, 3] = translation
    return out


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), vectors, st.floats(0.1, 30))
def test_project_inverts_unproject(rotation_vector, translation, depth):
    world_from_camera = pose(rotation_vector, translation)
    points = unproject(np.full((48, 64), depth, np.float32), CAMERA, world_from_camera)
    uv, z = project(points.reshape(-1, 3), CAMERA, world_from_camera)
    y, x = np.mgrid[:48, :64]
    np.testing.assert_allclose(uv, np.stack([x.ravel(), y.ravel()], axis=1), atol=0.02)
    np.testing.assert_allclose(z, depth, rtol=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3), vectors)
def test_inverse_and_quaternion_restore_the_pose(rotation_vector, translation):
    world_from_camera = pose(rotation_vector, translation)
    np.testing.assert_allclose(world_from_camera @ invert_pose(world_from_camera), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(
        pose_from_quaternion(*quaternion_from_pose(world_from_camera)), world_from_camera, atol=1e-9
    )


def test_resized_camera_keeps_the_field_of_view():
    big, point = CAMERA.resized(128, 96), np.array([[0.3, -0.2, 2.0]])
    (small_uv,), _ = project(point, CAMERA, np.eye(4))
    (big_uv,), _ = project(point, big, np.eye(4))
    np.testing.assert_allclose(big_uv, (small_uv + 0.5) * 2 - 0.5, atol=1e-4)


def test_interpolate_poses_spaces_translations_evenly_between_both_ends():
    path = np.stack([pose((0, 0, 0), (0, 0, 0)), pose((0, 0, 0), (1, 0, 0)), pose((0, 0, 0), (3, 0, 0))])
    out = interpolate_poses(path, 7)
    np.testing.assert_allclose(out[:, 0, 3], np.linspace(0, 3, 7), atol=1e-9)


def test_interpolate_poses_spaces_a_turn_in_place_evenly():
    path = np.stack([pose((0, 0, 0), (0, 0, 0)), pose((0, 1.2, 0), (0, 0, 0))])
    out = interpolate_poses(path, 4)
    angles = Rotation.from_matrix(out[:, :3, :3]).magnitude()
    np.testing.assert_allclose(angles, [0, 0.4, 0.8, 1.2], atol=1e-9)


def test_interpolate_poses_accepts_repeated_and_single_poses():
    one = pose((0, 0.2, 0), (1, 2, 3))
    np.testing.assert_allclose(interpolate_poses(np.stack([one, one, one]), 3), np.stack([one] * 3))
    np.testing.assert_allclose(interpolate_poses(one[None], 2), np.stack([one] * 2))


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_starts_at_the_given_pose_and_is_rigid(name):
    start = pose((0.1, 0.4, -0.2), (1, 2, 3))
    path = trajectory(name, start, 5)
    np.testing.assert_allclose(path[0], start, atol=1e-12)
    np.testing.assert_allclose(path @ invert_pose(path), np.tile(np.eye(4), (5, 1, 1)), atol=1e-9)
    assert np.abs(path[-1] - start).max() > 0.1


def test_orbit_looks_at_its_centre():
    path = trajectory("orbit", np.eye(4), 5, radius=2.0, angle=1.0)
    uv, z = zip(*(project(np.array([[0.0, 0.0, 2.0]]), CAMERA, p) for p in path), strict=True)
    np.testing.assert_allclose(np.concatenate(uv), np.tile([CAMERA.cx, CAMERA.cy], (5, 1)), atol=1e-4)
    np.testing.assert_allclose(np.concatenate(z), 2.0, rtol=1e-6)
    assert path[-1, 0, 3] > 0.5  # positive angles move to the right


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Camera(0, 48, 50, 50, 0, 0), "positive"),
        (lambda: Camera(64, 48, 0, 50, 0, 0), "positive"),
        (lambda: Camera(64, 48, float("nan"), 50, 0, 0), "finite"),
        (lambda: Camera.from_fov(64, 48, 4.0), "field of view"),
        (lambda: pose_from_quaternion((0, 0, 0), (0, 0, 0, 0)), "norm"),
        (lambda: pose_from_quaternion((0, float("nan"), 0), (0, 0, 0, 1)), "finite"),
        (lambda: interpolate_poses(np.zeros((0, 4, 4)), 3), "at least one"),
        (lambda: interpolate_poses(np.full((2, 4, 4), np.nan), 3), "finite"),
        (lambda: interpolate_poses(np.zeros((2, 4, 4)), 3), "rotation"),
        (lambda: trajectory("sideways", np.eye(4), 3), "sideways"),
    ],
)
def test_invalid_input_raises_value_error(call, words):
    with pytest.raises(ValueError, match=words):
        call()
