"""Paths to camera poses, against poses worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer

SECOND = 1_000_000_000
BASE_TO_CAMERA = [0.1, 0.0, 0.3, -0.5, 0.5, -0.5, 0.5]  # 0.1 m ahead, 0.3 m up, looking along x
QUARTER = (0.0, 0.0, np.sqrt(0.5), np.sqrt(0.5))  # to the left


def path(positions, orientations=None, frame: str = "map", stamp: int = 0, frames=None, stamps=None) -> Path:
    out = Path(header=Header(frame_id=frame, stamp=messages.time_message(stamp)))
    for index, position in enumerate(positions):
        stamped = PoseStamped()
        stamped.header.frame_id = frames[index] if frames else ""
        stamped.header.stamp = messages.time_message(stamps[index] if stamps else 0)
        place, turn = stamped.pose.position, stamped.pose.orientation
        place.x, place.y, place.z = (float(value) for value in position)
        turn.x, turn.y, turn.z, turn.w = orientations[index] if orientations else (0.0, 0.0, 0.0, 1.0)
        out.poses.append(stamped)
    return out


def resolver(buffer: TransformBuffer | None = None, warn=lambda text, key: None, **values) -> PoseResolver:
    return PoseResolver(buffer or TransformBuffer(), NodeParameters(base_to_camera=BASE_TO_CAMERA, **values), warn)


def looks(poses: np.ndarray) -> list:
    """Directions of the optical axes."""
    return poses[:, :3, 2].round(6).tolist()


# --- headings ---


def test_plan_without_headings_looks_along_the_path():
    """A plan of NavFn along +y, with identity orientations except the last, which is the goal's."""
    said: list[str] = []
    plan = path([(0, 0.1 * index, 0) for index in range(4)])
    planned = resolver(warn=lambda text, key: said.append(text))
    for _ in range(3):  # a planner sends all of its plans so; it is said once
        poses = planned.path_poses(plan, 0)
        assert looks(poses) == [[0, 1, 0]] * 4
    np.testing.assert_allclose(poses[:, :3, 3], [(0, 0.1 * index + 0.1, 0.3) for index in range(4)], atol=1e-9)
    assert len(said) == 1
    assert "`path_heading`" in said[0]
    turned = path([(0, 0.1 * index, 0) for index in range(4)], [(0.0, 0.0, 0.0, 1.0)] * 3 + [(0.0, 0.0, 1.0, 0.0)])
    assert looks(resolver().path_poses(turned, 0)) == [[0, 1, 0]] * 3 + [[-1, 0, 0]]


def test_heading_is_of_the_world_where_the_plan_is_in_a_turned_frame():
    buffer = TransformBuffer()
    x, y, z, w = QUARTER
    buffer.insert("map", "odom", (1, 0, 0), (w, x, y, z), 0, static=True)
    plan = path([(0.1 * index, 0, 0) for index in range(4)], frame="odom")
    poses = resolver(buffer).path_poses(plan, 3)
    assert looks(poses) == [[0, 1, 0]] * 3
    np.testing.assert_allclose(poses[-1, :3, 3], (1, 0.4, 0.3), atol=1e-9)


@pytest.mark.parametrize(
    ("plan", "parameters", "expected"),
    [
        (path([(0, 0, 0), (0, 1, 0)]), {"path_heading": "pose"}, [1, 0, 0]),
        (path([(0, 0, 0), (0, 1, 0)], [QUARTER] * 2), {}, [0, 1, 0]),
        (path([(0, 0, 0), (1, 0, 0)], [QUARTER] * 2), {"path_heading": "tangent"}, [1, 0, 0]),
        (path([(0, 0, 0), (0, 1, 0)], [(0.0, 0.0, 0.0, -1.0)] * 2), {}, [1, 0, 0]),  # a heading that is said
        (path([(0, 0, 0), (0, 0, 0)]), {}, [1, 0, 0]),  # does not move
        (path([(0, 0, 0), (0, 0, 5)]), {"path_heading": "tangent"}, [1, 0, 0]),  # moves up only
        (path([(0, 0, 0), (0, 1, 0)]), {"path_pose_frame": "camera"}, [0, 0, 1]),
        (path([(0, 0, 0), (0, 1, 0)]), {"path_pose_frame": "camera", "path_heading": "tangent"}, [0, 1, 0]),
    ],
)
def test_heading_by_parameter_and_orientations(plan, parameters, expected):
    assert looks(resolver(**parameters).path_poses(plan, 0)) == [expected] * 2


def test_path_in_the_frame_of_the_robot_has_headings():
    buffer = TransformBuffer()
    buffer.insert("map", "base_link", (0, 0, 0), (1, 0, 0, 0), 0, static=True)
    plan = path([(0, 0, 0), (0, 1, 0)], frame="base_link")
    assert looks(resolver(buffer).path_poses(plan, 0)) == [[1, 0, 0]] * 2


# --- frames ---


