"""Faults that the node survives. Many faults go to one node: each is rejected with a reason, and a valid goal succeeds
afterwards. The numbers in brackets are those of docs/reference/faults.md.
"""

from __future__ import annotations

import copy
import io
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from helpers.node_harness import CAMERA_FRAME, HEIGHT, WIDTH, assert_goal_succeeds, running, straight_path, wait_for
from PIL import Image as PngImage
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from worldstereo_ros.action import ImaginePath

from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import bytes_field

SUCCEEDED, ABORTED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED
Result = ImaginePath.Result


# --- invalid messages ---


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3


def _image(change):
    def build(robot):
        image, info, depth = robot.view()
        change(image)
        return info, depth, image

    return build


def _info(change):
    def build(robot):
        image, info, depth = robot.view()
        change(info)
        # Its own frame, so that no valid camera_info replaces it.
        image.header.frame_id = info.header.frame_id = depth.header.frame_id = CAMERA_FRAME
        return info, depth, image

    return build


def _depth(change):
    def build(robot):
        image, info, depth = robot.view(seed=5)
        change(depth)
        return info, depth, image

    return build


def _fields(**values):
    def change(message):
        for name, value in values.items():
            setattr(message, name, value)

    return change


def _set_k(index, value):
    def change(info):
        k = list(info.k)
        k[index] = value
        info.k = k

    return change


def _all_depth(value):
    def change(depth):
        depth.data = bytes_field(np.full((HEIGHT, WIDTH), value, np.float32))

    return change


def _short(message):
    message.data = message.data[:-200]


