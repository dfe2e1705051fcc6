"""Goals end to end, and cancelled, superseded and abandoned ones, over DDS against a node in its own process."""

from __future__ import annotations

import time

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from action_msgs.srv import CancelGoal
from geometry_msgs.msg import PoseStamped
from helpers.node_harness import CAMERA, HEIGHT, NODE, WIDTH, Robot, camera_at, running, scene, wait_for
from helpers.paths import HELPERS
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.msg import ImaginedView
from worldstereo_ros.srv import ImagineView

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.conversions.clouds import cloud_arrays
from worldstereo_ros.visualization.images import provenance_colours

SUCCEEDED, ABORTED, CANCELED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED, GoalStatus.STATUS_CANCELED
Result = ImaginePath.Result


@pytest.fixture(scope="module")
def geometric():
    """A node with the geometric pipeline and one observation in memory."""
    with running() as (node, robot):
        robot.publish_view()
        yield node, robot


@pytest.fixture(scope="module")
def slow():
    """A node whose pipeline takes 0.2 s per view in ten steps, with one observation in memory."""
    with running({"model": "faulty"}, script=HELPERS / "fault_injection_node.py") as (node, robot):
        robot.prompt = "slow"
        robot.publish_view()
        yield node, robot


def test_goal_publishes_every_output(geometric):
    _node, robot = geometric
    kinds = {
        "image": (Image, qos.VIEW),
        "camera_info": (CameraInfo, qos.VIEW),
        "depth": (Image, qos.VIEW),
        "observed": (Image, qos.VIEW),
        "provenance": (Image, qos.VIEW),
        "provenance/colour": (Image, qos.VIEW),
        "confidence": (Image, qos.VIEW),
        "depth_confidence": (Image, qos.VIEW),
        "conditioning": (Image, qos.VIEW),
        "view": (ImaginedView, qos.VIEW),
        "points": (PointCloud2, qos.CLOUD),
        "map": (PointCloud2, qos.MAP),
        "views": (MarkerArray, qos.MAP),
    }
    received = {name: robot.subscribe(f"{NODE}/{name}", *kind) for name, kind in kinds.items()}
    transforms = robot.subscribe("/tf", TFMessage, qos.TF)
    wait_for(lambda: received["map"] and received["views"])  # latched, so received on connection
    time.sleep(0.3)  # discovery of the volatile topics
    feedback: list = []
    status, result = robot.result(robot.send(robot.goal(length=0.4, poses=5), feedback))

    assert (status, result.error_code, result.error_msg) == (SUCCEEDED, Result.NONE, "")
    assert result.views_done == 5
    assert 0.5 < result.coverage <= 1.0
    assert 0.3 < result.observed_fraction <= 1.0
    assert result.estimated_fraction < 0.05  # all depth was measured; gaps of it between surfaces are estimated
    assert 0 < result.seconds_to_first <= result.seconds
    assert list(result.blocked) == [False] * 5
    assert feedback[0].stage == "waiting"
    assert {item.stage for item in feedback} >= {"rendering", "imagining"}
    assert [item.views_done for item in feedback] == sorted(item.views_done for item in feedback)
    assert feedback[-1].views == 5

    per_view = tuple(name for name, (_, profile) in kinds.items() if profile is qos.VIEW)
    assert wait_for(lambda: all(len(received[name]) >= 5 for name in per_view) and received["points"])
    image_topics = tuple(name for name in per_view if name != "view")
    for index, view in enumerate(received["view"]):
        headers = [received[name][index].header for name in image_topics]
        assert all(header == view.header for header in headers)
        assert view.header.frame_id == "imagined_camera"
        assert (view.index, view.count) == (index, 5)
        assert view.pose.header.frame_id == "map"
        np.testing.assert_allclose(messages.pose_matrix(view.pose.pose), camera_at(0.1 * index), atol=1e-6)
        assert messages.nanoseconds(view.observation_stamp) < messages.nanoseconds(view.header.stamp)
        assert (view.image.encoding, view.image.width, view.image.height) == ("rgb8", WIDTH, HEIGHT)
        assert len(view.image.data) == WIDTH * HEIGHT * 3
        assert (view.depth.encoding, len(view.depth.data)) == ("32FC1", WIDTH * HEIGHT * 4)
        assert (view.observed.encoding, len(view.observed.data)) == ("mono8", WIDTH * HEIGHT)
        assert set(np.unique(view.observed.data)) <= {0, 255}
        assert abs(np.mean(view.observed.data) / 255 - view.observed_fraction) < 1e-4
        classes = messages.grey_array(view.provenance)
        assert set(np.unique(classes)) <= {Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED}
        np.testing.assert_array_equal((classes == Provenance.OBSERVED).ravel(), np.asarray(view.observed.data) == 255)
        assert (classes == Provenance.ESTIMATED).mean() == pytest.approx(view.estimated_fraction, abs=1e-6)
        assert view.provenance == received["provenance"][index]
        colours = messages.image_array(received["provenance/colour"][index])
        np.testing.assert_array_equal(colours, provenance_colours(classes))
        assert view.depth_confidence == received["depth_confidence"][index]
        assert view.confidence == received["confidence"][index]
        assert (view.confidence.encoding, len(view.confidence.data)) == ("mono8", WIDTH * HEIGHT)
        observed = classes == Provenance.OBSERVED
        confidence = messages.grey_array(view.confidence)
        assert observed.all() or confidence[observed].mean() > confidence[~observed].mean()
        np.testing.assert_allclose(view.camera_info.k, CAMERA.matrix.reshape(-1))
    # The first pose is that of the observation: observed pixels must equal those of the observation.
    first = messages.image_array(received["view"][0].image).astype(int)
    observed = np.asarray(received["view"][0].observed.data).reshape(HEIGHT, WIDTH) == 255
    assert observed.mean() > 0.8
    assert np.abs(first - scene()[0])[observed].mean() < 6
    depth = messages.depth_array(received["view"][0].depth)
    assert np.median(np.abs(depth - scene()[1])[observed]) < 0.02
    # The pose of every view is on /tf, under the frame_id of its header.
    sent = [t for message in transforms for t in message.transforms if t.child_frame_id == "imagined_camera"]
    assert len(sent) >= 5
    assert sent[0].header.frame_id == "map"


