"""What the node survives, continued: files, parameters at run time, output and its bounds. The numbers in brackets are
those of docs/faults.md.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from helpers.node_harness import NODE, WIDTH, running, still_good, wait_for
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.srv import LoadMap, SaveMap

from worldstereo_ros.ros.conversions import messages, qos

SUCCEEDED = GoalStatus.STATUS_SUCCEEDED
Result = ImaginePath.Result


# --- files ---


def test_save_and_load_bring_back_what_was_remembered(pair):
    _, robot = pair
    saved = robot.call("save_map", SaveMap.Request(name="office"))
    assert saved.success, saved.message
    points = robot.diagnostics()["points"]
    robot.call("reset", Trigger.Request())
    assert robot.imagine(robot.goal(poses=1))[1].error_code == Result.NO_OBSERVATION
    loaded = robot.call("load_map", LoadMap.Request(name="office"))
    assert loaded.success, loaded.message
    assert f"{points} points" in loaded.message
    still_good(robot)
    assert "Replaced" in robot.call("save_map", SaveMap.Request(name="office")).message  # (32) an existing file


@pytest.mark.parametrize("name", ["../escape", "/tmp/escape", "..", "", "a/../../b", "a\0b", "sub/dir"])
def test_names_outside_the_map_directory_are_refused(pair, name):  # (32)
    _, robot = pair
    before = sorted(robot.folder.parent.rglob("*escape*"))
    if "\0" in name:
        name = name.replace("\0", "\n")  # a message cannot carry a zero byte
    for service, kind in (("save_map", SaveMap), ("load_map", LoadMap)):
        answer = robot.call(service, kind.Request(name=name))
        assert not answer.success
        assert len(answer.message) > 20
    assert sorted(robot.folder.parent.rglob("*escape*")) == before


def test_damaged_and_foreign_files_change_nothing(pair):  # (33)
    _, robot = pair
    robot.call("save_map", SaveMap.Request(name="whole"))
    whole = next(robot.folder.glob("whole*"))
    content = whole.read_bytes()
    (robot.folder / f"cut{whole.suffix}").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    (robot.folder / f"flipped{whole.suffix}").write_bytes(flipped)
    (robot.folder / f"foreign{whole.suffix}").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")  # a pickle
    for name in ("cut", "flipped", "foreign", "absent"):
        answer = robot.call("load_map", LoadMap.Request(name=name))
        assert not answer.success, name
        assert len(answer.message) > 20
        still_good(robot)


def test_folder_that_cannot_be_written_is_told(pair):  # (32)
    _, robot = pair
    # A file where the folder should be: no permission bits, since these tests may run as root.
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
    still_good(robot)


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
def test_bad_parameters_are_refused_and_change_nothing(pair, values, word):  # (34)
    _, robot = pair
    ok, reason = robot.set(**values)
    assert not ok
    assert reason
    assert word in reason
    still_good(robot)


def test_live_parameter_takes_effect(pair):
    _, robot = pair
    views = robot.listen(f"{NODE}/camera_info", type(robot.view()[1]), qos.VIEW)
    time.sleep(0.3)
    assert robot.set(view_width=32) == (True, "")
    still_good(robot)
    assert wait_for(lambda: views and views[-1].width == 32)
    assert views[-1].height == 24
    assert views[-1].k[0] == pytest.approx(80 * 32 / WIDTH)
    robot.set(view_width=64)


def test_path_poses_of_the_camera(pair):
    _, robot = pair
    views = robot.listen(f"{NODE}/view", messages.ImaginedViewMessage, qos.VIEW)
    time.sleep(0.3)
    assert robot.set(path_pose_frame="camera") == (True, "")
    try:
        still_good(robot)
        assert wait_for(lambda: views)
        np.testing.assert_allclose(messages.pose_matrix(views[-1].pose.pose), np.eye(4), atol=1e-9)
    finally:
        robot.set(path_pose_frame="base")


# --- output ---


def test_clouds_are_bounded(pair):  # (29)
    _, robot = pair
    heard = robot.listen(f"{NODE}/map", PointCloud2, qos.MAP)
    assert wait_for(lambda: heard)
    assert heard[-1].width > 1000
    assert robot.set(cloud_points=1000)[0]
    robot.publish_view(seed=1)
    assert wait_for(lambda: heard[-1].width == 1000)
    robot.call("reset", Trigger.Request())
    assert wait_for(lambda: heard[-1].width == 0)  # (29) an empty one
    assert len(heard[-1].data) == 0
    robot.set(cloud_points=600_000)
    robot.publish_view()


def test_listener_that_never_reads_does_not_hold_the_node_up(pair):  # (30)
    _, robot = pair
    import rclpy

    sleeper = rclpy.create_node("sleeper", context=robot.context)  # never spun
    sleeper.create_subscription(PointCloud2, f"{NODE}/map", lambda message: None, qos.MAP)
    sleeper.create_subscription(messages.ImaginedViewMessage, f"{NODE}/view", lambda message: None, qos.VIEW)
    time.sleep(0.3)
    for _ in range(5):
        status, result = robot.imagine(robot.goal(poses=10))
        assert (status, result.views_done) == (SUCCEEDED, 10)
    sleeper.destroy_node()


def test_memory_is_bounded(tmp_path):  # (31)
    with running({"max_points": 3000, "max_bank_views": 4, "map_directory": str(tmp_path)}) as (_, robot):
        for index in range(8):
            robot.publish_view(x=0.3 * index, seed=index)
        facts = robot.diagnostics()
        assert int(facts["points"]) <= 3000
        assert int(facts["views in the bank"]) <= 4
        assert robot.call("reset", Trigger.Request()).success
        assert wait_for(lambda: robot.diagnostics()["points"] == "0")
