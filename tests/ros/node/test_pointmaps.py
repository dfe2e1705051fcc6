"""Odometry and point maps of the node: path, covariances, memories, and bad input. No messages are sent over DDS."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.box_room import CAMERA
from helpers.node_harness import CAMERA_FRAME, wait_for
from helpers.pointmap_output import LIMIT_S, WINDOW, observation_of, outputs
from helpers.video_scene import KnownDepth, frame, walk
from nav_msgs.msg import Odometry
from std_msgs.msg import Header

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.pipelines.pointmaps.types import GIVEN_ODOMETRY, GUESS, Pointmaps
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.conversions.clouds import cloud_arrays, organised_message
from worldstereo_ros.ros.conversions.odometry import odometry_message
from worldstereo_ros.ros.node import pointmap_estimator
from worldstereo_ros.ros.node.parameters import ConfigurationError, make_parameters
from worldstereo_ros.ros.node.pointmap_path import PointmapPath
from worldstereo_ros.ros.node.pointmap_publishers import DEPTH, DYNAMIC, INFO, ODOMETRY, POINTS
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.utils.errors import InputError

# --- path ---


def part(poses: np.ndarray, *, ok=None, scale_from=GUESS) -> Pointmaps:
    count, shape = len(poses), (len(poses), 2, 2)
    covariance = np.tile(np.diag([1e-4] * 3 + [1e-6] * 3), (count, 1, 1))
    covariance[0] = 0
    return Pointmaps(
        np.ones((*shape, 3), np.float32), np.ones(shape, np.float32), np.ones(shape, bool), np.zeros(shape, bool),
        poses, CAMERA, scale_from, np.ones(count, bool) if ok is None else np.array(ok), np.zeros(count, np.int64),
        covariance,
    )  # fmt: skip


def test_the_path_takes_its_scale_from_a_reference_and_goes_on_after_a_break():
    true = walk(8)
    true = invert_pose(true[0]) @ true
    guess = true.copy()
    guess[:, :3, 3] *= 0.4
    path = PointmapPath(np.eye(4))
    nothing = np.full((4, 4, 4), np.nan)
    first = path.extend(part(guess[:4]), "a", nothing)
    assert (path.metric, path.factor) == (False, 1.0)
    std = np.sqrt(np.diag(first[-1].covariance))
    assert np.linalg.norm(std[:3]) >= np.linalg.norm(guess[3, :3, 3])  # a guess may be wrong by all of the way
    path = PointmapPath(np.eye(4))
    frames = path.extend(part(guess[:4]), "a", true[:4]) + path.extend(part(guess[4:]), "a", true[4:])
    assert (path.scale_from, path.broken) == (GIVEN_ODOMETRY, 0)
    np.testing.assert_allclose(np.stack([each.pose for each in frames]), true, atol=1e-9)
    for each in frames:
        assert np.linalg.eigvalsh(each.covariance).min() > 0
    assert frames[4].increment is not None  # parts are joined
    after = path.extend(part(true[:2], ok=[True, False]), "b", nothing[:2])
    np.testing.assert_allclose(after[0].pose, true[-1], atol=1e-9)
    assert after[0].covariance[0, 0] > 1000
    assert (after[0].increment, after[1].found, path.broken, path.metric) == (None, False, 1, False)
    still = path.extend(part(true[:2]), "c", np.tile(np.eye(4), (2, 1, 1)))
    assert len(still) == 2
    assert path.scale_awaited  # the wheels stand


def test_a_joined_part_takes_over_the_unit_and_says_how_sure_it_is():
    true = walk(12)
    true = invert_pose(true[0]) @ true
    double = true.copy()
    double[:, :3, 3] *= 2
    nothing = np.full((4, 4, 4), np.nan)
    path = PointmapPath(np.eye(4))
    path.extend(part(true[:4]), "a", true[:4])
    path.extend(part(double[4:8]), "b", nothing)
    assert not path.measured
    path.join(0.5, GIVEN_ODOMETRY)
    after = path.extend(part(double[8:]), "b", nothing)
    assert (path.metric, path.measured, path.scale_from, path.scale_awaited) == (True, False, GIVEN_ODOMETRY, False)
    np.testing.assert_allclose(after[-1].increment[:3, 3], (invert_pose(true[-2]) @ true[-1])[:3, 3], atol=1e-9)
    own = PointmapPath(np.eye(4))
    own.extend(part(true[:4]), "a", true[:4])
    measured = own.extend(part(true[4:]), "b", true[4:])
    assert own.measured
    # The unit of another part tells less than a reference does, and what happened in between stays unknown.
    assert np.trace(after[-1].covariance[:3, :3]) > np.trace(measured[-1].covariance[:3, :3]) > 1000
    path.extend(part(double[:4]), "c", nothing)
    assert (path.metric, path.joined) == (False, False)  # a new break: a unit of its own again


def test_odometry_and_organised_clouds_say_what_they_should():
    pose = np.eye(4)
    pose[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # turned left: the child's x is y of the path
    covariance = np.diag([4.0, 1, 1, 0.1, 0.2, 0.3])
    message = odometry_message(pose, covariance, None, None, Header(frame_id="odom"), "base_link")
    found = np.reshape(message.pose.covariance, (6, 6))
    np.testing.assert_allclose(np.diag(found), [1, 4, 1, 0.2, 0.1, 0.3])
    assert message.twist.covariance[0] >= 1e6  # unknown
    points = np.full((2, 3, 3), 1.5, np.float32)
    points[0, 0] = np.nan
    confidence, dynamic = np.full((2, 3), 0.25, np.float32), np.eye(2, 3, dtype=bool)
    colours = np.full((2, 3, 3), (10, 20, 30), np.uint8)
    cloud = organised_message(points, colours, confidence, dynamic, Header())
    assert (cloud.height, cloud.width, cloud.is_dense) == (2, 3, False)
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "rgb", "confidence", "dynamic"]
    xyz, rgb = cloud_arrays(cloud)
    np.testing.assert_array_equal(xyz.reshape(points.shape), points)
    assert rgb[0].tolist() == [10, 20, 30]
    rows = np.frombuffer(cloud.data, np.float32).reshape(2, 3, 6)
    np.testing.assert_array_equal(rows[..., 4], confidence)
    np.testing.assert_array_equal(rows[..., 5], dynamic)
    with pytest.raises(InputError, match="one size"):
        organised_message(points, colours, confidence[:1], dynamic, Header())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pose_source": "pointmaps"}, "pointmaps.enabled is false"),
        ({"depth_source": "pointmaps"}, "pointmaps.enabled is false"),
        ({"pointmaps.enabled": True, "pointmaps.publish_tf": True, "pointmaps.scale_frame": "odom"}, "from itself"),
        ({"pointmaps.odom_frame": ""}, "odom_frame' is empty"),
        ({"pointmaps.enabled": True, "depth_source": "pointmaps", "depth_model": "none"}, "depth_model is 'none'"),
        ({"pointmaps.window": 2}, "between 6 and 33"),
    ],
)
def test_parameters_that_contradict_each_other(values, words):
    with pytest.raises(ConfigurationError, match=words):
        make_parameters(values)


# --- node ---


POSES = walk(12)
VIEWS = [frame(pose) for pose in POSES]


@pytest.fixture
def make(monkeypatch):
    """Opens outputs whose depth network is 1.25 times too far, and closes them."""
    seen = [*VIEWS, [np.ascontiguousarray(array[:, :128]) for array in VIEWS[8]]]
    guess = KnownDepth([view[0] for view in seen], [view[1] for view in seen], 1.25)
    monkeypatch.setattr(pointmap_estimator, "load_depth_estimator", lambda name, device: guess)
    with outputs() as opener:
        yield opener


def observation(index: int, *, width: int | None = None, seconds: float | None = None) -> Observation:
    stamp_ns = round((index * 0.1 if seconds is None else seconds) * 1e9) + 10**9
    return observation_of(VIEWS[index][0], stamp_ns, width=width)


def test_without_subscribers_nothing_is_computed_and_with_some_only_their_topics(make):
    setup = make(pose_source="tf")
    setup.output.offer(observation(0), False)
    time.sleep(0.05)
    assert setup.output._stream is None
    setup.listen(ODOMETRY, DEPTH)
    wheel = Odometry()
    for index, pose in enumerate(POSES[: WINDOW + 2]):
        wheel = Odometry(header=observation(index).image.header)
        wheel.pose.pose = messages.pose_message(pose)
        setup.output.on_wheels(wheel)
        setup.output.offer(observation(index), False)
    setup.done(WINDOW + 2)
    assert [len(setup.sent(name)) for name in (ODOMETRY, DEPTH, DYNAMIC, INFO, POINTS, "/tf")] == [8, 8, 0, 0, 0, 0]
    assert setup.output.status["point maps scale"] == GIVEN_ODOMETRY
    true = BODY_FROM_OPTICAL @ invert_pose(POSES[0]) @ POSES
    for index, odometry in enumerate(setup.sent(ODOMETRY)):
        assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", CAMERA_FRAME)
        assert odometry.header.stamp == observation(index).image.header.stamp
        np.testing.assert_allclose(messages.pose_matrix(odometry.pose.pose), true[index], atol=0.03)
        for covariance in (odometry.pose.covariance, odometry.twist.covariance):
            assert np.linalg.eigvalsh(np.reshape(covariance, (6, 6))).min() > 0
    speed = setup.sent(ODOMETRY)[4].twist.twist.linear
    step = (invert_pose(POSES[3]) @ POSES[4])[:3, 3] / 0.1
    np.testing.assert_allclose([speed.x, speed.y, speed.z], step, atol=0.15)
    depth = messages.depth_array(setup.sent(DEPTH)[0])
    assert np.median(np.abs(depth / VIEWS[0][1] - 1)[depth > 0]) < 0.05
    assert not setup.offered  # TF gives the poses of the memories


def test_bad_images_gaps_and_other_cameras_end_nothing(make):
    setup = make(**{"pose_source": "pointmaps", "pointmaps.max_gap": 1.0})
    damaged = observation(2, seconds=0.15)
    damaged.image.data = damaged.image.data[:-1]
    damaged.image.step = 1
    order = [observation(0), observation(1), damaged, *(observation(index) for index in range(2, 6))]
    for each in order:
        setup.output.offer(each, False)
    setup.done(6)
    assert wait_for(lambda: setup.offered, LIMIT_S)
    (first,) = setup.offered
    assert all(view.estimated.all() and not view.metric for view in first.views)
    assert 2 <= len(first.views) <= 4
    for view in first.views:
        true = (BODY_FROM_OPTICAL @ invert_pose(POSES[0]) @ POSES[round(view.stamp_ns / 1e8) - 10])[:3, 3]
        np.testing.assert_allclose(view.world_from_camera[:3, 3], 1.25 * true, atol=0.04)
    assert setup.output.places_images
    assert any("guess of the depth network, not metres" in text for text in setup.logged)
    # A gap, then a smaller image: two parts of the path, the second of two frames; neither is remembered.
    for each in (observation(6, seconds=9), observation(7, seconds=9.1)):
        setup.output.offer(each, False)
    setup.output.offer(observation(8, seconds=9.2, width=128), False)
    setup.done(8)
    assert wait_for(lambda: any("path is broken" in text for text in setup.logged), LIMIT_S), setup.logged
    assert len(setup.offered) == 1
    assert any("8.5 s apart" in text for text in setup.logged)
    assert any("camera, its images' size" in text for text in setup.logged)
    setup.output.restart()  # as ~/reset does
    assert wait_for(lambda: not setup.output.places_images, LIMIT_S)
    for index in range(WINDOW):
        setup.output.offer(observation(index, seconds=20 + 0.1 * index), False)
    assert wait_for(lambda: len(setup.offered) == 2, LIMIT_S), setup.logged
    np.testing.assert_allclose(setup.offered[1].views[0].world_from_camera, BODY_FROM_OPTICAL, atol=1e-6)
    assert setup.diagnostics.faults == 0


def test_a_still_camera_does_not_move(make):
    setup = make(**{"pointmaps.max_gap": 0.2})
    setup.listen(ODOMETRY)
    for index in range(3):
        still = observation(0, seconds=0.1 * index)
        setup.output.offer(still, False)
    setup.done(3)  # by the time that no image comes
    assert any("stands still" in text for text in setup.logged)
    for odometry in setup.sent(ODOMETRY):
        np.testing.assert_allclose(messages.pose_matrix(odometry.pose.pose), BODY_FROM_OPTICAL, atol=1e-9)
        assert min(np.diag(np.reshape(odometry.pose.covariance, (6, 6)))) > 0


def test_poses_of_tf_hold_and_get_depth(make):
    setup = make(depth_source="pointmaps")
    for index in range(WINDOW):
        seen = replace(observation(index), world_from_camera=POSES[index])
        setup.output.offer(seen, True)
    setup.done(WINDOW)
    assert wait_for(lambda: setup.offered, LIMIT_S)
    view = setup.offered[0].views[0]
    np.testing.assert_allclose(view.world_from_camera, POSES[0])
    assert view.metric
    assert view.estimated.all()
    assert not setup.output.places_images
