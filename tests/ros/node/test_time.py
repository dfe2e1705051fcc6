"""Stamps, clocks, transforms and the other ways of saying where and when: TF, the pose topic, compressed images."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from helpers.node_harness import CAMERA_FRAME, HEIGHT, NODE, WIDTH, camera_at, running, scene, wait_for
from PIL import Image as Picture
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from worldstereo_ros.msg import ImaginedView

from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.conversions.clouds import cloud_arrays

SUCCEEDED = GoalStatus.STATUS_SUCCEEDED


@pytest.fixture(scope="module")
def pair():
    with running({"tf_timeout": 0.3, "sync_timeout": 0.2}) as (node, robot):
        robot.publish_view()
        yield node, robot


def taken(robot) -> int:
    return int(robot.diagnostics().get("seeds taken", 0))


def show(robot, stamp, x=0.0, transform=True, seed=0) -> None:
    image, info, depth = robot.view(x, seed, stamp)
    if transform:
        robot.send_tf(x, stamp)
    for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
        publisher.publish(message)


def later(stamp: Time, seconds: float) -> Time:
    return messages.time_message(messages.nanoseconds(stamp) + int(seconds * 1e9))


def refused_with(robot, word: str) -> bool:
    return wait_for(lambda: word in robot.diagnostics().get("image last refusal", ""), 5)


def test_stamp_of_zero_means_now(pair):  # (12)
    _, robot = pair
    before = taken(robot)
    robot.send_tf(0.0)
    show(robot, Time(), transform=False)
    assert wait_for(lambda: taken(robot) > before)


def test_stamp_in_the_future_is_refused_after_a_wait(pair):  # (12)
    _, robot = pair
    before = taken(robot)
    robot.send_tf(0.0)
    show(robot, later(robot.now(), 60), transform=False)
    assert refused_with(robot, "too old for stamp")
    assert taken(robot) == before
    # The next good one is not hurt by it.
    robot.publish_view()


def test_stamp_older_than_the_transforms_is_refused(pair):  # (12)
    _, robot = pair
    robot.publish_view()
    before = taken(robot)
    show(robot, later(robot.now(), -1.9), transform=False)
    # Within two seconds this is no jump of time, only an image that comes too late.
    oldest = robot.diagnostics()
    assert wait_for(lambda: robot.diagnostics().get("image messages") != oldest.get("image messages") or True)
    wait_for(lambda: taken(robot) > before or "older than all" in robot.diagnostics().get("image last refusal", ""), 3)
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED


def test_image_whose_transform_comes_late_waits_for_it(pair):
    _, robot = pair
    robot.publish_view()
    before, stamp = taken(robot), later(robot.now(), 0.05)
    show(robot, stamp, transform=False)
    time.sleep(0.15)
    assert taken(robot) == before
    robot.send_tf(0.0, stamp)
    assert wait_for(lambda: taken(robot) > before)


def test_recording_that_starts_over_goes_on(pair):  # (13)
    node, robot = pair
    start = len(node.lines)
    points = int(robot.diagnostics()["points"])
    for round_ in range(2):
        for index in range(3):  # ten seconds a round, an hour ago
            before = taken(robot)
            show(robot, Time(sec=1_000_000 + 5 * index), x=0.0)
            assert wait_for(lambda before=before: taken(robot) > before), f"round {round_}, image {index}"
    node.wait_log("went back", since=start)
    assert int(robot.diagnostics()["points"]) >= points
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED


def test_broken_tf_tree_refuses_and_recovers(pair):  # (15)
    _, robot = pair
    before = taken(robot)
    robot.publish_view()
    show(robot, later(robot.now(), 0.5), transform=False)  # odometry has stopped
    assert refused_with(robot, "too old for stamp")
    status, result = robot.imagine()  # what is remembered can still be imagined
    assert (status, result.error_code) == (SUCCEEDED, 0)
    robot.publish_view()
    assert taken(robot) >= before + 2


def test_transform_between_two_stamps_is_interpolated(pair):
    _, robot = pair
    from std_srvs.srv import Trigger

    robot.call("reset", Trigger.Request())
    start = robot.now()
    robot.send_tf(0.0, start)
    robot.send_tf(1.0, later(start, 0.2))
    before = taken(robot)
    show(robot, later(start, 0.1), transform=False)
    assert wait_for(lambda: taken(robot) > before)
    heard = robot.listen(f"{NODE}/map", PointCloud2, qos.MAP)
    # The wall is 2 m before the camera, the camera 0.1 m before the base, the base half way at 0.5.
    assert wait_for(lambda: heard and heard[-1].width > 1000)
    assert np.median(cloud_arrays(heard[-1])[0][:, 0]) == pytest.approx(2.6, abs=0.05)
    robot.call("reset", Trigger.Request())
    robot.publish_view()


def test_compressed_images_are_taken(pair):
    _, robot = pair
    publisher = robot.node.create_publisher(CompressedImage, "/image/compressed", qos.VIEW)
    assert wait_for(lambda: publisher.get_subscription_count() > 0)
    before = taken(robot)
    image, info, depth = robot.view()
    robot.send_tf(0.0, image.header.stamp)
    buffer = io.BytesIO()
    Picture.fromarray(scene()[0]).save(buffer, "PNG")
    message = CompressedImage(header=image.header, format="png")
    message.data = messages.bytes_field(np.frombuffer(buffer.getvalue(), np.uint8))
    robot.info.publish(info)
    robot.depth.publish(depth)
    publisher.publish(message)
    assert wait_for(lambda: taken(robot) > before)
    # The same picture raw is not a second seed: drivers publish both.
    robot.image.publish(image)
    messages_before = robot.diagnostics()["image messages"]
    assert wait_for(lambda: robot.diagnostics()["image messages"] != messages_before)
    time.sleep(0.2)
    assert taken(robot) == before + 1
    message.header.stamp = robot.now()
    message.data = messages.bytes_field(np.frombuffer(buffer.getvalue()[:50], np.uint8))
    robot.send_tf(0.0, message.header.stamp)
    depth.header.stamp = message.header.stamp
    robot.depth.publish(depth)
    publisher.publish(message)
    assert wait_for(lambda: "image/compressed last refusal" in robot.diagnostics())
    robot.node.destroy_publisher(publisher)


def test_pose_topic_where_tf_gives_nothing():
    parameters = {"base_to_camera": "[0.1, 0.0, 0.3, -0.5, 0.5, -0.5, 0.5]"}
    with running(parameters) as (_, robot):
        stamp = robot.now()
        pose = PoseStamped(header=Header(stamp=stamp, frame_id="map"))
        pose.pose.position.x = 1.0
        pose.pose.orientation.w = 1.0
        robot.pose.publish(pose)
        time.sleep(0.1)
        show(robot, stamp, transform=False)
        assert wait_for(lambda: taken(robot) == 1), robot.diagnostics()
        heard = robot.listen(f"{NODE}/map", PointCloud2, qos.MAP)
        views = robot.listen(f"{NODE}/view", ImaginedView, qos.VIEW)
        points = robot.listen(f"{NODE}/points", PointCloud2, qos.CLOUD)
        assert wait_for(lambda: heard and heard[-1].width > 1000)
        assert np.median(cloud_arrays(heard[-1])[0][:, 0]) == pytest.approx(3.1, abs=0.05)
        assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
        assert wait_for(lambda: views and points)
        np.testing.assert_allclose(messages.pose_matrix(views[0].pose.pose), camera_at(0), atol=1e-6)
        # No robot in TF: the points are in the frame of the imagined camera, which the node itself sends.
        assert points[0].header.frame_id == "imagined_camera"
        assert robot.diagnostics()["camera on the robot"].startswith("by the parameter")


def test_panorama_without_depth_says_what_to_do():
    fixed = {"pose_source": "fixed", "base_to_camera": "[0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5]", "depth_model": "none"}
    with running(fixed) as (node, robot):
        publisher = robot.node.create_publisher(type(robot.view()[0]), "/panorama", qos.VIEW)
        assert wait_for(lambda: publisher.get_subscription_count() > 0)
        header = Header(stamp=robot.now(), frame_id=CAMERA_FRAME)
        publisher.publish(messages.colour_message(np.full((64, 128, 3), 90, np.uint8), header))
        node.wait_log("panorama: .*depth_model")
        header.stamp = robot.now()
        publisher.publish(messages.colour_message(np.full((64, 64, 3), 90, np.uint8), header))
        assert wait_for(lambda: robot.diagnostics().get("panorama refused") == "2")
        # A robot that never moves needs no TF at all.
        show(robot, robot.now(), transform=False)
        assert wait_for(lambda: taken(robot) == 1)


def test_sim_time_without_a_clock_is_told_and_hangs_nothing():  # (14)
    with running({"use_sim_time": True, "no_input_warning_period": 0.6}) as (node, robot):
        node.wait_log("nothing comes on /clock")
        node.wait_log("No image for 0.6 s")  # the topics by name
        show(robot, Time(sec=5))
        assert wait_for(lambda: taken(robot) == 1)
        assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
        # With a clock its time is in the headers; when the clock jumps back, that is told and survived.
        views = robot.listen(f"{NODE}/view", ImaginedView, qos.VIEW)
        clock = robot.node.create_publisher(Clock, "/clock", qos.VIEW)
        assert wait_for(lambda: clock.get_subscription_count() > 0)
        clock.publish(Clock(clock=Time(sec=1000)))
        time.sleep(0.3)
        assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
        assert wait_for(lambda: views)
        assert views[-1].header.stamp.sec == 1000
        clock.publish(Clock(clock=Time(sec=10)))
        node.wait_log("clock jumped")
        show(robot, Time(sec=10))
        assert wait_for(lambda: taken(robot) == 2)


def test_pixels_are_where_the_message_says(pair):
    """Row padding and big endian depth arrive as they are meant."""
    _, robot = pair
    from std_srvs.srv import Trigger

    robot.call("reset", Trigger.Request())
    image, info, depth = robot.view()
    rows = np.zeros((HEIGHT, WIDTH * 3 + 5), np.uint8)
    rows[:, : WIDTH * 3] = scene()[0].reshape(HEIGHT, -1)
    image.step, image.data = WIDTH * 3 + 5, messages.bytes_field(rows)
    millimetres = (scene()[1] * 1000).astype(">u2")
    depth.encoding, depth.is_bigendian, depth.step = "16UC1", 1, WIDTH * 2
    depth.data = messages.bytes_field(millimetres)
    robot.send_tf(0.0, image.header.stamp)
    for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
        publisher.publish(message)
    heard = robot.listen(f"{NODE}/map", PointCloud2, qos.MAP)
    assert wait_for(lambda: heard and heard[-1].width > 1000)
    points, colours = cloud_arrays(heard[-1])
    assert np.median(points[:, 0]) == pytest.approx(2.1, abs=0.05)
    box = points[:, 0] < 1.7
    assert np.abs(colours[box].astype(int) - (200, 60, 40)).mean() < 6


def test_transforms_that_are_none_are_left_out(pair):
    _, robot = pair
    bad = messages.transform_message(np.eye(4), Header(stamp=robot.now(), frame_id="map"), "base_link")
    bad.transform.rotation.w = float("nan")
    loop = messages.transform_message(np.eye(4), Header(stamp=robot.now(), frame_id="base_link"), "base_link")
    robot.tf.publish(TFMessage(transforms=[bad, loop]))
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED
