"""Loops that are closed, and parts that are joined, while the node runs: without DDS, and once with it."""

from __future__ import annotations

import numpy as np
import pytest
from geometry_msgs.msg import Point, Pose
from helpers import drifting_walk
from helpers.box_room import HIGH, LOW
from helpers.node_harness import CAMERA_FRAME, NODE, running, wait_for
from helpers.paths import REPOSITORY
from helpers.pointmap_output import LIMIT_S, observation_of, outputs
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from tf2_msgs.msg import TFMessage

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.parameters import ConfigurationError, make_parameters
from worldstereo_ros.ros.node.pointmap_estimator import StreamFactory
from worldstereo_ros.ros.node.pointmap_publishers import ODOMETRY, PATH

STEP_NS = 10**8
MAX_WAITING = 24  # images that the node has not used yet: fewer than it keeps
TRUE = BODY_FROM_OPTICAL @ drifting_walk.truth()
DRIFTED = BODY_FROM_OPTICAL @ drifting_walk.path()
ROOM_FROM_WORLD = drifting_walk.poses()[0] @ invert_pose(BODY_FROM_OPTICAL)


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(StreamFactory, "open", drifting_walk.open_stream)
    with outputs() as opener:
        yield opener


def send(setup, numbers, first_ns=10**9):
    """Sends frames of the walk one by one, so that none is dropped, and returns the stamp after the last one."""
    for stamp, number in enumerate(numbers):
        setup.output.offer(observation_of(drifting_walk.image(number), first_ns + stamp * STEP_NS), False)
        assert wait_for(lambda: not setup.output._queue, LIMIT_S)
    return first_ns + len(numbers) * STEP_NS


def off(pose, number):
    return np.linalg.norm(pose[:3, 3] - TRUE[number][:3, 3])


def wall_error(cloud):
    """Median distance of points to the walls of the room."""
    points = cloud.points @ ROOM_FROM_WORLD[:3, :3].T + ROOM_FROM_WORLD[:3, 3]
    return np.median(np.minimum(np.abs(points - LOW), np.abs(points - HIGH)).min(axis=1))


def poses_of(message):
    return np.stack([messages.pose_matrix(each.pose) for each in message.poses])


