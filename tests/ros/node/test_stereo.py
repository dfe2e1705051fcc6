"""The stereo topics of a node in another process."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers.node_harness import CAMERA, CAMERA_FRAME, HEIGHT, NODE, WIDTH, running, scene, wait_for
from nav_msgs.msg import Odometry
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.pipelines.stereo.streaming import StereoStream
from worldstereo_ros.ros.client.requests import NodeTimeoutError
from worldstereo_ros.ros.client.stereo import StereoReceiver
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.conversions.stereo import (
    base_from_info,
    disparity_message,
    jpeg_message,
    right_info_message,
)
from worldstereo_ros.utils.errors import InputError

BASE = 0.1
LIMIT_S = 200.0  # of every wait for the first images; says nothing about speed
TOPICS = {
    "left/image_rect": Image,
    "left/camera_info": CameraInfo,
    "right/image_rect": Image,
    "right/camera_info": CameraInfo,
    "right/source": Image,
    "disparity": DisparityImage,
    "sbs": Image,
    "sbs/compressed": CompressedImage,
}


@pytest.fixture(scope="module")
def stereo():
    """A node with stereo topics, and a robot that listens to none of them yet."""
    point_maps = {"pointmaps.enabled": True, "pointmaps.method": "vo", "pointmaps.max_gap": 0.6, "pose_source": "tf"}
    with running({"stereo.enabled": True, "stereo.base": BASE, "sync_timeout": 0.2, **point_maps}) as (node, robot):
        yield node, robot


def listen(robot, *names, **given):
    """Sends images until one is answered on all of these stereo topics; returns (their messages, its stamp)."""
    lists = {name: robot.subscribe(f"{NODE}/stereo/{name}", TOPICS[name], qos.VIEW) for name in names}

    def answers(stamp):
        found = {name: [one for one in received if one.header.stamp == stamp] for name, received in lists.items()}
        return found if all(found.values()) else None

    stamps, deadline = [], time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:  # the node discovers subscriptions at some time
        stamps.append(send(robot, **given))
        if wait_for(lambda: any(answers(stamp) for stamp in stamps), 3.0):
            stamp = next(stamp for stamp in stamps if answers(stamp))
            got = answers(stamp)
            assert all(len(one) == 1 for one in got.values())
            return {name: one[0] for name, one in got.items()}, stamp
    raise AssertionError({name: len(received) for name, received in lists.items()})


def deaf(robot):
    for name in TOPICS:
        subscription = robot._subscriptions.pop(f"{NODE}/stereo/{name}", None)
        if subscription is not None:
            robot.node.destroy_subscription(subscription)
    time.sleep(0.5)


def send(robot, *, depth=True, tf=True, seed=0):
    """Publishes an image with its camera_info, and returns its stamp."""
    image, info, depth_image = robot.view(seed=seed)
    if tf:
        robot.send_tf(0.0, image.header.stamp)
    robot.info.publish(info)
    if depth:
        robot.depth.publish(depth_image)
    robot.image.publish(image)
    return image.header.stamp


def set_parameter(robot, name, value):
    request = SetParametersAtomically.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    return robot.call("set_parameters_atomically", request).result


def stereo_frames(robot):
    return int(robot.diagnostics()["stereo frames"])


def test_images_without_depth_and_tf_have_estimated_depth(stereo):
    """Before any depth image came; and the memory, which needs a pose, has nothing of it."""
    node, robot = stereo
    listen(robot, "right/image_rect", "disparity", depth=False, tf=False)
    node.wait_log("the right eye is drawn with estimated depth")
    node.wait_log("The pose of the image is unknown")
    assert robot.observations_taken() == 0
    assert wait_for(lambda: robot.diagnostics()["stereo depth"] == "estimated")
    deaf(robot)


def test_outputs_without_subscribers_are_not_computed(stereo):
    _, robot = stereo
    before = stereo_frames(robot)
    robot.publish_view()
    time.sleep(0.3)
    assert stereo_frames(robot) == before


def test_pair_is_published_with_one_header(stereo):
    node, robot = stereo
    got, stamp = listen(robot, *TOPICS)
    assert {message.header.frame_id for message in got.values()} == {CAMERA_FRAME}
    assert all(message.header.stamp == stamp for message in got.values())
    # Both eyes are those of the pipeline, and the left one is the camera's.
    image, depth = scene(0)
    expected = StereoStream(StereoSettings(base=BASE), None).push(image, CAMERA, depth)
    left, right = (messages.image_array(got[f"{eye}/image_rect"]) for eye in ("left", "right"))
    np.testing.assert_array_equal(left, image)
    np.testing.assert_array_equal(right, expected.right)
    np.testing.assert_array_equal(messages.grey_array(got["right/source"]), expected.source)
    assert set(np.unique(expected.source)) == {0, 255}
    info = got["right/camera_info"]
    assert info.p[3] == pytest.approx(-CAMERA.fx * BASE)
    assert list(info.k) == list(got["left/camera_info"].k)
    assert got["left/camera_info"].p[3] == 0
    disparity = got["disparity"]
    assert (disparity.f, disparity.t) == (pytest.approx(CAMERA.fx), pytest.approx(BASE))
    pixels = np.frombuffer(disparity.image.data, np.float32).reshape(HEIGHT, WIDTH)
    np.testing.assert_allclose(disparity.f * disparity.t / pixels, depth, rtol=1e-5)
    assert (disparity.image.encoding, disparity.image.header.stamp) == ("32FC1", stamp)
    assert disparity.min_disparity <= pixels.min() < pixels.max() <= disparity.max_disparity
    both = messages.image_array(got["sbs"])
    np.testing.assert_array_equal(both, np.concatenate([left, right], axis=1))
    jpeg = messages.image_array(got["sbs/compressed"]).astype(int)
    assert np.abs(jpeg - both).mean() < 0.3 * np.abs(jpeg - both[..., ::-1]).mean()  # these blocks are hard for JPEG
    node.wait_log("the right eye is drawn with measured depth")
    deaf(robot)


def test_point_maps_of_the_same_images(stereo):
    """A still camera with measured depth: the base does not move, and the depth is the sensor's."""
    _, robot = stereo
    depth = robot.subscribe(f"{NODE}/pointmaps/depth", Image, qos.VIEW)
    odometry = robot.subscribe(f"{NODE}/odometry", Odometry, qos.VIEW)
    deadline = time.monotonic() + LIMIT_S
    while not (depth and odometry) and time.monotonic() < deadline:
        for _ in range(3):
            send(robot)
            time.sleep(0.15)
        wait_for(lambda: depth and odometry, 3.0)  # results come when no image does
    found = messages.depth_array(depth[-1])
    np.testing.assert_allclose(np.median(found[found > 0] / scene(0)[1][found > 0]), 1, atol=0.02)
    assert depth[-1].header.frame_id == CAMERA_FRAME
    newest = odometry[-1]
    assert (newest.header.frame_id, newest.child_frame_id) == ("odom", "base_link")
    np.testing.assert_allclose(messages.pose_matrix(newest.pose.pose), np.eye(4), atol=1e-3)
    assert np.linalg.eigvalsh(np.reshape(newest.pose.covariance, (6, 6))).min() > 0
    for name in ("pointmaps/depth", "odometry"):
        robot.node.destroy_subscription(robot._subscriptions.pop(f"{NODE}/{name}"))


