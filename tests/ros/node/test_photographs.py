"""Captures in any order: photographs without poses, older images, and places reconstructed from what is remembered."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from geometry_msgs.msg import PoseStamped
from helpers.node_harness import NODE, running, wait_for
from helpers.photo_scene import CAMERA, arc, pose_at, render, write_photos
from rclpy.action import ActionClient
from std_msgs.msg import Header
from worldstereo_ros.action import Reconstruct as ReconstructAction
from worldstereo_ros.srv import Reconstruct

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.ros.client.places import PhotographRejectedError
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.photographs import MAX_QUEUED, MAX_UNPLACED, Photograph, PhotographQueue

LIMIT_S = 200.0  # of every wait for a reconstruction; says nothing about speed
POSES = arc(7)
POSED = POSES[::2]
POSE_MESSAGES = {"pose_source": "topic", "path_pose_frame": "camera", "depth_model": "none", "voxel_size": 0.02}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """A node that remembers four posed views, its client, the robot, and the folder of maps and photographs."""
    folder = tmp_path_factory.mktemp("maps")
    write_photos(folder / "photographs" / "phone", POSES[1::2])
    with running({**POSE_MESSAGES, "map_directory": str(folder)}) as (node, robot), WorldStereoClient() as client:
        client.wait_until_ready()
        for pose in POSED:
            client.add_observation(render(pose))
        # Diagnostics say it a little later than the client, and tests count from here.
        assert wait_for(lambda: robot.observations_taken() == len(POSED)), robot.diagnostics()
        yield node, robot, client, folder


# --- photographs without poses ---


def test_photograph_without_pose_is_placed(place):
    node, robot, client, _ = place
    camera = Camera(200, 240, 260.0, 260.0, 99.5, 119.5)  # another one than the robot's
    view = render(pose_at(np.radians(3.0), distance=3.0), camera)
    before = robot.observations_taken()
    stamp_ns = 5_000_000_000  # long before the images of the robot
    pose = client.add_photograph(view.image, camera, stamp_ns=stamp_ns)
    assert np.linalg.norm(pose[:3, 3] - view.world_from_camera[:3, 3]) < 0.03
    assert wait_for(lambda: robot.observations_taken() == before + 1)
    node.wait_log("Placed a photograph from photograph: .* shared points agree")
    assert "jumped back" not in node.log
    # The camera of the robot is still that of the imagined views.
    result = client.imagine(POSED[1:2])
    assert (result.error_code, result.views[0].camera.width) == (0, CAMERA.width)


def test_photograph_of_another_place_is_rejected_with_a_sentence(place):
    _, robot, client, _ = place
    coarse = np.random.default_rng(1).integers(0, 255, (45, 60, 3), dtype=np.uint8)
    before = robot.observations_taken(), robot.diagnostics()["points"]
    with pytest.raises(PhotographRejectedError, match=r"does not overlap the map.*tried again"):
        client.add_photograph(np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1)), CAMERA)
    assert (robot.observations_taken(), robot.diagnostics()["points"]) == before


def test_photograph_without_camera_info_is_rejected(place):
    node, robot, _, _ = place
    publisher = robot.node.create_publisher(type(robot.view()[0]), "/photograph", qos.VIEW)
    assert wait_for(lambda: publisher.get_subscription_count() > 0)
    publisher.publish(messages.colour_message(render(POSES[1]).image, Header(frame_id="telephone")))
    node.wait_log("photograph: No camera_info .* Send it on /photograph/camera_info")
    robot.node.destroy_publisher(publisher)


def test_photograph_that_comes_first_is_placed_when_the_map_reaches_it():
    """The photograph is there before anything that it overlaps; images come with falling stamps."""
    with running(POSE_MESSAGES) as (node, robot):
        photograph = render(POSES[3])
        poses = robot.subscribe(f"{NODE}/photograph/pose", PoseStamped, qos.VIEW)
        image = robot.node.create_publisher(type(robot.view()[0]), "/photograph", qos.VIEW)
        info = robot.node.create_publisher(type(robot.view()[1]), "/photograph/camera_info", qos.VIEW)
        assert wait_for(lambda: image.get_subscription_count() and info.get_subscription_count())
        header = Header(frame_id="telephone", stamp=messages.time_message(9 * 10**9))
        info.publish(messages.info_message(CAMERA, header))
        image.publish(messages.colour_message(photograph.image, header))
        node.wait_log("photograph: There is no capture with a pose yet")
        for number, pose in enumerate(POSED):
            view = render(pose)
            header = Header(frame_id="camera", stamp=messages.time_message((100 - 10 * number) * 10**9))
            world = Header(frame_id="map", stamp=header.stamp)
            robot.pose.publish(PoseStamped(header=world, pose=messages.pose_message(pose)))
            robot.info.publish(messages.info_message(CAMERA, header))
            robot.depth.publish(messages.depth_message(view.depth, header))
            robot.image.publish(messages.colour_message(view.image, header))
            assert wait_for(lambda number=number: robot.observations_taken() > number), robot.diagnostics()
        assert wait_for(lambda: poses, 60), node.log
        assert np.linalg.norm(messages.pose_matrix(poses[0].pose)[:3, 3] - POSES[3][:3, 3]) < 0.03
        assert messages.nanoseconds(poses[0].header.stamp) == 9 * 10**9
        assert "jumped back" not in node.log


def test_queue_is_bounded_and_tries_again_later():
    info, image = messages.info_message(CAMERA, Header()), messages.colour_message(render(POSES[0]).image, Header())
    photographs = [Photograph(image, info, None, np.eye(4), number, "photograph") for number in range(MAX_QUEUED + 1)]
    queue = PhotographQueue()
    assert [queue.put(one) for one in photographs] == [True] * MAX_QUEUED + [False]
    assert queue.take().stamp_ns == 0
    queue.clear()
    given_up = [queue.keep(one, observations=8) for one in photographs[: MAX_UNPLACED + 1]]
    assert given_up[:-1] == [None] * MAX_UNPLACED
    assert given_up[-1].stamp_ns == 0  # the oldest
    queue.retry(9)
    assert queue.peek() is None
    queue.retry(10)  # a quarter more; one at a time
    assert (queue.take().stamp_ns, queue.peek()) == (1, None)


# --- reconstructions ---


def test_reconstruction_while_the_node_works(place):
    _, robot, client, folder = place
    progress: list[ReconstructAction.Feedback] = []
    results: list = []
    thread = threading.Thread(
        target=lambda: results.append(
            client.reconstruct("kitchen", photographs=["phone"], on_progress=progress.append, timeout=LIMIT_S)
        )
    )
    thread.start()
    assert wait_for(lambda: robot.diagnostics().get("reconstruction", "none") != "none", LIMIT_S)
    before = robot.observations_taken()
    with WorldStereoClient() as other:  # a second one, since the first waits
        other.wait_until_ready()
        other.add_observation(render(pose_at(0.02)))
        assert other.imagine(POSED[:1]).error_code == 0
    assert wait_for(lambda: robot.observations_taken() > before)
    thread.join(LIMIT_S)
    summary = results[0]
    assert (summary.error_code, summary.error_msg) == (0, "")
    assert summary.folder == folder / "kitchen"
    assert summary.metric
    assert summary.registered == summary.images - len(summary.left_out)
    assert summary.registered >= 7
    figures = json.loads((folder / "kitchen" / "figures.json").read_text())
    assert (figures["points"], figures["registered"]) == (summary.points, summary.registered)
    assert figures["left_out"] == summary.left_out
    assert figures["poses_from"] == "both"
    # A stage that is over between two messages is not told.
    stages = {message.stage for message in progress}
    assert len(stages & {"photographs", "registration", "depth", "holes", "fusion", "files"}) >= 2, stages
    assert (folder / "kitchen" / "cloud.ply").is_file()
    assert not (folder / "kitchen" / "mesh.glb").exists()  # was not asked for
    assert not list(folder.glob(".kitchen*"))
    assert wait_for(lambda: robot.diagnostics()["reconstruction"] == "none")


@pytest.mark.parametrize(
    ("request_fields", "sentence"),
    [
        ({"name": "../outside"}, "not a valid map name"),
        ({"name": "photographs"}, "Choose another name"),
        ({"name": "room", "photographs": ["../../etc"]}, "not inside the folder of photographs"),
        ({"name": "room", "photographs": ["/etc"]}, "not inside the folder of photographs"),
        ({"name": "room", "photographs": ["missing"]}, "There is no photograph or folder 'missing'"),
        ({"name": "room", "geometry": "pi3:/tmp/x"}, "sweep or fast"),
        ({"name": "room", "splat_seconds": float("nan")}, "splat_seconds"),
    ],
)
def test_unusable_request_is_refused(place, request_fields, sentence):
    _, robot, _, folder = place
    robot.services.setdefault("reconstruct", robot.node.create_client(Reconstruct, f"{NODE}/reconstruct"))
    answer = robot.call("reconstruct", Reconstruct.Request(**request_fields))
    assert answer.error_code == Reconstruct.Request.INVALID_REQUEST
    assert sentence in answer.error_msg
    assert not (folder / "room").exists()


def test_link_to_a_place_outside_is_refused(place, tmp_path):
    _, _, client, folder = place
    (folder / "photographs" / "link").symlink_to(tmp_path)
    (folder / "away").symlink_to(tmp_path)
    assert "not inside" in client.reconstruct("room", photographs=["link"]).error_msg
    assert "symbolic link" in client.reconstruct("away").error_msg


def test_reconstruction_is_superseded_and_cancelled(place):
    """The service waits for the end of its request, which a goal supersedes; the goal is cancelled."""
    _, robot, _, folder = place
    robot.services.setdefault("reconstruct", robot.node.create_client(Reconstruct, f"{NODE}/reconstruct"))
    answers: list = []
    request = Reconstruct.Request(name="first")
    service = threading.Thread(target=lambda: answers.append(robot.call("reconstruct", request, LIMIT_S)))
    service.start()
    assert wait_for(lambda: robot.diagnostics().get("reconstruction", "none") != "none")
    action = ActionClient(robot.node, ReconstructAction, f"{NODE}/reconstruct")
    assert wait_for(action.server_is_ready)
    feedback: list = []
    handle = robot.wait(
        robot.on_executor(
            lambda: action.send_goal_async(
                ReconstructAction.Goal(name="second"),
                feedback_callback=lambda message: feedback.append(message.feedback),
            )
        )
    )
    service.join(LIMIT_S)
    assert answers[0].error_code == Reconstruct.Request.SUPERSEDED
    assert wait_for(lambda: [one for one in feedback if one.stage == "photographs"], LIMIT_S)
    robot.on_executor(handle.cancel_goal_async)
    answer = robot.wait(robot.on_executor(handle.get_result_async), LIMIT_S)
    assert answer.status == GoalStatus.STATUS_CANCELED
    assert answer.result.error_code == ReconstructAction.Result.CANCELED
    assert not (folder / "second" / "figures.json").exists()
    action.destroy()


def test_nothing_to_reconstruct_is_said(tmp_path):
    """An empty memory; then one view alone. The node is told to end while nothing runs."""
    with running({**POSE_MESSAGES, "map_directory": str(tmp_path)}) as (_, _robot), WorldStereoClient() as client:
        client.wait_until_ready()
        empty = client.reconstruct("room")
        assert empty.error_code == ReconstructAction.Result.NO_OBSERVATION
        assert "Nothing was observed yet" in empty.error_msg
        client.add_observation(render(POSES[0]))
        alone = client.reconstruct("room", timeout=LIMIT_S)
        assert alone.error_code == ReconstructAction.Result.NOT_RECONSTRUCTED
        assert "two at least" in alone.error_msg
        with pytest.raises(ValueError, match="colour is no option"):
            client.reconstruct("room", colour="red")
