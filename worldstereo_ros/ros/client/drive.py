"""A fake robot that drives a corridor with a node's answers alone: topics, a service, and an action.

It publishes camera images with depth, camera_info and transforms; it is as fast as `~/speed_mask` allows where it is
(Nav2's speed filter does the same), stops before what `~/occupancy` calls occupied, and takes the path that
`~/score_paths` prefers. Its time runs as fast as the clock, and waits where the node needs longer.
"""

from __future__ import annotations

import array
import functools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from map_msgs.msg import OccupancyGridUpdate
from nav2_msgs.msg import CostmapFilterInfo
from nav_msgs.msg import OccupancyGrid

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.ros.client.path_follower import (
    FULL_SPEED_M_S,
    PERCENT_TYPE,
    SPACING_M,
    FollowingRobot,
    GridCells,
    MaskMeaning,
    headings,
    lane,
    merge,
    speed_limit,
)
from worldstereo_ros.ros.client.planning import PlanningRequests, RequestRefusedError
from worldstereo_ros.ros.client.requests import NodeTimeoutError
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import nanoseconds
from worldstereo_ros.ros.node.grid_updates import apply_update
from worldstereo_ros.scenes.kinds.corner import CornerWorld
from worldstereo_ros.scenes.paths import camera_pose
from worldstereo_ros.scenes.raytracing.render import render_view
from worldstereo_ros.utils.errors import InputError, WorldStereoError
from worldstereo_ros.visualization.drive_recording import DriveRecording, DriveSample, MapSnapshot, PathChoice

ROBOT_RADIUS_M, ROBOT_HEIGHT_M = 0.22, 0.7
FOV_RAD = math.radians(80)
CAMERA = Camera.from_fov(320, 240, FOV_RAD)
BASE_FROM_CAMERA = camera_pose(np.array([0.1, 0.0, 0.6]), 0.0, -0.15)
STEP_S, STEPS_A_VIEW, VIEWS_A_MESSAGE = 0.1, 2, 2  # the views between two that are sent are for the film alone
LANES = {"inside": 0.5, "middle": 0.0, "outside": -0.5}  # metres towards the side to which the corridor turns
TURN_RADIUS_M = 0.95
PATH_STEP = 6  # of the points of a path, one goes into a request
MIN_WAY_M = 0.8  # left, of which it still asks
PAUSE_S = 0.3  # between two rounds of questions, in which the node has time for images
BETTER = 0.15  # by which the probability of a collision must fall for the robot to change its path
LOOK_AHEAD_M, BESIDE_M, PASSED_M = 1.6, 0.3, 0.6  # of the imagined view: along the way, or beside the corner
MAX_VIEWS_BEHIND, WAIT_S = 3, 30.0  # images that the newest mask may lack before the robot's time waits
MAX_AGE_S = 3.0  # of the robot's time, after which it waits for new scores: too late, no path leads past a box
MAX_SECONDS = 60.0
# What the node is told, beside its model and frames.
NODE_PARAMETERS: dict[str, object] = {
    "depth_model": "none",
    "voxel_size": 0.03,
    "max_bank_views": 128,
    "view_width": CAMERA.width,
    "planning.period": 0.25,
    "planning.robot_radius": ROBOT_RADIUS_M,
    "planning.robot_height": ROBOT_HEIGHT_M,
    "planning.max_range": 4.5,
    "planning.slow_speed": 40,
    "planning.slow_distance": 1.5,
}


class DriveError(WorldStereoError, RuntimeError):
    """The robot had to stop; the message says why."""


