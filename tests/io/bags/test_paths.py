"""Paths of bags as poses of the camera: frames, the robot's base, headings, invalid poses."""

import numpy as np
import pytest
from helpers.recordings import (
    BASE_FROM_CAMERA,
    SECOND,
    START,
    TYPES,
    drive,
    header,
    image_message,
    info_message,
    odometry,
    pose_stamped,
    record,
    transforms,
)

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL
from worldstereo_ros.geometry.poses import pose_from_quaternion
from worldstereo_ros.io.bags.views import BagError, BagWriter, read_path, read_views
from worldstereo_ros.utils.errors import InputError

MAP_FROM_ODOM = pose_from_quaternion((0.5, 0.2, 0), (0, 0, np.sin(0.3), np.cos(0.3)))


def base_pose(x, y, yaw=0.0):
    return pose_from_quaternion((x, y, 0.8), (0, 0, np.sin(yaw / 2), np.cos(yaw / 2)))


CORNER = [base_pose(0.1 * i, 0) for i in range(10)] + [base_pose(1, 0.1 * i, np.pi / 2) for i in range(10)]


def record_plan(path, poses, frame="map", *, messages=None, static_to="base_link", base="base_link", pose_topic=""):
    """A bag with one image, TF map -> odom -> base -> camera, and a plan."""
    with BagWriter(path) as writer:
        for topic, kind in {
            "/cam/image": "sensor_msgs/msg/Image",
            "/cam/camera_info": "sensor_msgs/msg/CameraInfo",
            "/tf": "tf2_msgs/msg/TFMessage",
            "/tf_static": "tf2_msgs/msg/TFMessage",
            "/plan": "nav_msgs/msg/Path",
            "/odom": "nav_msgs/msg/Odometry",
        }.items():
            writer.add_topic(topic, kind)
        writer.write("/tf_static", transforms((0, static_to, "camera_optical", BASE_FROM_CAMERA)), START)
        dynamic = transforms((START, "map", "odom", MAP_FROM_ODOM), (START, "odom", base, np.eye(4)))
        writer.write("/tf", dynamic, START)
        writer.write("/cam/camera_info", info_message(START), START)
        writer.write("/cam/image", image_message(START, drive()[1][0]), START)
        writer.write("/odom", odometry(START, np.eye(4), base), START)
        plan = messages or [TYPES["nav_msgs/msg/Path"](header(START, frame), [pose_stamped(0, p, "") for p in poses])]
        for message in plan:
            writer.write("/plan", message, START)


def test_the_last_path_with_poses_is_read_as_poses_of_the_camera(tmp_path):
    record(tmp_path / "drive")
    base = drive()[3]
    np.testing.assert_allclose(read_path(tmp_path / "drive", "/plan"), base @ BASE_FROM_CAMERA, atol=1e-9)
    as_recorded = read_path(tmp_path / "drive", "/plan", pose_frame="camera")
    np.testing.assert_allclose(as_recorded, base, atol=1e-9)
    named = read_path(tmp_path / "drive", "/plan", base_frame="odom", camera_frame="camera_optical")
    np.testing.assert_allclose(named, base @ base[0] @ BASE_FROM_CAMERA, atol=1e-9)
    with pytest.raises(BagError, match="no frame 'moon'"):
        read_path(tmp_path / "drive", "/plan", world_frame="moon")
    with pytest.raises(BagError, match=r"'/cam/image' has type sensor_msgs/msg/Image"):
        read_path(tmp_path / "drive", "/cam/image")
    with pytest.raises(InputError, match="base, camera"):
        read_path(tmp_path / "drive", "/plan", pose_frame="lidar")


def test_a_path_is_given_in_the_world_of_the_views(tmp_path):
    record_plan(tmp_path / "map", CORNER)
    expected = np.stack(CORNER) @ BASE_FROM_CAMERA
    np.testing.assert_allclose(read_path(tmp_path / "map", "/plan"), expected, atol=1e-9)
    record_plan(tmp_path / "odom", CORNER, "odom")
    np.testing.assert_allclose(read_path(tmp_path / "odom", "/plan"), MAP_FROM_ODOM @ expected, atol=1e-9)
    np.testing.assert_allclose(read_path(tmp_path / "odom", "/plan", world_frame="odom"), expected, atol=1e-9)
    # Views by odometry are in the frame of the odometry, and so is the path.
    (view,) = read_views(tmp_path / "map", "/cam/image", pose_topic="/odom")
    np.testing.assert_allclose(view.world_from_camera, BASE_FROM_CAMERA, atol=1e-9)
    in_odom = read_path(tmp_path / "map", "/plan", pose_topic="/odom")
    np.testing.assert_allclose(in_odom, np.linalg.inv(MAP_FROM_ODOM) @ expected, atol=1e-9)
    (view,) = read_views(tmp_path / "map", "/cam/image", pose_topic="/odom", world_frame="map")
    np.testing.assert_allclose(view.world_from_camera, MAP_FROM_ODOM @ BASE_FROM_CAMERA, atol=1e-9)