INVALID_MESSAGES = {
    # row of the fault list: messages, the topic that rejects them, a part of the reason
    "2 K is zero": (_info(_set_k(0, 0.0)), "camera_info", "not calibrated"),
    "2 K is NaN": (_info(_set_k(4, math.nan)), "camera_info", "finite"),
    "2 distortion unknown": (_info(_fields(distortion_model="own", d=[0.1, 0.2])), "camera_info", "'own'"),
    "2 other size": (_info(_fields(width=640, height=480)), "image", "640x480"),
    "3 unknown encoding": (_image(_fields(encoding="8SC3")), "image", "8SC3"),
    "3 depth as image": (_image(_fields(encoding="16UC1")), "image", "16UC1"),
    "3 colour as depth": (_depth(_fields(encoding="rgb8")), "depth", "rgb8"),
    "3 step too short": (_image(_fields(step=10)), "image", "step"),
    "3 short data": (_image(_short), "image", "bytes"),
    "3 no pixels": (_image(_fields(width=0)), "image", "0x72"),
    "3 absurd size": (_image(_fields(width=4_000_000_000, height=4_000_000_000)), "image", "are accepted"),
    "4 no frame": (_image(lambda image: setattr(image.header, "frame_id", "")), "image", "no frame_id"),
    "15 frame unknown": (_image(lambda image: setattr(image.header, "frame_id", "renamed")), "image", "renamed"),
    "8 depth all NaN": (_depth(_all_depth(np.nan)), "image", "depth"),
    "8 depth all zero": (_depth(_all_depth(0)), "image", "depth"),
    "8 depth all infinite": (_depth(_all_depth(np.inf)), "image", "depth"),
    "8 depth of another shape": (
        _depth(_fields(width=WIDTH // 2, step=WIDTH * 2, data=bytes_field(np.ones(HEIGHT * WIDTH // 2, np.float32)))),
        "image",
        "registered",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID_MESSAGES)
def test_invalid_message_is_rejected_with_reason(pair, name):
    _node, robot = pair
    build, topic, word = INVALID_MESSAGES[name]
    before = robot.diagnostics()
    key = f"{topic} rejected"

    def send() -> None:
        info, depth, image = build(robot)
        robot.send_tf(0.0, image.header.stamp)
        for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
            publisher.publish(message)

    def is_rejected() -> bool:
        now = robot.diagnostics()
        # An image that waits for a rejected message is rejected a little later; the word tells them apart.
        return int(now.get(key, 0)) > int(before.get(key, 0)) and word in now[f"{topic} last rejection"]

    for _ in range(4):  # messages may be lost on a busy machine
        send()
        if wait_for(is_rejected, 3):
            break
    now = robot.diagnostics()
    assert is_rejected(), now
    assert now["level input"] == "1"
    assert int(now["points"]) >= int(before["points"])
    assert_goal_succeeds(robot)


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PngImage.new("L", (width, height), 90).save(file, "PNG")
    return file.getvalue()


COMPRESSED_IMAGES = {
    "larger than max_image_pixels": ("png", lambda: _png(4000, 3000), "4000x3000; at most 8300000 pixels"),
    "PostScript": ("jpeg", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n{} loop\n%%EOF\n", "PostScript"),
    "depth": ("16UC1; png compressed ", lambda: _png(WIDTH, HEIGHT), "holds depth"),
    "empty": ("jpeg", lambda: b"", "no data"),
}


@pytest.mark.parametrize("name", COMPRESSED_IMAGES)
def test_invalid_compressed_image_is_rejected_before_it_is_decoded(pair, name):
    _node, robot = pair
    format, content, word = COMPRESSED_IMAGES[name]
    publisher = robot.node.create_publisher(CompressedImage, "/image/compressed", qos.VIEW)
    header = Header(stamp=robot.now(), frame_id=CAMERA_FRAME)
    message = CompressedImage(header=header, format=format, data=bytes_field(np.frombuffer(content(), np.uint8)))

    def is_rejected() -> bool:
        publisher.publish(message)
        return word in robot.diagnostics().get("image/compressed last rejection", "")

    assert wait_for(is_rejected), robot.diagnostics()
    robot.node.destroy_publisher(publisher)
    assert_goal_succeeds(robot)


def test_step_of_an_image_takes_no_memory(pair):
    """One pixel of three bytes that declares rows of three gigabytes: it is as small as it is."""
    node, robot = pair
    before = peak_megabytes(node.process.pid)
    for _ in range(3):
        image, info, depth = robot.view()
        info.width = info.height = image.width = image.height = depth.width = depth.height = 1
        image.step, image.data = 3_000_000_000, bytes_field(np.zeros(3, np.uint8))
        depth.step, depth.data = 4_000_000_000, bytes_field(np.ones(1, np.float32))
        robot.send_tf(0.0, image.header.stamp)
        for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
            publisher.publish(message)
        time.sleep(0.3)
    assert_goal_succeeds(robot)
    assert peak_megabytes(node.process.pid) < before + 500
    robot.publish_view()  # its camera_info is the last one again


def test_rejections_are_logged(pair):
    node, robot = pair
    image, _, _ = robot.view()
    image.encoding = "bayer_odd"
    robot.image.publish(image)
    assert "bayer_odd" in node.wait_log("bayer_odd")


def test_image_without_camera_info_is_rejected():  # (1)
    with running() as (node, robot):
        image, _, depth = robot.view()
        robot.send_tf(0.0, image.header.stamp)
        robot.depth.publish(depth)
        robot.image.publish(image)
        node.wait_log("No camera_info received")
        assert robot.imagine()[1].error_code == Result.NO_OBSERVATION
        robot.publish_view()
        assert_goal_succeeds(robot)


def test_last_camera_info_replaces_missing_one(pair):  # (1)
    _, robot = pair
    before = robot.observations_taken()
    image, _, depth = robot.view(seed=3)
    robot.send_tf(0.0, image.header.stamp)
    robot.depth.publish(depth)
    robot.image.publish(image)
    assert wait_for(lambda: robot.observations_taken() > before)


def test_uniform_image_is_accepted(pair):  # (9)
    _, robot = pair
    for value in (0, 255):
        before = robot.observations_taken()
        image, info, depth = robot.view()
        image.data = bytes_field(np.full((HEIGHT, WIDTH, 3), value, np.uint8))
        robot.send_tf(0.0, image.header.stamp)
        for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
            publisher.publish(message)
        assert wait_for(lambda before=before: robot.observations_taken() > before)
        assert_goal_succeeds(robot)
    robot.call("reset", Trigger.Request())
    robot.publish_view()


def test_two_publishers_on_one_topic(pair):  # (10)
    _node, robot = pair
    other = robot.node.create_publisher(type(robot.view()[0]), "/image", qos.VIEW)
    assert wait_for(lambda: other.get_subscription_count() > 0)
    before = robot.observations_taken()
    for _ in range(3):
        image, info, depth = robot.view()
        other_image = copy.copy(image)
        other_image.header = Header(stamp=Time(sec=1), frame_id=CAMERA_FRAME)  # another camera with another clock
        robot.send_tf(0.0, image.header.stamp)
        other.publish(other_image)
        for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
            publisher.publish(message)
        time.sleep(0.1)
    robot.publish_view()
    assert robot.observations_taken() > before
    assert_goal_succeeds(robot)
    robot.node.destroy_publisher(other)


# --- paths ---


def _path(change):
    def build(robot):
        goal = robot.goal(poses=3)
        change(goal)
        return goal

    return build


def _turn(goal, **values):
    for name, value in values.items():
        setattr(goal.path.poses[1].pose.orientation, name, value)


INVALID_PATHS = {
    "5 quaternion NaN": (_path(lambda goal: _turn(goal, w=math.nan)), Result.INVALID_PATH, "not finite"),
    "5 quaternion of norm 3": (_path(lambda goal: _turn(goal, w=3.0)), Result.INVALID_PATH, "norm 3"),
    "5 position infinite": (
        _path(lambda goal: setattr(goal.path.poses[2].pose.position, "y", math.inf)), Result.INVALID_PATH, "Pose 2",
    ),
    "6 empty": (_path(lambda goal: goal.path.poses.clear()), Result.INVALID_PATH, "empty"),
    "6 frame unknown": (
        lambda robot: ImaginePath.Goal(path=straight_path(1, 3, robot.now(), "moon")), Result.TF_ERROR, "moon",
    ),
    "6 no frame": (
        lambda robot: ImaginePath.Goal(path=straight_path(1, 3, robot.now(), "")), Result.INVALID_PATH, "frame",
    ),
    "35 10 000 views": (lambda robot: robot.goal(poses=10_000), Result.TOO_LARGE, "max_views"),
    "35 4 billion views": (lambda robot: robot.goal(views=2**32 - 1), Result.TOO_LARGE, "max_views"),
    "35 too many poses": (lambda robot: robot.goal(poses=20_001, views=2), Result.TOO_LARGE, "max_path_poses"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID_PATHS)
def test_invalid_path_ends_with_error_code_and_message(pair, name):
    _, robot = pair
    build, code, word = INVALID_PATHS[name]
    status, result = robot.imagine(build(robot))
    assert (status, result.error_code, result.views_done) == (ABORTED, code, 0)
    assert word in result.error_msg
    assert_goal_succeeds(robot)


def test_job_size_is_checked_before_allocation(pair):  # (35)
    _, robot = pair
    assert robot.set(max_job_pixels=50_000)[0]
    status, result = robot.imagine(robot.goal(poses=30))
    assert (status, result.error_code) == (ABORTED, Result.TOO_LARGE)
    assert "max_job_pixels" in result.error_msg
    robot.set(max_job_pixels=2_000_000)
    assert_goal_succeeds(robot)


@pytest.mark.parametrize(
    ("poses", "length", "views", "expected"),
    [(1, 0.0, 0, 1), (1, 0.0, 3, 3), (10_000, 0.5, 4, 4), (5, 0.0, 0, 5), (4, 0.0, 2, 2)],
    ids=["one pose", "one pose, three views", "10 000 poses", "duplicates", "duplicates, two views"],
)
def test_unusual_paths_succeed(pair, poses, length, views, expected):  # (6)
    _, robot = pair
    status, result = robot.imagine(robot.goal(length=length, poses=poses, views=views))
    assert (status, result.views_done) == (SUCCEEDED, expected)


def test_path_outside_observed_space_reports_zero_coverage(pair):  # (7)
    _, robot = pair
    goal = robot.goal(length=0.0, poses=1)
    orientation = goal.path.poses[0].pose.orientation
    orientation.z, orientation.w = 1.0, 0.0  # looks back
    status, result = robot.imagine(goal)
    assert status == SUCCEEDED
    assert result.coverage == 0
    assert result.observed_fraction == 0
    far = robot.goal(length=1e4, poses=2)
    status, result = robot.imagine(far)
    assert (status, result.views_done) == (SUCCEEDED, 2)


def test_invalid_path_on_topic_is_rejected_with_reason(pair):
    node, robot = pair
    start = len(node.lines)
    robot.path.publish(straight_path(1, 0, robot.now()))
    assert "INVALID_PATH" in node.wait_log("path: ", since=start)


def test_invalid_pose_message_is_rejected(pair):  # (5)
    _, robot = pair
    before = int(robot.diagnostics().get("pose rejected", 0))
    robot.pose.publish(PoseStamped(header=Header(frame_id="map")))  # the default orientation is a quaternion of zeros
    message = PoseStamped(header=Header(frame_id="map"))
    message.pose.orientation.w = math.nan
    robot.pose.publish(message)
    assert wait_for(lambda: int(robot.diagnostics().get("pose rejected", 0)) >= before + 1)
