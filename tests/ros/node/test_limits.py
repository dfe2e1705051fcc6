"""Faults that the node survives, continued: files, parameters at run time, and limits of its output. The numbers in
brackets are those of docs/reference/faults.md.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from helpers.node_harness import NODE, WIDTH, assert_goal_succeeds, running, wait_for
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.srv import LoadMap, SaveMap

from worldstereo_ros.ros.conversions import messages, qos

SUCCEEDED = GoalStatus.STATUS_SUCCEEDED
Result = ImaginePath.Result


# --- files ---


def test_save_and_load_restore_memory(pair):
    _, robot = pair
    saved = robot.call("save_map", SaveMap.Request(name="office"))
    assert saved.success, saved.message
    assert wait_for(lambda: "points" in robot.diagnostics())  # they are published once a second
    points = robot.diagnostics()["points"]
    robot.call("reset", Trigger.Request())
    assert robot.imagine(robot.goal(poses=1))[1].error_code == Result.NO_OBSERVATION
    loaded = robot.call("load_map", LoadMap.Request(name="office"))
    assert loaded.success, loaded.message
    assert f"{points} points" in loaded.message
    assert_goal_succeeds(robot)
    assert "Replaced" in robot.call("save_map", SaveMap.Request(name="office")).message  # (32) an existing file


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "..", "", "a/../../b", "a\0b", "sub/dir"])
def test_names_outside_map_directory_are_rejected(pair, name):  # (32)
    _, robot = pair
    before = sorted(robot.folder.parent.rglob("*escape*"))
    if "\0" in name:
        name = name.replace("\0", "\n")  # a message cannot contain a zero byte
    for service, kind in (("save_map", SaveMap), ("load_map", LoadMap)):
        answer = robot.call(service, kind.Request(name=name))
        assert not answer.success
        assert len(answer.message) > 20
    assert sorted(robot.folder.parent.rglob("*escape*")) == before


def test_damaged_and_foreign_files_change_nothing(pair):  # (33)
    _, robot = pair
    robot.call("save_map", SaveMap.Request(name="valid"))
    valid = next(robot.folder.glob("valid*"))
    content = valid.read_bytes()
    (robot.folder / f"truncated{valid.suffix}").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    (robot.folder / f"flipped{valid.suffix}").write_bytes(flipped)
    (robot.folder / f"foreign{valid.suffix}").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")  # a pickle
    for name in ("truncated", "flipped", "foreign", "absent"):
        answer = robot.call("load_map", LoadMap.Request(name=name))
        assert not answer.success, name
        assert len(answer.message) > 20
        assert_goal_succeeds(robot)


def test_unwritable_map_directory_is_reported(pair):  # (32)
    _, robot = pair
    # A file in place of the folder, since permission bits do not stop root, as which these tests may run.
    robot.call("save_map", SaveMap.Request(name="blocker"))
    blocker = next(robot.folder.glob("blocker*"))
    moved = robot.folder.with_name("moved")
    robot.folder.rename(moved)
    robot.folder.write_text("no folder")
    try:
        answer = robot.call("save_map", SaveMap.Request(name="office"))
        assert not answer.success
        assert len(answer.message) > 10
    finally:
        robot.folder.unlink()
        moved.rename(robot.folder)
    assert blocker.exists()
    assert_goal_succeeds(robot)


# --- parameters at run time ---


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"view_width": -1}, ""),
        ({"tf_timeout": 1e9}, ""),
        ({"tf_timeout": math.nan}, ""),
        ({"tf_timeout": "soon"}, ""),
        ({"path_pose_frame": "wheel"}, "base, camera"),
        ({"base_to_camera": [1.0, 2.0]}, "seven numbers"),
        ({"autostart": False}, ""),
        ({"voxel_size": 0.1}, "configure"),
        ({"view_width": 32, "path_pose_frame": "wheel"}, "base, camera"),
    ],
)
def test_invalid_parameters_are_rejected_and_change_nothing(pair, values, word):  # (34)
    _, robot = pair
    ok, reason = robot.set(**values)
    assert not ok
    assert reason
    assert word in reason
    assert_goal_succeeds(robot)


def test_live_parameter_takes_effect(pair):
    _, robot = pair
    views = robot.subscribe(f"{NODE}/camera_info", type(robot.view()[1]), qos.VIEW)
    time.sleep(0.3)
    assert robot.set(view_width=32) == (True, "")
    assert_goal_succeeds(robot)
    assert wait_for(lambda: views and views[-1].width == 32)
    assert views[-1].height == 24
    assert views[-1].k[0] == pytest.approx(80 * 32 / WIDTH)
    robot.set(view_width=64)


def test_path_pose_frame_camera(pair):
    _, robot = pair
    views = robot.subscribe(f"{NODE}/view", messages.ImaginedViewMessage, qos.VIEW)
    time.sleep(0.3)
    assert robot.set(path_pose_frame="camera") == (True, "")
    try:
        assert_goal_succeeds(robot)
        assert wait_for(lambda: views)
        np.testing.assert_allclose(messages.pose_matrix(views[-1].pose.pose), np.eye(4), atol=1e-9)
    finally:
        robot.set(path_pose_frame="base")


# --- output ---


def test_clouds_are_bounded(pair):  # (29)
    _, robot = pair
    received = robot.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)
    assert wait_for(lambda: received)
    assert received[-1].width > 1000
    assert robot.set(cloud_points=1000)[0]
    robot.publish_view(seed=1)
    assert wait_for(lambda: received[-1].width == 1000)
    robot.call("reset", Trigger.Request())
    assert wait_for(lambda: received[-1].width == 0)  # (29) an empty cloud
    assert len(received[-1].data) == 0
    robot.set(cloud_points=600_000)
    robot.publish_view()


def test_slow_subscriber_does_not_block_node(pair):  # (30)
    _, robot = pair
    import rclpy

    idle_node = rclpy.create_node("idle", context=robot.context)  # never spun
    idle_node.create_subscription(PointCloud2, f"{NODE}/map", lambda message: None, qos.MAP)
    idle_node.create_subscription(messages.ImaginedViewMessage, f"{NODE}/view", lambda message: None, qos.VIEW)
    time.sleep(0.3)
    for _ in range(5):
        status, result = robot.imagine(robot.goal(poses=10))
        assert (status, result.views_done) == (SUCCEEDED, 10)
    idle_node.destroy_node()


def test_memory_is_bounded(tmp_path):  # (31)
    with running({"max_points": 3000, "max_bank_views": 4, "map_directory": str(tmp_path)}) as (_, robot):
        for index in range(8):
            robot.publish_view(x=0.3 * index, seed=index)
        values = robot.diagnostics()
        assert int(values["points"]) <= 3000
        assert int(values["views in the bank"]) <= 4
        assert robot.call("reset", Trigger.Request()).success
        assert wait_for(lambda: robot.diagnostics()["points"] == "0")