def test_odometry_never_jumps_and_the_correction_is_between_world_and_odom(make):
    setup = make(remembers=True, pose_source="pointmaps", **{"pointmaps.publish_tf": True})
    setup.listen(ODOMETRY, PATH)
    send(setup, range(drifting_walk.FRAMES))
    setup.done(drifting_walk.FRAMES - 4)
    odometry = setup.sent(ODOMETRY)
    assert {each.header.frame_id for each in odometry} == {"odom"}
    moved = np.stack([messages.pose_matrix(each.pose.pose) for each in odometry])
    np.testing.assert_allclose(moved, DRIFTED[: len(moved)], atol=1e-6)  # the path as it was estimated, to the end
    status = setup.output.status
    assert status["point maps loops closed"] >= 2
    assert status["point maps place"] == "known"
    assert "guess" in status["point maps last correction"]
    transforms = [message.transforms for message in setup.sent("/tf")]
    assert {(each.header.frame_id, each.child_frame_id) for pair in transforms for each in pair} == {
        ("odom", CAMERA_FRAME),
        ("map", "odom"),
    }
    of_camera, of_odom = transforms[-1]
    assert of_camera.header.stamp == of_odom.header.stamp
    last = len(moved) - 1
    chained = transform_matrix(of_odom) @ transform_matrix(of_camera)
    assert off(chained, last) < 0.3 * off(DRIFTED[last], last)
    np.testing.assert_allclose(transform_matrix(transforms[0][1]), np.eye(4), atol=1e-9)
    path = setup.sent(PATH)[-1]
    assert path.header.frame_id == "map"
    numbers = [(messages.nanoseconds(each.header.stamp) - 10**9) // STEP_NS for each in path.poses]
    assert len(numbers) > 15
    found = poses_of(path)
    assert max(off(pose, number) for pose, number in zip(found, numbers, strict=True)) < 0.3 * off(DRIFTED[last], last)
    for each in odometry:  # corrections are no knowledge about the path itself
        assert np.linalg.eigvalsh(np.reshape(each.pose.covariance, (6, 6))).min() > 0
    spread = [np.trace(np.reshape(each.pose.covariance, (6, 6))[:3, :3]) for each in odometry]
    assert spread[40] > spread[5]
    assert setup.diagnostics.faults == 0


def transform_matrix(transform):
    moved = transform.transform
    return messages.pose_matrix(
        Pose(
            position=Point(x=moved.translation.x, y=moved.translation.y, z=moved.translation.z),
            orientation=moved.rotation,
        )
    )


def test_what_is_remembered_moves_with_the_path(make):
    errors = []
    for closing in (True, False):
        setup = make(remembers=True, pose_source="pointmaps", **{"pointmaps.close_loops": closing})
        send(setup, range(drifting_walk.FRAMES))
        setup.done(drifting_walk.FRAMES - 4)
        errors.append(wall_error(setup.world.cloud))
        assert any("A place was seen again" in text for text in setup.logged) == closing
        for view in setup.world.bank.views:
            number = (view.stamp_ns - 10**9) // STEP_NS
            if closing and 18 <= number <= 27:  # remembered before the first loop
                assert off(view.world_from_camera, number) < 0.6 * off(DRIFTED[number], number)
            elif closing:
                assert off(view.world_from_camera, number) < 0.2 * off(DRIFTED[-1], -1)
    assert errors[0] < 0.5 * errors[1]


def test_a_part_after_a_break_is_joined_and_remembered_without_a_reset(make):
    setup = make(remembers=True, pose_source="pointmaps", **{"pointmaps.max_gap": 1.0})
    setup.listen(ODOMETRY, PATH)
    stamp = send(setup, range(30))
    later = stamp + 30 * STEP_NS
    send(setup, range(60, 80), later)
    setup.done(30 + 16)
    status = setup.output.status
    assert (status["point maps shots joined"], status["point maps path broken"]) == (1, 1)
    assert status["point maps place"] == "known"
    assert any("joined to the first" in text for text in setup.logged)
    assert wait_for(lambda: setup.offered[-1].views[-1].stamp_ns > later, LIMIT_S)
    views = [view for view in setup.world.bank.views if view.stamp_ns >= later]
    assert views
    for view in views:  # where it really is, though nothing saw how it came there
        assert off(view.world_from_camera, 60 + (view.stamp_ns - later) // STEP_NS) < 0.1
    path = setup.sent(PATH)[-1]
    assert messages.nanoseconds(path.poses[0].header.stamp) == 10**9
    assert messages.nanoseconds(path.poses[-1].header.stamp) >= later
    after = [each for each in setup.sent(ODOMETRY) if messages.nanoseconds(each.header.stamp) >= later]
    before = [each for each in setup.sent(ODOMETRY) if messages.nanoseconds(each.header.stamp) < later]
    step = messages.pose_matrix(after[0].pose.pose)[:3, 3] - messages.pose_matrix(before[-1].pose.pose)[:3, 3]
    assert np.linalg.norm(step) < 0.1  # no jump
    # After it was joined, its steps have the unit of the first part.
    places = [messages.pose_matrix(each.pose.pose)[:3, 3] for each in after[-3:]]
    number = 60 + (messages.nanoseconds(after[-1].header.stamp) - later) // STEP_NS
    true = np.linalg.norm(np.diff(TRUE[number - 2 : number + 1, :3, 3], axis=0))
    assert np.linalg.norm(np.diff(places, axis=0)) == pytest.approx(true, rel=0.15)  # else 1.26 times as long
    assert after[-1].pose.covariance[0] > 1000  # what happened in between is as unknown as before


def test_a_part_of_another_place_is_not_remembered(make):
    setup = make(remembers=True, pose_source="pointmaps", **{"pointmaps.max_gap": 1.0})
    stamp = send(setup, range(30))
    setup.done(26)
    offered = len(setup.offered)
    later = stamp + 30 * STEP_NS
    send(setup, range(drifting_walk.AWAY + 60, drifting_walk.AWAY + 80), later)
    setup.done(30 + 16)
    assert setup.output.status["point maps shots joined"] == 0
    assert "not known" in setup.output.status["point maps place"]
    assert not [each for each in setup.offered if each.views[-1].stamp_ns >= later]
    assert len(setup.offered) >= offered
    assert any("until the camera sees again" in text for text in setup.logged)


def test_without_close_loops_all_is_in_the_world_and_a_break_stays_one(make):
    setup = make(pose_source="pointmaps", **{"pointmaps.close_loops": False, "pointmaps.max_gap": 1.0})
    setup.listen(ODOMETRY, PATH)
    stamp = send(setup, range(30))
    later = stamp + 30 * STEP_NS
    send(setup, range(60, 80), later)
    setup.done(30 + 16)
    assert {each.header.frame_id for each in setup.sent(ODOMETRY)} == {"map"}
    assert not setup.sent(PATH)
    assert setup.output.status["point maps keyframes"] == 0
    assert not [each for each in setup.offered if each.views[-1].stamp_ns >= later]
    assert any("nothing is remembered any more. Call ~/reset" in text for text in setup.logged)


def test_memories_of_other_poses_stay_where_they_are(make):
    setup = make(pose_source="tf")
    setup.listen(PATH)
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, 3.0]
    image = drifting_walk.image(0)
    camera = drifting_walk.video_scene.CAMERA
    setup.world.observe(View(image, camera, pose, np.full(image.shape[:2], 2, np.float32), stamp_ns=2 * 10**9))
    points = setup.world.cloud.points.copy()
    send(setup, range(drifting_walk.FRAMES))
    setup.done(drifting_walk.FRAMES - 4)
    assert setup.output.status["point maps loops closed"] >= 1
    np.testing.assert_array_equal(setup.world.cloud.points, points)
    np.testing.assert_array_equal(setup.world.bank.views[0].world_from_camera, pose)
    path = setup.sent(PATH)[-1]  # in odom: it ends where the odometry is, and the past is corrected
    assert path.header.frame_id == "odom"
    last = (messages.nanoseconds(path.poses[-1].header.stamp) - 10**9) // STEP_NS
    np.testing.assert_allclose(poses_of(path)[-1][:3, 3], DRIFTED[last][:3, 3], atol=0.03)
    assert np.linalg.norm(poses_of(path)[0][:3, 3] - TRUE[0][:3, 3]) > 0.1


def test_while_nothing_is_remembered_the_world_begins_with_each_part(make):
    setup = make(pose_source="pointmaps", **{"pointmaps.max_gap": 1.0})
    setup.listen(PATH)
    setup.node.publishers_by_name[ODOMETRY].is_activated = False  # as a node that is not active
    stamp = send(setup, range(20))
    setup.done(20)  # the last ones by the time that no image comes
    assert not setup.offered
    setup.node.publishers_by_name[ODOMETRY].is_activated = True
    later = stamp + 30 * STEP_NS
    send(setup, range(drifting_walk.AWAY, drifting_walk.AWAY + 20), later)
    assert wait_for(lambda: setup.offered, LIMIT_S), setup.logged
    assert setup.output.status["point maps place"] == "known"


def test_a_reset_begins_anew(make):
    setup = make(pose_source="pointmaps")
    stamp = send(setup, range(drifting_walk.FRAMES))
    setup.done(drifting_walk.FRAMES - 4)
    assert setup.output.status["point maps loops closed"] >= 1
    setup.output.restart()
    assert wait_for(lambda: not setup.output.places_images, LIMIT_S)
    send(setup, range(10), stamp + 10**10)
    assert wait_for(lambda: setup.output.status["point maps keyframes"], LIMIT_S)
    status = setup.output.status
    assert (status["point maps loops closed"], status["point maps last correction"]) == (0, "none")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pointmaps.odom_frame": "map"}, "and so is world_frame"),
        ({"pointmaps.publish_tf": True, "pointmaps.scale_frame": "map"}, "from itself"),
        ({"pointmaps.publish_tf": True, "pointmaps.scale_frame": "odom"}, "from itself"),
    ],
)
def test_frames_that_cannot_be_two(values, words):
    with pytest.raises(ConfigurationError, match=words):
        make_parameters({"pointmaps.enabled": True, "pose_source": "pointmaps"} | values)
    if "pointmaps.publish_tf" not in values:
        make_parameters(
            {"pointmaps.enabled": True, "pose_source": "pointmaps", "pointmaps.close_loops": False} | values
        )


