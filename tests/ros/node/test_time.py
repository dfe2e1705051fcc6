"""Stamps, clocks and transforms, the topic pose, compressed images and panoramas."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from helpers.node_harness import CAMERA_FRAME, HEIGHT, NODE, WIDTH, camera_at, running, scene, wait_for
from PIL import Image as PilImage
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


def publish(robot, stamp, x=0.0, transform=True, seed=0) -> None:
    """Publishes one view without waiting, with or without the robot's pose on /tf."""
    image, info, depth = robot.view(x, seed, stamp)
    if transform:
        robot.send_tf(x, stamp)
    for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
        publisher.publish(message)


def later(stamp: Time, seconds: float) -> Time:
    return messages.time_message(messages.nanoseconds(stamp) + int(seconds * 1e9))


def rejections(robot) -> int:
    return int(robot.diagnostics().get("image rejected", 0))


def was_rejected_with(robot, word: str, since: int = 0) -> bool:
    """Whether an image is rejected with a reason, besides the `since` ones; until then it waits for its pose."""
    return wait_for(
        lambda: rejections(robot) > since and word in robot.diagnostics().get("image last rejection", ""), 5
    )


def test_stamp_of_zero_means_now(pair):  # (12)
    _, robot = pair
    before = robot.observations_taken()
    robot.send_tf(0.0)
    publish(robot, Time(), transform=False)
    assert wait_for(lambda: robot.observations_taken() > before)


def test_stamp_in_the_future_is_rejected_after_timeout(pair):  # (12)
    _, robot = pair
    before, rejected = robot.observations_taken(), rejections(robot)
    robot.send_tf(0.0)
    publish(robot, later(robot.now(), 60), transform=False)
    assert was_rejected_with(robot, "too old for stamp", rejected)
    assert robot.observations_taken() == before
    # The next valid image is accepted.
    robot.publish_view()


def test_stamp_older_than_cached_transforms_is_rejected():  # (12)
    with running({"tf_cache_time": 1.0}) as (_, robot):
        now = robot.now()
        # Four seconds of poses in one message; those older than tf_cache_time are removed from the cache.
        stamps = [later(now, -0.02 * index) for index in range(200, -1, -1)]
        headers = [Header(stamp=stamp, frame_id="map") for stamp in stamps]
        poses = [messages.transform_message(np.eye(4), header, "base_link") for header in headers]
        robot.send_tf(0.0, now)  # the extrinsics
        robot.tf.publish(TFMessage(transforms=poses))
        publish(robot, later(now, -3.5), transform=False)
        assert was_rejected_with(robot, "older than all cached transforms map <- base_link")
        assert robot.observations_taken() == 0
        # An image within the cache is accepted, and so is a new one.
        publish(robot, later(now, -0.5), transform=False)
        assert wait_for(lambda: robot.observations_taken() == 1), robot.diagnostics()
        robot.publish_view()
        assert robot.imagine()[0] == SUCCEEDED


def test_image_waits_for_late_transform(pair):
    _, robot = pair
    robot.publish_view()
    before, stamp = robot.observations_taken(), later(robot.now(), 0.05)
    publish(robot, stamp, transform=False)
    time.sleep(0.15)
    assert robot.observations_taken() == before
    robot.send_tf(0.0, stamp)
    assert wait_for(lambda: robot.observations_taken() > before)


def test_restarted_recording_keeps_memory(pair):  # (13)
    node, robot = pair
    start = len(node.lines)
    points = int(robot.diagnostics()["points"])
    for round_ in range(2):
        for index in range(3):  # ten seconds per round, long before now
            before = robot.observations_taken()
            publish(robot, Time(sec=1_000_000 + 5 * index), x=0.0)
            assert wait_for(lambda before=before: robot.observations_taken() > before), f"round {round_}, image {index}"
    node.wait_log("jumped back", since=start)
    assert int(robot.diagnostics()["points"]) >= points
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED


def test_broken_tf_tree_rejects_and_recovers(pair):  # (15)
    _, robot = pair
    before = robot.observations_taken()
    robot.publish_view()
    rejected = rejections(robot)
    publish(robot, later(robot.now(), 0.5), transform=False)  # odometry stopped
    assert was_rejected_with(robot, "too old for stamp", rejected)
    status, result = robot.imagine()  # the memory is still usable
    assert (status, result.error_code) == (SUCCEEDED, 0)
    robot.publish_view()
    assert robot.observations_taken() >= before + 2


def test_transform_between_two_stamps_is_interpolated(pair):
    _, robot = pair
    from std_srvs.srv import Trigger

    assert robot.call("reset", Trigger.Request()).success
    start = robot.now()
    robot.send_tf(0.0, start)
    robot.send_tf(1.0, later(start, 0.2))
    before = robot.observations_taken()
    publish(robot, later(start, 0.1), transform=False)
    assert wait_for(lambda: robot.observations_taken() > before)
    received = robot.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)

    def median_distance() -> float:
        """Of the newest map; the first one that arrives may be from before the reset."""
        return float(np.median(cloud_arrays(received[-1])[0][:, 0])) if received and received[-1].width > 1000 else 0.0

    # The wall is 2 m ahead of the camera, the camera 0.1 m ahead of the base, the base half way at 0.5.
    assert wait_for(lambda: median_distance() == pytest.approx(2.6, abs=0.05)), median_distance()
    robot.call("reset", Trigger.Request())
    robot.publish_view()