def test_what_shows_the_camera_alone_needs_no_depth(stereo):
    _, robot = stereo
    assert set_parameter(robot, "stereo.strength", 2.0).successful
    assert set_parameter(robot, "stereo.width", WIDTH // 2).successful
    got, stamp = listen(robot, "left/image_rect", "right/camera_info")
    left, info = got.values()
    assert (left.width, left.height, left.header.stamp) == (WIDTH // 2, HEIGHT // 2, stamp)
    assert base_from_info(info) == pytest.approx(2 * BASE)
    assert info.p[0] == pytest.approx(CAMERA.fx / 2)
    assert set_parameter(robot, "stereo.width", 0).successful
    assert set_parameter(robot, "stereo.strength", 1.0).successful
    refused = set_parameter(robot, "stereo.base", 65.0)
    assert not refused.successful
    assert "stereo.base" in refused.reason
    assert not set_parameter(robot, "stereo.enabled", False).successful  # while it is configured
    deaf(robot)


def test_client_receives_whole_pairs(stereo):
    _, robot = stereo
    with StereoReceiver(robot.node, NODE) as receiver:
        stamps, pair = [], None
        while pair is None and len(stamps) < 30:
            stamps.append(messages.nanoseconds(send(robot, seed=1)))
            with contextlib.suppress(NodeTimeoutError):
                pair = receiver.wait(2)
        assert pair.stamp_ns in stamps
        assert pair.frame_id == CAMERA_FRAME
        assert pair.base == pytest.approx(BASE)
        assert pair.camera.fx == pair.right_camera.fx == CAMERA.fx
        np.testing.assert_array_equal(pair.left, scene(1)[0])
        assert pair.source.shape == pair.right.shape[:2]
        with pytest.raises(NodeTimeoutError, match=r"although .* has a publisher"):
            receiver.wait(0.2)
    with (
        StereoReceiver(robot.node, "/absent") as receiver,
        pytest.raises(NodeTimeoutError, match=r"nothing publishes /absent/stereo.*enabled"),
    ):
        receiver.wait(0.2)


def test_node_without_stereo_has_none_of_its_topics(stereo):
    node, robot = stereo
    assert robot.transition("deactivate")
    assert robot.transition("cleanup")
    assert set_parameter(robot, "stereo.enabled", False).successful
    assert robot.transition("configure", 60)
    assert robot.transition("activate")
    topic = f"{NODE}/stereo/sbs"
    assert wait_for(lambda: robot.node.count_publishers(topic) == 0)
    robot.publish_view()
    assert "stereo frames" not in robot.diagnostics()
    assert "Unexpected error" not in node.log


def test_process_ends_while_pairs_are_made(stereo):
    node, robot = stereo
    assert robot.transition("deactivate")
    assert robot.transition("cleanup")
    assert set_parameter(robot, "stereo.enabled", True).successful
    assert robot.transition("configure", 60)
    assert robot.transition("activate")
    listen(robot, "sbs/compressed")
    for seed in range(5):
        send(robot, seed=seed)
    assert node.terminate() == 0
    assert "Traceback" not in node.log
    assert "Unexpected error" not in node.log


def test_messages():
    header = Header(frame_id="left")
    info = right_info_message(replace(CAMERA, cx=50.0), 0.2, header)
    assert (info.p[2], info.p[3]) == (50.0, -16.0)
    assert base_from_info(info) == pytest.approx(0.2)
    with pytest.raises(InputError, match="base"):
        base_from_info(messages.info_message(CAMERA, header))
    disparity = np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]
    message = disparity_message(disparity, 80.0, 0.2, 24.0, header)
    assert (message.image.step, message.image.width, message.valid_window.height) == (12, 3, 2)
    assert np.frombuffer(message.image.data, np.float32).tolist() == [2, 1, 0, 5, 4, 3]
    smooth = np.zeros((16, 16, 3), np.uint8)
    smooth[:] = (200, 40, 90)
    jpeg = jpeg_message(smooth, 95, header)
    assert cv2.imdecode(np.frombuffer(jpeg.data, np.uint8), cv2.IMREAD_COLOR).shape == (16, 16, 3)
    assert np.abs(messages.image_array(jpeg).astype(int) - smooth).max() < 8
    assert "jpeg" in jpeg.format
