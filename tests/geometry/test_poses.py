"""Up and heading of cameras, also of those that look straight down."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.poses import check_poses, estimate_up_direction, heading, pose_from_quaternion
from worldstereo_ros.geometry.trajectories import TRAJECTORIES, trajectory
from worldstereo_ros.utils.errors import InputError

DOWN = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1]], dtype=float)  # x right = -y, top of the image = +x of the world


def _pose(rotation, position=(0, 0, 2)):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, position
    return pose


def test_heading_of_a_level_camera_is_its_levelled_axis():
    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float)  # looks along +x, z is up
    tilted = level @ Rotation.from_rotvec([-0.4, 0, 0]).as_matrix()
    for rotation in (level, tilted):
        np.testing.assert_allclose(heading(_pose(rotation), [0, 0, 1]), [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("tilt", [0.0, 1e-5, -1e-5, 0.01, -0.01])
def test_heading_of_a_camera_that_looks_straight_down_is_the_top_of_its_image(tilt):
    rotation = DOWN @ Rotation.from_rotvec([tilt, 0, 0]).as_matrix()
    if tilt >= 0:  # else the optical axis has passed the vertical and points behind
        np.testing.assert_allclose(heading(_pose(rotation), [0, 0, 1]), [1, 0, 0], atol=1e-4)
    up = np.array([0, 0, 1.0])
    found = heading(_pose(rotation), up)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert found @ up == pytest.approx(0, abs=1e-9)


def test_heading_of_a_camera_that_looks_straight_up_is_the_bottom_of_its_image():
    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float)
    up = level @ Rotation.from_rotvec([np.pi / 2, 0, 0]).as_matrix()
    np.testing.assert_allclose(up[:, 2], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(heading(_pose(up), [0, 0, 1]), [1, 0, 0], atol=1e-9)


def test_up_of_cameras_that_look_straight_down_and_turn_is_against_their_axes():
    turns = Rotation.from_rotvec(np.linspace(0, 2 * np.pi, 9)[:-1, None] * [0, 0, 1]).as_matrix()
    poses = np.stack([_pose(turn @ DOWN) for turn in turns])
    np.testing.assert_array_equal(estimate_up_direction(poses), [0, 0, 1])


def test_up_of_cameras_without_any_common_direction_is_z():
    poses = np.stack([_pose(rotation) for rotation in (DOWN, -DOWN @ np.diag([-1, 1, 1.0]))])
    np.testing.assert_array_equal(estimate_up_direction(poses), [0, 0, 1])
    np.testing.assert_array_equal(estimate_up_direction(np.zeros((0, 4, 4))), [0, 0, 1])


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories_start_from_a_camera_that_looks_straight_down(name):
    poses = trajectory(name, _pose(DOWN), 5)
    assert np.isfinite(poses).all()
    np.testing.assert_allclose(poses[0], _pose(DOWN), atol=1e-12)


def test_positions_that_no_path_leads_to_are_refused():
    with pytest.raises(InputError, match="more than 1e\\+09 m from the origin in pose 1"):
        check_poses(np.stack([np.eye(4), _pose(np.eye(3), (0, -1e300, 0))]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [0.0, 1e-200, 2.0, 1e200, np.inf, np.nan])
def test_numbers_of_no_rotation_are_an_error_and_nothing_else(number):
    with pytest.raises(InputError, match=r"norm 1 was expected|not finite"):
        pose_from_quaternion((0, 0, 0), (number, 0, 0, number))