def test_each_pose_of_a_path_may_have_a_frame_of_its_own(tmp_path):
    poses = [pose_stamped(0, CORNER[0], "map"), pose_stamped(0, CORNER[1], "odom"), pose_stamped(0, CORNER[2], "")]
    message = TYPES["nav_msgs/msg/Path"](header(START, "map"), poses)
    record_plan(tmp_path / "a", [], messages=[message])
    found = read_path(tmp_path / "a", "/plan", pose_frame="camera", heading="pose")
    np.testing.assert_allclose(found, [CORNER[0], MAP_FROM_ODOM @ CORNER[1], CORNER[2]], atol=1e-9)


def test_the_base_is_found_by_name_or_as_what_the_camera_is_fixed_to(tmp_path):
    record_plan(tmp_path / "named", CORNER, base="robot/base_footprint", static_to="robot/base_footprint")
    expected = np.stack(CORNER) @ BASE_FROM_CAMERA
    np.testing.assert_allclose(read_path(tmp_path / "named", "/plan"), expected, atol=1e-9)
    record_plan(tmp_path / "other", CORNER, base="cart", static_to="cart")
    np.testing.assert_allclose(read_path(tmp_path / "other", "/plan"), expected, atol=1e-9)
    record_plan(tmp_path / "apart", CORNER, static_to="other")
    with pytest.raises(BagError, match="'base_link' and 'camera_optical' are not connected"):
        read_path(tmp_path / "apart", "/plan", base_frame="base_link", world_frame="map")
    record(tmp_path / "no_tf", tf=False)
    with pytest.raises(BagError, match=r"no frame 'camera_optical'.*--path-pose-frame camera"):
        read_path(tmp_path / "no_tf", "/plan")


def test_a_camera_with_body_axes_is_turned(tmp_path):
    with BagWriter(tmp_path / "a") as writer:
        for topic, kind in {"/tf": "tf2_msgs/msg/TFMessage", "/plan": "nav_msgs/msg/Path"}.items():
            writer.add_topic(topic, kind)
        lifted = pose_from_quaternion((0.2, 0, 0.5), (0, 0, 0, 1))
        writer.write("/tf", transforms((START, "map", "base_link", np.eye(4)), (START, "base_link", "eye", lifted)), 0)
        plan = TYPES["nav_msgs/msg/Path"](header(START, "map"), [pose_stamped(0, p) for p in CORNER])
        writer.write("/plan", plan, START)
    found = read_path(tmp_path / "a", "/plan", camera_frame="eye")
    np.testing.assert_allclose(found, np.stack(CORNER) @ lifted @ BODY_FROM_OPTICAL, atol=1e-9)
    optical = read_path(tmp_path / "a", "/plan", camera_frame="eye", camera_axes="optical")
    np.testing.assert_allclose(optical, np.stack(CORNER) @ lifted, atol=1e-9)


@pytest.mark.parametrize("w", [1.0, 0.0])
def test_a_plan_without_headings_looks_along_the_path(tmp_path, caplog, w):
    level = [base_pose(pose[0, 3], pose[1, 3]) for pose in CORNER]
    stamped = [pose_stamped(0, pose, "") for pose in level]
    for one in stamped:
        one.pose.orientation.w = w
    record_plan(tmp_path / "a", [], messages=[TYPES["nav_msgs/msg/Path"](header(START, "map"), stamped)])
    looks = read_path(tmp_path / "a", "/plan")[:, :3, 2]
    np.testing.assert_allclose(looks[0], (1, 0, 0), atol=1e-9)
    np.testing.assert_allclose(looks[-1], (0, 1, 0), atol=1e-9)
    assert "no headings" in caplog.text
    as_recorded = read_path(tmp_path / "a", "/plan", heading="pose")[:, :3, 2]
    np.testing.assert_allclose(as_recorded, np.tile((1.0, 0, 0), (20, 1)), atol=1e-9)
    record_plan(tmp_path / "b", CORNER[::-1])  # headings against the way
    along = read_path(tmp_path / "b", "/plan", heading="tangent")[:, :3, 2]
    np.testing.assert_allclose(along[0], (0, -1, 0), atol=1e-9)


def test_invalid_poses_of_a_path_are_left_out_and_counted(tmp_path, caplog):
    stamped = [pose_stamped(0, pose, "") for pose in CORNER[:4]]
    stamped[1].pose.position.x = float("nan")
    stamped[2].pose.orientation.w = 7.0
    record_plan(tmp_path / "a", [], messages=[TYPES["nav_msgs/msg/Path"](header(START, "map"), stamped)])
    found = read_path(tmp_path / "a", "/plan", heading="pose")
    np.testing.assert_allclose(found, np.stack([CORNER[0], CORNER[3]]) @ BASE_FROM_CAMERA, atol=1e-9)
    assert "2 of the poses on '/plan' were left out" in caplog.text
    for one in stamped:
        one.pose.position.x = float("inf")
    record_plan(tmp_path / "b", [], messages=[TYPES["nav_msgs/msg/Path"](header(START, "map"), stamped)])
    with pytest.raises(BagError, match=r"'/plan' has no valid pose.*not finite"):
        read_path(tmp_path / "b", "/plan")


def test_a_path_that_is_older_than_the_transforms_is_rejected(tmp_path):
    message = TYPES["nav_msgs/msg/Path"](header(START - 60 * SECOND, "odom"), [pose_stamped(0, CORNER[0], "")])
    record_plan(tmp_path / "a", [], messages=[message])
    with pytest.raises(BagError, match=r"'/plan' cannot be transformed.*60\.000 s away"):
        read_path(tmp_path / "a", "/plan")
