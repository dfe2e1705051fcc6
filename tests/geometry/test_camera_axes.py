"""Axes of camera frames: what their names and poses tell, and what is warned of."""

import numpy as np
import pytest

from worldstereo_ros.geometry.camera_axes import (
    BODY_FROM_OPTICAL,
    has_robot_frame,
    is_optical_name,
    resolve_camera_axes,
)
from worldstereo_ros.utils.errors import InputError


def pitched_down(degrees):
    """(4, 4) pose of body axes (x forward, y left, z up) that are tilted downwards."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, 0, sin, 0], [0, 1, 0, 0], [-sin, 0, cos, 0], [0, 0, 0, 1]])


CHAIN = ["camera_link", "base_link", "odom", "map"]


def test_optical_axes_in_body_axes():
    forward, right, down = BODY_FROM_OPTICAL[:3, 2], BODY_FROM_OPTICAL[:3, 0], BODY_FROM_OPTICAL[:3, 1]
    np.testing.assert_array_equal(forward, (1, 0, 0))
    np.testing.assert_array_equal(right, (0, -1, 0))
    np.testing.assert_array_equal(down, (0, 0, -1))
    assert np.linalg.det(BODY_FROM_OPTICAL[:3, :3]) == pytest.approx(1)


def test_names_of_frames():
    names = ("camera_color_optical_frame", "cam_optical", "robot/front_optical_frame", "optical")
    assert all(is_optical_name(name) for name in names)
    assert not any(is_optical_name(name) for name in ("camera_link", "cam0", "", "opticalflow_link"))
    assert has_robot_frame(CHAIN)
    assert has_robot_frame(["cam", "husky/base_link"])
    assert not has_robot_frame(["cam0", "world", "map", "database"])


@pytest.mark.parametrize(
    ("setting", "frame", "pose", "z_up", "body", "warned"),
    [
        ("auto", "camera_link", np.eye(4), True, True, "straight up.*--camera-axes optical"),
        ("auto", "cam_optical", np.eye(4), True, False, "straight up.*--camera-axes body"),
        ("auto", "camera_link", np.eye(4), False, False, ""),  # the first camera of visual SLAM
        ("auto", "camera_link", BODY_FROM_OPTICAL, True, False, ""),  # an optical frame by another name
        ("auto", "camera_link", np.diag([1.0, -1, -1, 1]), True, False, ""),  # looks straight down
        ("auto", "camera_link", pitched_down(25), True, True, "straight up.*--camera-axes optical"),
        ("auto", "camera_link", pitched_down(45), True, True, "turned by a quarter.*--camera-axes optical"),
        ("auto", "cam_optical", pitched_down(45), True, False, "turned by a quarter.*--camera-axes body"),
        ("auto", "camera_link", pitched_down(90), True, False, "looks down instead.*--camera-axes body"),
        ("auto", "cam_optical", pitched_down(90), True, False, ""),  # a camera mounted upright, by its name
        ("auto", "camera_link", pitched_down(-45) @ BODY_FROM_OPTICAL, True, False, ""),  # optical, looks up
        ("auto", "camera_link", pitched_down(45) @ BODY_FROM_OPTICAL, True, False, ""),  # optical, looks down
        ("optical", "camera_link", np.eye(4), True, False, ""),
        ("body", "cam_optical", BODY_FROM_OPTICAL, True, True, ""),
    ],
)
def test_axes_are_resolved(setting, frame, pose, z_up, body, warned):
    import re

    found, warning = resolve_camera_axes(setting, frame, pose, z_up=z_up, remedy="--camera-axes")
    assert found is body
    assert bool(warning) is bool(warned)
    assert re.search(warned, warning)


def test_one_odd_pose_does_not_decide():
    poses = np.stack([BODY_FROM_OPTICAL, BODY_FROM_OPTICAL, np.eye(4)])
    assert resolve_camera_axes("auto", "cam", poses, z_up=True, remedy="x") == (False, "")


def test_unknown_axes_are_rejected():
    with pytest.raises(InputError, match="auto, optical, body"):
        resolve_camera_axes("gazebo", "cam", np.eye(4), z_up=True, remedy="x")