def test_goal_through_an_observed_box_says_which_poses_are_blocked(geometric):
    """A box is 1.4 m ahead, which hides the wall behind it; the poses are 1 m apart."""
    _, robot = geometric
    views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
    time.sleep(0.3)  # discovery
    status, result = robot.result(robot.send(robot.goal(length=4.0, poses=5)))
    assert status == SUCCEEDED
    assert list(result.blocked) == [False, False, True, False, False]
    assert wait_for(lambda: len(views) >= 5)
    assert [view.blocked for view in views] == list(result.blocked)


def test_map_is_in_world_frame(geometric):
    _, robot = geometric
    received = robot.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)
    assert wait_for(lambda: received)
    cloud = received[-1]
    assert cloud.header.frame_id == "map"
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "rgb"]
    assert cloud.point_step == 16
    points, colours = cloud_arrays(cloud)
    assert len(points) > 1000
    assert colours.shape == (len(points), 3)
    # The wall is 2 m ahead of the camera, which is 0.1 m ahead of the base; the box is 1.4 m ahead of the camera.
    assert np.isclose(np.median(points[:, 0]), 2.1, atol=0.05)
    assert np.isclose(points[:, 0].min(), 1.5, atol=0.05)


def test_points_are_in_base_frame_at_stamp_of_its_transform(geometric):
    _, robot = geometric
    received = robot.subscribe(f"{NODE}/points", PointCloud2, qos.CLOUD)
    time.sleep(0.3)
    robot.send_tf(0.0)
    robot.imagine(robot.goal(length=0.0, poses=1))
    assert wait_for(lambda: received)
    cloud = received[-1]
    assert cloud.header.frame_id == "base_link"
    names = ["x", "y", "z", "rgb", "observed", "confidence", "depth_confidence", "provenance"]
    assert [field.name for field in cloud.fields] == names
    points = np.frombuffer(cloud.data, "<f4").reshape(-1, 8)
    assert np.isclose(np.median(points[:, 0]), 2.1, atol=0.05)
    assert set(np.unique(points[:, 4])) <= {0.0, 1.0}
    assert 0 <= points[:, 5].min() < points[:, 5].max() <= 1