def test_frames_are_looked_up_once_for_each_stamp():
    """A path with a frame for each pose takes time in proportion to its length."""
    buffer = TransformBuffer()
    for index in range(500):
        buffer.insert("map", f"frame_{index}", (index, 0, 0), (1, 0, 0, 0), 0, static=True)
    lookups: list[tuple[str, int | None]] = []
    lookup = buffer.lookup

    def counted(target: str, source: str, stamp_ns: int | None):
        lookups.append((source, stamp_ns))
        return lookup(target, source, stamp_ns)

    buffer.lookup = counted
    plan = path([(0, 0, 0)] * 1000, frames=[f"frame_{index % 500}" for index in range(1000)], stamp=SECOND)
    poses = resolver(buffer, max_views=1000).path_poses(plan, 0)
    np.testing.assert_allclose(poses[:, 0, 3], np.arange(1000) % 500 + 0.1)
    assert sorted(lookups) == sorted([(f"frame_{index}", SECOND) for index in range(500)])


def test_poses_of_a_path_without_stamp_are_those_of_their_stamps():
    buffer = TransformBuffer()
    for seconds in range(4):
        buffer.insert("map", "odom", (10 * seconds, 0, 0), (1, 0, 0, 0), seconds * SECOND)
    options = {"frame": "odom", "stamps": [SECOND, 2 * SECOND], "orientations": [QUARTER] * 2}
    poses = resolver(buffer).path_poses(path([(0, 0, 0)] * 2, **options), 0)
    np.testing.assert_allclose(poses[:, 0, 3], (10, 20), atol=1e-9)
    poses = resolver(buffer).path_poses(path([(0, 0, 0)] * 2, stamp=3 * SECOND, **options), 0)
    np.testing.assert_allclose(poses[:, 0, 3], (30, 30), atol=1e-9)


def test_plan_in_another_frame_is_of_the_base():
    """As Nav2 sends it: poses of base_link in odom, which differs from map."""
    buffer = TransformBuffer()
    half = Rotation.from_rotvec((0, 0, 0.6))
    x, y, z, w = half.as_quat()
    buffer.insert("map", "odom", (0.5, 0.2, 0), (w, x, y, z), 0, static=True)
    plan = path([(1, 0, 0), (1, 0.1, 0)], [QUARTER] * 2, frame="odom")
    poses = resolver(buffer).path_poses(plan, 0)
    # The camera is 0.1 m ahead of the base, which looks along odom's y.
    camera = half.apply((1, 0.1, 0.3)) + np.array([0.5, 0.2, 0])
    np.testing.assert_allclose(poses[0, :3, 3], camera, atol=1e-9)
    np.testing.assert_allclose(poses[0, :3, 2], half.apply((0, 1, 0)), atol=1e-9)


def test_path_in_an_unknown_frame_is_refused():
    with pytest.raises(JobRejectedError, match="cannot be transformed") as caught:
        resolver().path_poses(path([(0, 0, 0)], frame="moon"), 0)
    assert caught.value.code == ErrorCode.TF_ERROR


@pytest.mark.parametrize("views", [0, 4])
def test_path_that_is_too_far_away_is_invalid(views):
    """It was an unexpected error of the node, or of the worker."""
    with pytest.raises(JobRejectedError, match="from the origin in pose 1") as caught:
        resolver().path_poses(path([(0, 0, 0), (1e12, 0, 0)]), views)
    assert caught.value.code == ErrorCode.INVALID_PATH


# --- for planners ---


def test_long_paths_have_the_robot_and_its_camera():
    plan = path([(0.01 * index, 0, 0) for index in range(1000)])
    with pytest.raises(JobRejectedError, match="max_views"):  # that many views are not imagined
        resolver().path_poses(plan, 0)
    poses, cameras = resolver().resolve_path(plan)
    np.testing.assert_allclose(poses[:, :3, 3], [(0.01 * index, 0, 0) for index in range(1000)], atol=1e-9)
    np.testing.assert_allclose(cameras[:, :3, 3] - poses[:, :3, 3], np.tile((0.1, 0, 0.3), (1000, 1)), atol=1e-9)


def test_robot_is_where_tf_says_else_where_the_newest_image_was_taken():
    newest = np.array([[0, 0, 1, 5.1], [-1, 0, 0, 2], [0, -1, 0, 0.3], [0, 0, 0, 1]], np.float64)
    base, camera = resolver().robot_now(newest)
    np.testing.assert_allclose(camera, newest)
    np.testing.assert_allclose(base[:3, 3], (5, 2, 0), atol=1e-9)
    np.testing.assert_allclose(base[:3, :3], np.eye(3), atol=1e-9)
    np.testing.assert_allclose(resolver(path_pose_frame="camera").robot_now(newest)[0], newest)
    buffer = TransformBuffer()
    buffer.insert("map", "base_link", (1, 2, 0), (1, 0, 0, 0), 0, static=True)
    there = resolver(buffer, camera_frame="camera_optical_frame")
    np.testing.assert_allclose(there.robot_now(newest)[0][:3, 3], (1, 2, 0), atol=1e-9)
    with pytest.raises(JobRejectedError, match="place of the robot") as caught:
        PoseResolver(TransformBuffer(), NodeParameters()).robot_now(newest)
    assert caught.value.code == ErrorCode.TF_ERROR
