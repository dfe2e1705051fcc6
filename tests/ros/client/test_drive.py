"""A robot that drives by grids and scores; the node's part is computed here, without the middleware."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run `make setup`")
pytest.importorskip("nav2_msgs", reason="needs the messages of nav2_msgs: run `make setup`")
from builtin_interfaces.msg import Time
from nav2_msgs.msg import CostmapFilterInfo
from std_msgs.msg import Header

from worldstereo_ros.evaluation.drive_figures import compute_drive_figures
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.planning import OccupancyMap, RobotShape, score_paths
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.ros.client import drive
from worldstereo_ros.ros.conversions import grids
from worldstereo_ros.ros.node.grid_updates import GridChanges
from worldstereo_ros.scenes import seed_of
from worldstereo_ros.scenes.kinds.corner import corner_world
from worldstereo_ros.scenes.raytracing.depth import render_depth

CAMERA = Camera.from_fov(96, 72, drive.FOV_RAD)
PARAMETERS = drive.NODE_PARAMETERS


class NodeHere:
    """The client of a node whose grids are computed when an image comes, in the same thread."""

    node_name = "/worldstereo"

    def __init__(self, world, filter_type: int = 1) -> None:
        (x0, y0, _), (x1, y1, _) = world.scene.bounds
        self._map = OccupancyMap(
            (x0 - 1, y0 - 1, -0.4), (x1 + 1, y1 + 1, 1.5), max_range=PARAMETERS["planning.max_range"]
        )
        self._filter_type, self._time, self._callbacks = filter_type, 0, {}
        self._changes = {name: GridChanges() for name in ("occupancy", "graded", "imagined", "speed_mask")}
        clock = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self._time))
        self.node = SimpleNamespace(create_subscription=self._subscribe, get_clock=lambda: clock)
        self.grid = None

    def _subscribe(self, kind, topic, callback, profile):
        self._callbacks[topic.removeprefix("/worldstereo/")] = callback

    def add_observation(self, view: View) -> None:
        self._map.integrate(view)
        self._time += 1_000_000
        self.grid = grid = make_grid(self._map, RobotShape(drive.ROBOT_RADIUS_M, drive.ROBOT_HEIGHT_M))
        header = Header(frame_id="map", stamp=Time(nanosec=self._time))
        slow = grids.speed_cells(grid, PARAMETERS["planning.slow_speed"], PARAMETERS["planning.slow_distance"])
        for topic, name, cells in (
            ("occupancy/graded", "graded", grid.graded()),
            ("occupancy/imagined", "imagined", grids.imagined_cells(grid)),
            ("speed_mask", "speed_mask", slow),
        ):
            self._callbacks[topic](self._changes[name].next(cells, grid, header, partial=False))
        message = self._changes["occupancy"].next(grid.trinary(), grid, header, partial=True)
        if message is not None:
            self._callbacks["occupancy_updates" if hasattr(message, "x") else "occupancy"](message)
        self._callbacks["speed_mask_info"](CostmapFilterInfo(type=self._filter_type, base=0.0, multiplier=1.0))

    def imagine(self, poses, *, remember):
        return SimpleNamespace(error_code=0, views=[])


class Scores:
    """In place of `PlanningRequests`."""

    def __init__(self, client: NodeHere) -> None:
        self._client = client

    def score_paths(self, paths):
        return score_paths(self._client.grid, paths)


@pytest.fixture
def quick(monkeypatch):
    """Depth alone in small images, no waiting for the clock, and each step waits for scores of its own time."""
    grey = np.full((CAMERA.height, CAMERA.width, 3), 128, np.uint8)

    def render_view(scene, camera, pose, **options):
        return View(grey, CAMERA, pose, render_depth(scene, CAMERA, pose[None])[0])

    monkeypatch.setattr(drive, "render_view", render_view)
    monkeypatch.setattr(drive, "PlanningRequests", Scores)
    monkeypatch.setattr(drive.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(drive, "PAUSE_S", 0.0)
    monkeypatch.setattr(drive, "MAX_AGE_S", 0.5 * drive.STEP_S)


def test_robot_slows_down_before_the_corner_and_passes_what_stands_behind_it(quick):
    world = corner_world(seed_of("demo", 0))
    robot = drive.DrivingRobot(NodeHere(world), world, "a test")
    robot.look_around()
    robot.drive()
    figures = compute_drive_figures(robot.recording, world)
    assert figures["collisions"] == 0
    assert figures["closest_m"] > 0.02
    assert figures["top_speed_before_corner"] == pytest.approx(drive.FULL_SPEED_M_S, abs=0.02)
    assert figures["speed_at_corner"] < 0.45 * drive.FULL_SPEED_M_S
    before = figures["slow"][0]
    assert 0.6 < before["before_corner_m"] < 4.0
    assert before["limit"] == 0.4
    assert figures["obstacle_seen"]["speed"] < 0.45 * drive.FULL_SPEED_M_S
    assert [path["taken"] for path in figures["paths"]][-1] == "outside"  # the boxes stand on the inside
    assert np.linalg.norm(robot._robot.position - robot._lanes["outside"][-1]) < 0.2
    assert figures["messages"]["occupancy_updates"] > figures["messages"]["occupancy"]
    assert len(figures["samples"]) == len(robot.recording.samples)


def test_mask_of_another_type_is_an_error(quick):
    world = corner_world(seed_of("demo", 0))
    robot = drive.DrivingRobot(NodeHere(world, filter_type=2), world, "a test")
    robot.look_around()
    with pytest.raises(drive.DriveError, match=r"of type 2; 1 \(percent\) was expected"):
        robot.drive()


def test_node_without_a_mask_is_an_error_that_names_the_topic(quick, monkeypatch):
    monkeypatch.setattr(drive, "WAIT_S", 0.0)
    world = corner_world(seed_of("demo", 0))
    robot = drive.DrivingRobot(NodeHere(world), world, "a test")
    with pytest.raises(drive.DriveError, match=r"No message arrived on /worldstereo/speed_mask_info within 0 s"):
        robot.drive()


def test_failed_request_ends_the_drive_with_its_reason(quick, monkeypatch):
    def refuse(self, paths):
        raise drive.RequestRefusedError(310, "the map is too large")

    monkeypatch.setattr(Scores, "score_paths", refuse)
    world = corner_world(seed_of("demo", 0))
    robot = drive.DrivingRobot(NodeHere(world), world, "a test")
    robot.look_around()
    with pytest.raises(drive.DriveError, match="the map is too large"):
        robot.drive()


def test_scores_that_do_not_come_are_an_error_that_names_the_service(quick, monkeypatch):
    monkeypatch.setattr(drive, "WAIT_S", 0.2)
    monkeypatch.setattr(Scores, "score_paths", lambda self, paths: threading.Event().wait(1.0))
    world = corner_world(seed_of("demo", 0))
    robot = drive.DrivingRobot(NodeHere(world), world, "a test")
    robot.look_around()
    with pytest.raises(drive.DriveError, match=r"/worldstereo/score_paths was not answered within 0.2 s"):
        robot.drive()


def test_camera_looks_ahead_from_above_the_base():
    world = corner_world(seed_of("demo", 0))
    robot = drive.DrivingRobot(NodeHere(world), world, "a test")
    pose = robot._camera_pose(np.array([1.0, 2.0]), math.pi / 2)
    np.testing.assert_allclose(pose[:3, 3], [1.0, 2.1, 0.6], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 2], [0.0, math.cos(0.15), -math.sin(0.15)], atol=1e-9)