def test_compressed_image_is_accepted(pair):
    _, robot = pair
    publisher = robot.node.create_publisher(CompressedImage, "/image/compressed", qos.VIEW)
    assert wait_for(lambda: publisher.get_subscription_count() > 0)
    before = robot.observations_taken()
    image, info, depth = robot.view()
    robot.send_tf(0.0, image.header.stamp)
    buffer = io.BytesIO()
    PilImage.fromarray(scene()[0]).save(buffer, "PNG")
    message = CompressedImage(header=image.header, format="png")
    message.data = messages.bytes_field(np.frombuffer(buffer.getvalue(), np.uint8))
    robot.info.publish(info)
    robot.depth.publish(depth)
    publisher.publish(message)
    assert wait_for(lambda: robot.observations_taken() > before)
    # The same image, raw, is not a second observation: drivers publish both.
    robot.image.publish(image)
    messages_before = robot.diagnostics()["image messages"]
    assert wait_for(lambda: robot.diagnostics()["image messages"] != messages_before)
    time.sleep(0.2)
    assert robot.observations_taken() == before + 1
    message.header.stamp = robot.now()
    message.data = messages.bytes_field(np.frombuffer(buffer.getvalue()[:50], np.uint8))
    robot.send_tf(0.0, message.header.stamp)
    depth.header.stamp = message.header.stamp
    robot.depth.publish(depth)
    publisher.publish(message)
    assert wait_for(lambda: "image/compressed last rejection" in robot.diagnostics())
    robot.node.destroy_publisher(publisher)


def test_pose_topic_replaces_missing_tf():
    parameters = {"base_to_camera": "[0.1, 0.0, 0.3, -0.5, 0.5, -0.5, 0.5]"}
    with running(parameters) as (_, robot):
        stamp = robot.now()
        pose = PoseStamped(header=Header(stamp=stamp, frame_id="map"))
        pose.pose.position.x = 1.0
        pose.pose.orientation.w = 1.0
        robot.pose.publish(pose)
        time.sleep(0.1)
        publish(robot, stamp, transform=False)
        assert wait_for(lambda: robot.observations_taken() == 1), robot.diagnostics()
        received = robot.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)
        views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
        points = robot.subscribe(f"{NODE}/points", PointCloud2, qos.CLOUD)
        assert wait_for(lambda: received and received[-1].width > 1000)
        assert np.median(cloud_arrays(received[-1])[0][:, 0]) == pytest.approx(3.1, abs=0.05)
        assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
        assert wait_for(lambda: views and points)
        np.testing.assert_allclose(messages.pose_matrix(views[0].pose.pose), camera_at(0), atol=1e-6)
        # TF has no base: the points are in the frame of the imagined camera, which the node publishes.
        assert points[0].header.frame_id == "imagined_camera"
        assert robot.diagnostics()["camera extrinsics"].startswith("from the parameter base_to_camera")


def test_panorama_without_depth_is_rejected_with_hint():
    fixed = {"pose_source": "fixed", "base_to_camera": "[0.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5]", "depth_model": "none"}
    with running(fixed) as (node, robot):
        publisher = robot.node.create_publisher(type(robot.view()[0]), "/panorama", qos.VIEW)
        assert wait_for(lambda: publisher.get_subscription_count() > 0)
        header = Header(stamp=robot.now(), frame_id=CAMERA_FRAME)
        publisher.publish(messages.colour_message(np.full((64, 128, 3), 90, np.uint8), header))
        node.wait_log("panorama: .*depth_model")
        header.stamp = robot.now()
        publisher.publish(messages.colour_message(np.full((64, 64, 3), 90, np.uint8), header))
        assert wait_for(lambda: robot.diagnostics().get("panorama rejected") == "2")
        # A robot that never moves needs no TF.
        publish(robot, robot.now(), transform=False)
        assert wait_for(lambda: robot.observations_taken() == 1)


def test_sim_time_without_clock_warns_and_continues():  # (14)
    with running({"use_sim_time": True, "no_input_warning_period": 0.6}) as (node, robot):
        node.wait_log("no message arrives on /clock")
        node.wait_log("No image for 0.6 s. Subscribed to /image")
        publish(robot, Time(sec=5))
        assert wait_for(lambda: robot.observations_taken() == 1)
        assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
        # With a clock its time is in the headers; a backward jump of the clock is reported.
        views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
        clock = robot.node.create_publisher(Clock, "/clock", qos.VIEW)

        def clock_arrived() -> bool:  # a clock ticks until it is heard; one tick may be sent before both are connected
            clock.publish(Clock(clock=Time(sec=1000)))
            assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
            return bool(views) and views[-1].header.stamp.sec == 1000

        assert wait_for(clock_arrived)
        clock.publish(Clock(clock=Time(sec=10)))
        node.wait_log("clock jumped")
        publish(robot, Time(sec=10))
        assert wait_for(lambda: robot.observations_taken() == 2)


def test_row_padding_and_byte_order_are_respected(pair):
    """Images with row padding and big endian depth are decoded."""
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
    received = robot.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)
    assert wait_for(lambda: received and received[-1].width > 1000)
    points, colours = cloud_arrays(received[-1])
    assert np.median(points[:, 0]) == pytest.approx(2.1, abs=0.05)
    box = points[:, 0] < 1.7
    assert np.abs(colours[box].astype(int) - (200, 60, 40)).mean() < 6


def test_invalid_transforms_are_ignored(pair):
    _, robot = pair
    bad = messages.transform_message(np.eye(4), Header(stamp=robot.now(), frame_id="map"), "base_link")
    bad.transform.rotation.w = float("nan")
    loop = messages.transform_message(np.eye(4), Header(stamp=robot.now(), frame_id="base_link"), "base_link")
    robot.tf.publish(TFMessage(transforms=[bad, loop]))
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED
