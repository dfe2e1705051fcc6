"""What planners ask a node in another process: grids, scores of paths, states of points, the next best view."""

from __future__ import annotations

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from geometry_msgs.msg import Point, PoseStamped
from helpers.floor_plans import CAMERA, around, boxes, drive, look
from helpers.node_harness import NODE, running, wait_for
from map_msgs.msg import OccupancyGridUpdate
from nav2_msgs.msg import CostmapFilterInfo
from nav_msgs.msg import OccupancyGrid, Path
from rclpy.action import ActionClient
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from worldstereo_ros.action import NextBestView
from worldstereo_ros.srv import QueryPoints, ScorePaths

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.planning import CellState
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.ros.client.planning import PlanningRequests, RequestRefusedError
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.grid_updates import apply_update
from worldstereo_ros.ros.node.jobs import ErrorCode
from worldstereo_ros.ros.node.planning_servers import level_base_pose
from worldstereo_ros.scenes.paths import camera_pose

SCENE = boxes(((1.5, 0.0, 0.5), (0.4, 1.0, 1.0)))
INTO, BESIDE = drive((0.3, 0), (1.5, 0)), drive((0.3, 0), (0.9, 0.9))
TOPICS = ("occupancy", "occupancy/observed", "occupancy/graded", "occupancy/confidence", "occupancy/imagined",
          "occupancy/variance")  # fmt: skip
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def room():
    """A node that has seen a room with a box all round from one place; paths have poses of its camera."""
    parameters = {
        "pose_source": "topic",
        "path_pose_frame": "camera",
        "depth_model": "none",
        "voxel_size": 0.05,
        "planning.period": 0.2,
        "planning.view_width": 48,
    }
    with running(parameters) as (node, robot), WorldStereoClient() as client:
        client.wait_until_ready()
        for view in around(SCENE, -0.5, 0.0, views=6):
            client.add_observation(view)
        for name, kind in (("score_paths", ScorePaths), ("query_points", QueryPoints)):
            robot.services[name] = robot.node.create_client(kind, f"{NODE}/{name}")
        yield node, robot, client


def path_of(poses: np.ndarray, frame: str = "map") -> Path:
    header = Header(frame_id=frame)
    return Path(header=header, poses=[PoseStamped(header=header, pose=messages.pose_message(pose)) for pose in poses])


def cell(message: OccupancyGrid, x: float, y: float) -> int:
    info = message.info
    column, row = (int((value - low) / info.resolution) for value, low in
                   ((x, info.origin.position.x), (y, info.origin.position.y)))  # fmt: skip
    return message.data[row * info.width + column]


def test_grids_say_what_is_free_occupied_and_unknown(room):
    node, robot, _ = room
    lists = {name: robot.subscribe(f"{NODE}/{name}", OccupancyGrid, qos.MAP) for name in (*TOPICS, "speed_mask")}
    assert wait_for(lambda: all(lists.values()), LIMIT_S), node.log
    got = {name: received[-1] for name, received in lists.items()}
    grid = got["occupancy"]
    assert (grid.header.frame_id, round(grid.info.resolution, 6)) == ("map", 0.1)
    assert len(grid.data) == grid.info.width * grid.info.height
    free, box, wall, behind, outside = (0.3, 1.0), (1.35, 0.0), (-3.05, 0.5), (2.4, 0.0), (3.6, 0.0)
    for name in ("occupancy", "occupancy/observed"):
        assert [cell(got[name], *place) for place in (free, box, wall, behind, outside)] == [0, 100, 100, -1, -1]
    assert cell(got["occupancy/graded"], *free) < 10 < 80 < cell(got["occupancy/graded"], *box)
    assert cell(got["occupancy/confidence"], *free) > 90
    assert cell(got["occupancy/confidence"], *outside) == -1
    assert [cell(got["occupancy/imagined"], *place) for place in (free, outside)] == [0, -1]
    assert [cell(got["occupancy/variance"], *place) for place in (free, box, outside)] == [0, 0, -1]
    # The limit begins a metre before the floor below the camera, which it has not seen.
    assert [cell(got["speed_mask"], *place) for place in ((-2.6, 1.2), free, behind)] == [0, 50, 50]
    # They are latched, and sent again only when something has changed.
    counts = {name: len(received) for name, received in lists.items()}
    late = robot.subscribe(f"{NODE}/occupancy", OccupancyGrid, qos.MAP)
    assert wait_for(lambda: late, LIMIT_S)
    assert {name: len(received) for name, received in lists.items() if name != "occupancy"} == {
        name: count for name, count in counts.items() if name != "occupancy"
    }


def test_what_has_changed_is_sent_alone_and_the_mask_says_what_it_means(room):
    node, robot, client = room
    whole = robot.subscribe(f"{NODE}/occupancy/graded", OccupancyGrid, qos.MAP)
    updates = robot.subscribe(f"{NODE}/occupancy/graded_updates", OccupancyGridUpdate, qos.COMMAND)
    info = robot.subscribe(f"{NODE}/speed_mask_info", CostmapFilterInfo, qos.MAP)
    assert wait_for(lambda: whole and info, LIMIT_S), node.log
    assert (info[0].type, info[0].filter_mask_topic) == (1, f"{NODE}/speed_mask")
    assert (info[0].base, info[0].multiplier, info[0].header.frame_id) == (0.0, 1.0, "map")
    beside = (2.4, -0.6)  # behind the box, from where the robot was
    assert cell(whole[-1], *beside) == -1
    client.add_observation(look(SCENE, 0.3, -1.2, 0.0))
    assert wait_for(lambda: updates, LIMIT_S), node.log
    grid, update = whole[-1], updates[-1]
    assert update.header.frame_id == "map"
    assert update.width * update.height < len(grid.data)
    apply_update(grid, update)
    assert 0 <= cell(grid, *beside) < 10


def test_paths_are_scored_together(room):
    _, robot, _ = room
    request = ScorePaths.Request(paths=[path_of(INTO), path_of(BESIDE)], names=["into", "beside"])
    answer = robot.call("score_paths", request, LIMIT_S)
    assert (answer.error_code, answer.error_msg) == (0, "")
    into, beside = answer.scores
    assert (answer.best, beside.name) == (1, "beside")
    assert answer.reason.startswith("'beside' before 'into'")
    assert into.collision_probability > 0.9 > 0.2 > beside.collision_probability
    assert len(into.pose_collision) == len(into.pose_gain) == len(INTO)
    assert into.clearance == 0 < beside.clearance
    assert answer.hypotheses == 1
    request.hypotheses, request.views = 2, 2
    imagined = robot.call("score_paths", request, LIMIT_S)
    assert (imagined.error_code, imagined.hypotheses) == (0, 2)
    assert 0 < imagined.seconds_imagining < imagined.seconds


def bad_requests():
    nan = path_of(INTO)
    nan.poses[1].pose.position.x = float("nan")
    far = INTO.copy()
    far[:, 0, 3] += 1e6
    good = path_of(INTO)
    return [
        ({"paths": []}, ErrorCode.INVALID_REQUEST, "0 paths"),
        ({"paths": [Path()]}, ErrorCode.INVALID_PATH, "'0': The path is empty"),
        ({"paths": [good, nan]}, ErrorCode.INVALID_PATH, "'1': Pose 1"),
        ({"paths": [path_of(INTO, "odom")]}, ErrorCode.TF_ERROR, "odom"),
        ({"paths": [path_of(far)]}, ErrorCode.INVALID_REQUEST, "voxels"),
        ({"paths": [good], "names": ["a", "b"]}, ErrorCode.INVALID_REQUEST, "2 names"),
        ({"paths": [good, good], "names": ["a", "a"]}, ErrorCode.INVALID_REQUEST, "different"),
        ({"paths": [good], "hypotheses": 33}, ErrorCode.INVALID_REQUEST, "33 hypotheses"),
        ({"paths": [good], "hypotheses": 32, "views": 2**31}, ErrorCode.TOO_LARGE, "max_views"),
        ({"paths": [path_of(np.tile(INTO[:1], (10_001, 1, 1)))] * 2}, ErrorCode.TOO_LARGE, "max_path_poses"),
    ]


@pytest.mark.parametrize(("fields", "code", "sentence"), bad_requests(), ids=lambda value: str(value)[:12])
def test_unusable_paths_are_refused_with_a_sentence(room, fields, code, sentence):
    node, robot, _ = room
    answer = robot.call("score_paths", ScorePaths.Request(**fields), LIMIT_S)
    assert (answer.error_code, sentence in answer.error_msg) == (code, True), answer.error_msg
    assert not answer.scores
    assert "Unexpected error" not in node.log


def test_points_have_states(room):
    _, robot, _ = room
    points = [Point(x=0.3, y=1.0, z=0.5), Point(x=1.35, y=0.0, z=0.5), Point(x=99.0, y=0.0, z=0.5)]
    answer = robot.call("query_points", QueryPoints.Request(header=Header(frame_id="map"), points=points), LIMIT_S)
    Q = QueryPoints.Request
    assert list(answer.states) == [Q.STATE_OBSERVED_FREE, Q.STATE_OBSERVED_OCCUPIED, Q.STATE_UNKNOWN]
    assert answer.occupied[0] < 0.1 < 0.8 < answer.occupied[1]
    assert answer.confidence[2] == 0
    for request, code in (
        (Q(header=Header(frame_id="map")), ErrorCode.INVALID_REQUEST),
        (Q(header=Header(frame_id="odom"), points=points), ErrorCode.TF_ERROR),
        (Q(points=points), ErrorCode.INVALID_REQUEST),
        (Q(header=Header(frame_id="map"), points=[Point(x=float("inf"))]), ErrorCode.INVALID_REQUEST),
    ):
        answer = robot.call("query_points", request, LIMIT_S)
        assert answer.error_code == code
        assert answer.error_msg
    assert all(getattr(Q, f"STATE_{state.name}") == state for state in CellState)


def test_next_best_view_is_ranked_with_a_preview(room):
    _, robot, _ = room
    action = ActionClient(robot.node, NextBestView, f"{NODE}/next_best_view")
    assert wait_for(action.server_is_ready)
    stages = []

    def ask(**fields):
        handle = robot.wait(
            robot.on_executor(
                lambda: action.send_goal_async(
                    NextBestView.Goal(**fields), feedback_callback=lambda message: stages.append(message.feedback.stage)
                )
            )
        )
        return robot.result(handle, LIMIT_S)

    status, result = ask(count=4, preview=True)
    assert (status, result.error_msg) == (GoalStatus.STATUS_SUCCEEDED, "")
    assert 1 <= len(result.poses) <= 4
    assert set(result.indices) == {-1}
    assert list(result.scores) == sorted(result.scores, reverse=True)
    place = messages.pose_matrix(result.poses[0].pose)
    assert abs(place[0, 3]) < 3
    assert abs(place[1, 3]) < 2
    assert result.preview.image.width == CAMERA.width
    np.testing.assert_allclose(messages.pose_matrix(result.preview.pose.pose), place, atol=1e-5)
    # Given candidates: the corner behind the box shows more than the place from which all was seen.
    candidates = np.stack([camera_pose(np.array([x, y, 0.7]), 0.0) for x, y in ((-0.5, 0.0), (1.4, 1.2))])
    status, result = ask(candidates=path_of(candidates).poses)
    assert list(result.indices) == [1, 0]
    np.testing.assert_allclose(messages.pose_matrix(result.poses[0].pose), candidates[1], atol=1e-6)
    status, result = ask(region=[50.0, 50.0, 51.0, 51.0])
    assert (status, result.error_code) == (GoalStatus.STATUS_ABORTED, ErrorCode.INVALID_REQUEST)
    assert "outside the map" in result.error_msg
    action.destroy()


def test_client_asks(room):
    _, _, client = room
    planning = PlanningRequests(client)
    scores = planning.score_paths({"into": INTO, "beside": BESIDE})
    assert scores.winner.name == "beside"
    assert scores.scores[0].pose_collision.shape == (len(INTO),)
    with pytest.raises(RequestRefusedError, match="33 hypotheses") as caught:
        planning.score_paths({"into": INTO}, hypotheses=33)
    assert caught.value.code == ErrorCode.INVALID_REQUEST
    found = planning.query_points(np.array([[0.3, 1.0, 0.5], [1.35, 0.0, 0.5]]))
    assert found.state.tolist() == [CellState.OBSERVED_FREE, CellState.OBSERVED_OCCUPIED]
    views = planning.next_best_view(count=2)
    assert 1 <= len(views) <= 2
    assert views[0].index == -1
    assert views[0].score > 0
    candidates = np.stack([camera_pose(np.array([x, y, 0.7]), 0.0) for x, y in ((-0.5, 0.0), (1.4, 1.2))])
    assert [view.index for view in planning.next_best_view(candidates)] == [1, 0]
    with pytest.raises(RequestRefusedError, match="outside the map"):
        planning.next_best_view(region=(50, 50, 51, 51))


def test_empty_memory_and_inactive_node_say_so(room):
    node, robot, _ = room
    assert robot.call("reset", Trigger.Request()).success
    request = ScorePaths.Request(paths=[path_of(INTO)])
    answer = robot.call("score_paths", request, LIMIT_S)
    assert (answer.error_code, "Nothing was observed yet" in answer.error_msg) == (ErrorCode.NO_OBSERVATION, True)
    assert robot.transition("deactivate")
    answer = robot.call("score_paths", request, LIMIT_S)
    assert answer.error_code == ErrorCode.INACTIVE
    assert "Unexpected error" not in node.log


def test_robot_stands_level_where_the_camera_is_to_look():
    base = np.eye(4)
    base[2, 3] = 0.2
    pose = level_base_pose(camera_pose(np.array([1.0, 2.0, 0.9]), 0.7, -0.4), base)
    np.testing.assert_allclose(pose[:3, 3], [1.0, 2.0, 0.2])
    np.testing.assert_allclose(pose[:3, 0], [np.cos(0.7), np.sin(0.7), 0], atol=1e-9)
    np.testing.assert_allclose(pose @ invert_pose(pose), np.eye(4), atol=1e-9)