# --- a node in a process of its own ---


def publish(robot, numbers, first_ns):
    """Publishes frames of the walk, no faster than the node takes them; returns the stamp after the last one."""
    value = lambda key: int(robot.diagnostics().get(key, 0))  # noqa: E731
    done = value("point maps")
    for sent, number in enumerate(numbers):
        message = observation_of(drifting_walk.image(number), first_ns + sent * STEP_NS)
        before = value("image messages")
        robot.info.publish(message.info)
        robot.image.publish(message.image)
        assert wait_for(lambda before=before: value("image messages") > before)
        assert wait_for(lambda sent=sent: value("point maps") - done > sent - MAX_WAITING, LIMIT_S), robot.diagnostics()
    return first_ns + len(numbers) * STEP_NS


def test_a_node_corrects_its_path_joins_its_parts_and_goes_on_remembering():
    parameters = {
        "pose_source": "pointmaps", "depth_source": "pointmaps", "pointmaps.enabled": True, "pointmaps.window": 6,
        "pointmaps.max_rate": 0.0, "pointmaps.max_gap": 1.0, "pointmaps.publish_tf": True,
    }  # fmt: skip
    script = REPOSITORY / "tests" / "helpers" / "pointmap_node.py"
    with running(parameters, script=script) as (node, robot):
        odometry = robot.subscribe(f"{NODE}/odometry", Odometry, qos.VIEW_RECEIVER)
        transforms = robot.subscribe("/tf", TFMessage, qos.TF)
        stamp = publish(robot, range(drifting_walk.FRAMES), robot.node.get_clock().now().nanoseconds)
        first_ns = stamp - drifting_walk.FRAMES * STEP_NS
        assert wait_for(lambda: int(robot.diagnostics().get("point maps loops closed", 0)) >= 2), robot.diagnostics()
        node.wait_log("A place was seen again")
        taken = robot.observations_taken()
        later = stamp + 30 * STEP_NS
        publish(robot, range(60, 80), later)
        assert wait_for(lambda: robot.diagnostics().get("point maps shots joined") == "1"), robot.diagnostics()
        node.wait_log("joined to the first")
        assert wait_for(lambda: robot.observations_taken() > taken)
        values = robot.diagnostics()
        assert (values["point maps path broken"], values["point maps place"]) == ("1", "known")
        # A listener that comes late has the corrected path at once.
        paths = robot.subscribe(f"{NODE}/pointmaps/path", PathMessage, qos.MAP)
        assert wait_for(lambda: paths)
        path = paths[-1]
        assert path.header.frame_id == "map"
        stamps = [messages.nanoseconds(each.header.stamp) for each in path.poses]
        assert stamps[0] == first_ns
        assert stamps[-1] >= later
        worst = 0.3 * off(DRIFTED[-1], -1)
        for at, pose in zip(stamps, poses_of(path), strict=True):
            number = 60 + (at - later) // STEP_NS if at >= later else (at - first_ns) // STEP_NS
            assert off(pose, number) < worst
        # The odometry never jumped: its steps are those of the estimate, and nothing at the break.
        assert {(each.header.frame_id, each.child_frame_id) for each in odometry} == {("odom", CAMERA_FRAME)}
        places = np.stack([messages.pose_matrix(each.pose.pose)[:3, 3] for each in odometry])
        longest = np.linalg.norm(np.diff(DRIFTED[:, :3, 3], axis=0), axis=1).max()
        assert len(places) > 60
        assert np.linalg.norm(np.diff(places, axis=0), axis=1).max() < 1.5 * longest
        assert [each.child_frame_id for each in transforms[-1].transforms] == [CAMERA_FRAME, "odom"]
        of_camera, of_odom = transforms[-1].transforms
        number = 60 + (messages.nanoseconds(of_camera.header.stamp) - later) // STEP_NS
        assert off(transform_matrix(of_odom) @ transform_matrix(of_camera), number) < worst
        assert values["faults"] == "0"