def test_markers_show_observed_and_imagined_views(geometric):
    _, robot = geometric
    robot.imagine()
    received = robot.subscribe(f"{NODE}/views", MarkerArray, qos.MAP)
    assert wait_for(lambda: received and any(m.ns == "imagined path" and m.points for m in received[-1].markers))
    by_name = {marker.ns: marker for marker in received[-1].markers}
    assert set(by_name) == {"observed views", "estimated views", "imagined views", "imagined path"}
    assert by_name["estimated views"].action == Marker.DELETE
    assert len(by_name["observed views"].points) % 16 == 0
    assert by_name["observed views"].header.frame_id == "map"
    assert by_name["imagined path"].type == Marker.LINE_STRIP


def test_late_subscriber_receives_map(geometric):
    _node, robot = geometric
    late = Robot(robot.context.get_domain_id(), "late")
    try:
        received = late.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)
        assert wait_for(lambda: received)
        assert received[0].width > 1000
    finally:
        late.close()


def test_remembered_views_are_in_imagined_map_only(geometric):
    _, robot = geometric
    imagined = robot.subscribe(f"{NODE}/map/imagined", PointCloud2, qos.MAP)
    observed = robot.subscribe(f"{NODE}/map", PointCloud2, qos.MAP)
    assert wait_for(lambda: imagined and observed)
    before = observed[-1].width
    # Sideways, so that the views contain areas that the memory lacks.
    goal = robot.goal(length=0.0, poses=3, remember=True)
    for index, pose in enumerate(goal.path.poses):
        pose.pose.position.y = 0.3 * index
        pose.pose.orientation.w = -1.0  # 0 0 0 1 would be no heading
    status, _ = robot.imagine(goal)
    assert status == SUCCEEDED
    assert wait_for(lambda: imagined[-1].width > 0)
    assert observed[-1].width == before


def test_path_topic_starts_job(geometric):
    _, robot = geometric
    views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
    time.sleep(0.3)
    robot.path.publish(robot.goal(poses=3).path)
    assert wait_for(lambda: len(views) == 3)


def test_imagine_view_service_returns_view(geometric):
    _, robot = geometric
    pose = PoseStamped(header=Header(frame_id="map"))
    pose.pose.orientation.w = 1.0
    answer = robot.call("imagine_view", ImagineView.Request(pose=pose))
    assert (answer.error_code, answer.error_msg) == (0, "")
    assert len(answer.view.image.data) == WIDTH * HEIGHT * 3
    np.testing.assert_allclose(messages.pose_matrix(answer.view.pose.pose), camera_at(0), atol=1e-6)
    pose.pose.orientation.w = 0.0
    answer = robot.call("imagine_view", ImagineView.Request(pose=pose))
    assert answer.error_code == Result.INVALID_PATH
    assert "norm 0" in answer.error_msg


def test_same_random_seed_gives_same_views(geometric):
    _, robot = geometric
    views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
    time.sleep(0.3)
    for _ in range(2):
        robot.imagine(robot.goal(poses=2, seed=7))
    assert wait_for(lambda: len(views) == 4)
    assert views[0].image.data == views[2].image.data
    assert views[1].image.data == views[3].image.data


# --- clients that cancel, supersede and vanish ---


def test_cancel_of_running_and_finished_goal(slow):
    _, robot = slow
    feedback: list = []
    running_goal = robot.send(robot.goal(poses=50), feedback)
    assert wait_for(lambda: any(item.views_done >= 1 for item in feedback))
    answer = robot.wait(running_goal.cancel_goal_async())
    again = robot.wait(running_goal.cancel_goal_async())
    assert len(answer.goals_canceling) == 1
    assert again.return_code in (CancelGoal.Response.ERROR_NONE, CancelGoal.Response.ERROR_GOAL_TERMINATED)
    status, result = robot.result(running_goal)
    assert (status, result.error_code) == (CANCELED, Result.CANCELED)
    assert 1 <= result.views_done < 50
    # A finished goal cannot be cancelled, and the next goal succeeds.
    late = robot.wait(running_goal.cancel_goal_async())
    assert late.return_code == CancelGoal.Response.ERROR_GOAL_TERMINATED
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED


def test_cancel_of_waiting_goal(slow):
    _, robot = slow
    view = robot.services["imagine_view"].call_async(
        ImagineView.Request(pose=_origin(), prompt="slow")
    )  # occupies the worker
    waiting = robot.send(robot.goal(poses=3))
    robot.wait(waiting.cancel_goal_async())
    status, result = robot.result(waiting)
    assert (status, result.error_code, result.views_done) == (CANCELED, Result.CANCELED, 0)
    assert robot.wait(view).error_code == 0


def test_newer_goal_supersedes_goals_of_all_clients(slow):
    _, robot = slow
    other = Robot(robot.context.get_domain_id(), "other")
    other.prompt = "slow"
    try:
        assert wait_for(other.action.server_is_ready)
        feedback: list = []
        first = robot.send(robot.goal(poses=50), feedback)
        assert wait_for(lambda: any(item.views_done >= 1 for item in feedback))
        second = other.send(other.goal(poses=2))
        status, result = robot.result(first)
        assert (status, result.error_code) == (ABORTED, Result.SUPERSEDED)
        assert "newer" in result.error_msg
        status, result = other.result(second)
        assert (status, result.views_done) == (SUCCEEDED, 2)
    finally:
        other.close()


def test_pending_goal_is_superseded(slow):
    _, robot = slow
    goals = [robot.send(robot.goal(poses=30)) for _ in range(3)] + [robot.send(robot.goal(poses=1))]
    ends = [robot.result(goal) for goal in goals]
    assert [status for status, _ in ends] == [ABORTED, ABORTED, ABORTED, SUCCEEDED]
    assert [result.error_code for _, result in ends[:3]] == [Result.SUPERSEDED] * 3


def test_single_view_waits_for_running_path(slow):
    _, robot = slow
    path = robot.send(robot.goal(poses=4))
    answer = robot.call("imagine_view", ImagineView.Request(pose=_origin(), prompt="slow"))
    assert answer.error_code == 0
    assert robot.result(path)[0] == SUCCEEDED


def test_node_survives_vanished_client(slow):
    _, robot = slow
    vanishing = Robot(robot.context.get_domain_id(), "vanishing")
    vanishing.prompt = "slow"
    assert wait_for(vanishing.action.server_is_ready)
    vanishing.send(vanishing.goal(poses=3))
    vanishing.close()
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
    assert robot.diagnostics()["level node"] == "0"


def test_fast_camera_during_job_drops_and_counts_images(slow):
    _, robot = slow
    before = robot.diagnostics()
    job = robot.send(robot.goal(poses=8))
    for index in range(60):
        image, info, depth = robot.view(seed=index % 3)
        robot.send_tf(0.0, image.header.stamp)
        for publisher, message in ((robot.info, info), (robot.depth, depth), (robot.image, image)):
            publisher.publish(message)
        time.sleep(1 / 60)
    status, result = robot.result(job)
    assert (status, result.views_done) == (SUCCEEDED, 8)
    assert wait_for(lambda: robot.observations_taken() > int(before["observations taken"]))
    after = robot.diagnostics()
    assert int(after["observations dropped"]) - int(before["observations dropped"]) > 20
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED


def test_reset_ends_job_and_clears_memory(slow):
    _, robot = slow
    job = robot.send(robot.goal(poses=50))
    answer = robot.call("reset", Trigger.Request())
    assert answer.success
    assert "Removed" in answer.message
    status, result = robot.result(job)
    assert status == ABORTED
    assert result.error_code == Result.CANCELED
    assert robot.imagine(robot.goal(poses=1))[1].error_code == Result.NO_OBSERVATION
    robot.publish_view()
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED


def _origin() -> PoseStamped:
    pose = PoseStamped(header=Header(frame_id="map"))
    pose.pose.orientation.w = 1.0
    return pose