class DrivingRobot:
    """Drives through a world.

    Args:
        client: of the node, made with `publish_tf` and `BASE_FROM_CAMERA`.
        world: the world.
        title: of the recording.
        on_progress: called with the metres driven and a word for what the robot does.
        check: called at each step; raises if the node has ended.
    """

    def __init__(
        self,
        client: WorldStereoClient,
        world: CornerWorld,
        title: str,
        *,
        on_progress: Callable[[float, str], None] = lambda travel, text: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._client, self._world, self._on_progress, self._check = client, world, on_progress, check
        (x0, y0, _), (x1, y1, _) = world.scene.bounds
        self.recording = DriveRecording(
            title, FULL_SPEED_M_S, ROBOT_RADIUS_M, FOV_RAD, ((x0, y0), (x1, y1)), world.inner_corner
        )
        first, second = np.diff(world.route, axis=0)
        left = math.copysign(1.0, first[0] * second[1] - first[1] * second[0])
        self._lanes = {name: lane(world.route, left * offset, TURN_RADIUS_M) for name, offset in LANES.items()}
        x, y = world.route[0].tolist()
        self._robot = FollowingRobot(x, y, math.atan2(first[1], first[0]), ROBOT_RADIUS_M)
        self._counts: Counter[str] = Counter()
        self._lock = threading.Condition()
        self._grids: dict[str, OccupancyGrid] = {}
        self._meaning: MaskMeaning | None = None
        self._problem: Exception | None = None
        self._seconds = 0.0
        self._scored_at = 0.0  # the robot's time at which the newest scores were asked for
        self._subscribe()

    # --- what the node says ---

    def _subscribe(self) -> None:
        node, name = self._client.node, self._client.node_name
        for topic in ("occupancy", "occupancy/graded", "occupancy/imagined", "speed_mask"):
            node.create_subscription(OccupancyGrid, f"{name}/{topic}", functools.partial(self._on_grid, topic), qos.MAP)
        node.create_subscription(OccupancyGridUpdate, f"{name}/occupancy_updates", self._on_update, qos.COMMAND)
        node.create_subscription(CostmapFilterInfo, f"{name}/speed_mask_info", self._on_info, qos.MAP)

    def _on_grid(self, topic: str, message: OccupancyGrid) -> None:
        with self._lock:
            self._counts[topic] += 1
            self._grids[topic] = message
            self._lock.notify_all()

    def _on_update(self, message: OccupancyGridUpdate) -> None:
        with self._lock:
            self._counts["occupancy_updates"] += 1
            if "occupancy" in self._grids:
                try:
                    apply_update(self._grids["occupancy"], message)
                except ValueError as error:
                    self._problem = error

    def _on_info(self, message: CostmapFilterInfo) -> None:
        with self._lock:
            self._counts["speed_mask_info"] += 1
            if message.type != PERCENT_TYPE:
                self._problem = DriveError(f"The speed mask is of type {message.type}; 1 (percent) was expected.")
            self._meaning = MaskMeaning(message.base, message.multiplier)
            self._lock.notify_all()

    def _cells(self, topic: str) -> GridCells | None:
        with self._lock:
            message = self._grids.get(topic)
            return None if message is None else cells_of(message)

    def _wait_for_mask(self, newer_than_ns: int) -> None:
        """Waits until there is a speed mask, and its meaning, of what was remembered at a time."""
        deadline = time.monotonic() + WAIT_S
        with self._lock:
            while True:
                mask = self._grids.get("speed_mask")
                if mask is not None and self._meaning is not None and nanoseconds(mask.header.stamp) >= newer_than_ns:
                    return
                if time.monotonic() > deadline:
                    missing = "speed_mask" if self._meaning is not None else "speed_mask_info"
                    raise DriveError(
                        f"No message arrived on {self._client.node_name}/{missing} within {WAIT_S:g} s. The node's log "
                        "says why; `worldstereo doctor` checks the installation."
                    )
                self._lock.wait(0.5)
                self._check()

    def _wait_for_scores(self) -> None:
        """Waits until the newest scores are of a time not long past."""
        deadline = time.monotonic() + WAIT_S
        with self._lock:
            while self._seconds - self._scored_at > MAX_AGE_S and self._problem is None:
                if time.monotonic() > deadline:
                    raise DriveError(
                        f"{self._client.node_name}/score_paths was not answered within {WAIT_S:g} s. The node's log "
                        "says why."
                    )
                self._lock.wait(0.5)
                self._check()

    def _snapshot(self) -> None:
        graded, source, slow = (self._cells(t) for t in ("occupancy/graded", "occupancy/imagined", "speed_mask"))
        if graded is None or source is None or slow is None:
            return
        if len({part.cells.shape for part in (graded, source, slow)}) > 1:  # the next one is of a map that has grown
            return
        self.recording.maps.append(MapSnapshot(graded.cells, source.cells, slow.cells, graded.low, graded.resolution))

    # --- what the robot does ---

    def _camera_pose(self, position: np.ndarray, yaw: float) -> np.ndarray:
        base = np.eye(4)
        base[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
        base[:2, 3] = position
        return base @ BASE_FROM_CAMERA

    def _see(self, position: np.ndarray, yaw: float) -> View:
        return render_view(self._world.scene, CAMERA, self._camera_pose(position, yaw), supersample=1)

    def look_around(self) -> None:
        """Turns once where it starts, and looks back from a metre further on, at the place where it stood."""
        robot = self._robot
        ahead = np.array([math.cos(robot.yaw), math.sin(robot.yaw)])
        for turn in range(7):
            self._client.add_observation(self._see(robot.position, robot.yaw + turn * 2 * math.pi / 7))
        for back in (-0.8, 0.0, 0.8):
            self._client.add_observation(self._see(robot.position + 1.1 * ahead, robot.yaw + math.pi + back))

    def drive(self) -> None:
        """Drives to the end of the route.

        Raises:
            DriveError: the node's answers do not come, or the robot does not arrive in time.
            NodeTimeoutError: the node does not remember what it sees.
        """
        stop = threading.Event()
        planner = threading.Thread(target=self._plan, args=(stop,), name="drive_planner", daemon=True)
        self._wait_for_mask(0)
        self._robot.path = merge(self._robot.position, self._lanes["middle"])
        planner.start()
        try:
            self._drive()
        finally:
            stop.set()
            planner.join(timeout=WAIT_S)
        self.recording.messages = dict(self._counts)

    def _drive(self) -> None:
        robot, recording = self._robot, self.recording
        remembered: list[int] = []
        limit, taken = 1.0, -1
        started = time.monotonic()
        for step in range(round(MAX_SECONDS / STEP_S)):
            self._seconds = step * STEP_S
            self._check()
            if self._problem is not None:
                raise self._problem
            if step % STEPS_A_VIEW == 0:
                recording.views.append(self._see(robot.position, robot.yaw))
            if step % (STEPS_A_VIEW * VIEWS_A_MESSAGE) == 0:
                self._client.add_observation(recording.views[-1])
                remembered.append(self._client.node.get_clock().now().nanoseconds)
                if len(remembered) > MAX_VIEWS_BEHIND:
                    self._wait_for_mask(remembered[-1 - MAX_VIEWS_BEHIND])
                self._snapshot()
            mask = self._cells("speed_mask")
            assert mask is not None
            assert self._meaning is not None
            self._wait_for_scores()
            told = speed_limit(mask, self._meaning, robot.position)
            limit = limit if told is None else told
            if taken != len(recording.choices) - 1:
                taken = len(recording.choices) - 1
                robot.path = merge(robot.position, self._lanes[recording.choices[taken].taken])
            free_way = robot.free_way(self._cells("occupancy"))
            recording.samples.append(
                DriveSample(
                    self._seconds, robot.x, robot.y, robot.yaw, robot.speed, limit, len(recording.views) - 1,
                    len(recording.imagined) - 1, len(recording.maps) - 1, taken, free_way,
                )
            )  # fmt: skip
            if robot.arrived and robot.speed < 0.05:
                return
            robot.step(STEP_S, limit, free_way)
            self._on_progress(robot.travel, "slow" if limit < 1 else "full speed")
            time.sleep(max(0.0, started + self._seconds - time.monotonic()))
        raise DriveError(
            f"The robot did not arrive within {MAX_SECONDS:g} s of its time; it drove {robot.travel:.1f} m. "
            + ("Something stands in its way." if robot.speed < 0.05 else "")
        )

    # --- what it asks, on a thread of its own ---

    def _plan(self, stop: threading.Event) -> None:
        planning = PlanningRequests(self._client)
        while not stop.is_set():
            try:
                asked_at = self._seconds
                self._score(planning)
                with self._lock:
                    self._scored_at = asked_at
                    self._lock.notify_all()
                self._imagine()
                stop.wait(PAUSE_S)
            except (RequestRefusedError, NodeTimeoutError, InputError) as error:
                if not stop.is_set():
                    self._problem = DriveError(str(error))
                return
            except Exception as error:
                if not stop.is_set():
                    self._problem = error
                return

    def _score(self, planning: PlanningRequests) -> None:
        position = self._robot.position
        paths = {name: merge(position, points) for name, points in self._lanes.items()}
        if min(len(points) for points in paths.values()) * SPACING_M < MIN_WAY_M:
            return
        poses = {
            name: np.stack([self._camera_pose(*pose) for pose in zip(points, headings(points), strict=True)])
            for name, points in ((name, points[::PATH_STEP]) for name, points in paths.items())
        }
        scores = planning.score_paths(poses)
        self._counts["score_paths"] += 1
        collision = {score.name: score.collision_probability for score in scores.scores}
        winner, before = scores.winner.name, self.recording.choices[-1].taken if self.recording.choices else "middle"
        stays = before in collision and collision[before] - collision[winner] < BETTER
        taken = before if stays else winner
        self.recording.choices.append(PathChoice(self._seconds, paths, collision, winner, taken, scores.reason))

    def _imagine(self) -> None:
        """Imagines what is ahead: behind the corner as long as the robot has not passed it."""
        route = self._lanes["middle"]
        along = int(np.argmin(np.linalg.norm(route - self._robot.position, axis=1)))
        corner, end = self._world.route[1:]
        second = (end - corner) / np.linalg.norm(end - corner)
        index = along + round(LOOK_AHEAD_M / SPACING_M)
        if float((self._robot.position - corner) @ second) < PASSED_M:
            pose = self._camera_pose(corner - BESIDE_M * second, math.atan2(second[1], second[0]))
        elif index < len(route) - round(1.0 / SPACING_M):
            pose = self._camera_pose(route[index], float(headings(route)[index]))
        else:
            return
        result = self._client.imagine(pose[None], remember=True)
        if result.error_code:
            raise DriveError(f"The node did not imagine a view: {result.error_msg}")
        self.recording.imagined += result.views
        self._counts["imagine_path"] += 1


def cells_of(message: OccupancyGrid) -> GridCells:
    """The cells of a message, copied."""
    info = message.info
    data = message.data if isinstance(message.data, array.array) else np.array(message.data, np.int8)
    cells = np.frombuffer(data, np.int8).reshape(info.height, info.width).copy()
    return GridCells(cells, np.array([info.origin.position.x, info.origin.position.y]), info.resolution)
