"""Answers the questions of planners on a thread of its own, beside the worker. Imports no rclpy.

The worker hands over a copy of what is remembered, which takes some tens of milliseconds, and imagines views where a
request asks for them; the map and the scores are computed here. Requests are answered one after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError  # another class than TimeoutError in Python 3.10
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.planning_parameters import AUTO
from worldstereo_ros.ros.node.questions import Question, QuestionThread
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

if TYPE_CHECKING:
    from worldstereo_ros.planning import OccupancyGrid, OccupancyMap, PathScores, PointStates, RankedView, RobotShape
    from worldstereo_ros.planning.remembered import RememberedWorld

POLL_PERIOD_S = 0.05
VIEWS_A_PATH = 8
UP = (0.0, 0.0, 1.0)  # of the world frame (REP 103)

Value = TypeVar("Value")


@dataclass(frozen=True)
class PlannedPath:
    """A path to score.

    Attributes:
        robot: (N, 4, 4) at the height of its camera above where the robot stands, turned as the camera looks.
        camera: (N, 4, 4) world_from_camera.
    """

    robot: np.ndarray
    camera: np.ndarray

    @classmethod
    def of(cls, poses: np.ndarray, cameras: np.ndarray) -> PlannedPath:
        """Joins the place of the robot (N, 4, 4) with the height and direction of its camera (N, 4, 4).

        Raises:
            InputError: a pose is no finite rigid transform.
        """
        robot = np.array(cameras)
        robot[:, :2, 3] = poses[:, :2, 3]
        return cls(check_poses(robot), check_poses(cameras))


class Planner(QuestionThread):
    """Builds maps and answers questions, one at a time, on its own thread, which starts with the first question.

    Args:
        get_worker: returns the current worker, which owns the memories.
        on_fault: gets unexpected exceptions.
    """

    def __init__(self, get_worker: Callable[[], Worker], on_fault: Callable[[str, Exception], None]) -> None:
        super().__init__(on_fault)
        self._get_worker = get_worker
        self._parameters = NodeParameters()
        self._map: tuple[object, OccupancyMap] | None = None  # the newest one without hypotheses, and what it is of

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters

    def score(
        self,
        question: Question,
        paths: Mapping[str, PlannedPath],
        *,
        hypotheses: int = 0,
        views: int = 0,
        prompt: str = "",
    ) -> tuple[PathScores, float]:
        """Scores paths.

        Args:
            question: the request, which may be told to end.
            paths: by name.
            hypotheses: random seeds to imagine with; 0 = as the parameter `planning.hypotheses` says, by default none.
            views: views a path and seed; 0 = 8.
            prompt: description of the place.

        Returns:
            (scores, seconds spent on imagining).

        Raises:
            JobRejectedError: NO_OBSERVATION, TOO_LARGE, INACTIVE, TIMEOUT, CANCELED.
            InputError: a path is not usable.
        """
        from worldstereo_ros.planning import score_paths, world_grid
        from worldstereo_ros.planning.occupancy_map import MAX_HYPOTHESES

        if hypotheses > MAX_HYPOTHESES:
            raise InputError(f"{hypotheses} hypotheses were asked for; at most {MAX_HYPOTHESES} were expected.")
        chosen, count = self._parameters.planning, views or VIEWS_A_PATH
        hypotheses = hypotheses or chosen.hypotheses
        total = hypotheses * count * len(paths)
        if total > self._parameters.max_views:
            raise JobRejectedError(
                ErrorCode.TOO_LARGE,
                f"{hypotheses} hypotheses of {count} views along {len(paths)} paths are {total} views; at most "
                f"{self._parameters.max_views} are accepted (parameter `max_views`). Ask for fewer.",
            )
        remembered, _ = self._remembered(question)
        camera = _camera_of(remembered)
        started = time.monotonic()
        imagined = [
            [
                view
                for path in paths.values()
                for view in self._imagine(question, path.camera, camera, seed=seed, views=count, prompt=prompt)
            ]
            for seed in range(hypotheses)
        ]
        seconds = time.monotonic() - started
        question.check()
        robots = {name: path.robot for name, path in paths.items()}
        grid = world_grid(remembered, robots, hypotheses=imagined, **self._map_settings(), **self._shape_settings())
        question.check()
        if not hypotheses:
            grid = self._completed(grid)
        return score_paths(grid, robots, sensor=_sensor(camera, chosen.sensor_range)), seconds

    def query(self, question: Question, points: np.ndarray) -> PointStates:
        """The states of points (N, 3) in the world frame. Raises as `score`."""
        return self._occupancy(question).query(points)

    def rank_views(
        self,
        question: Question,
        robot: np.ndarray,
        candidates: np.ndarray | None,
        *,
        region: tuple[float, float, float, float] | None,
        through_imagined: bool,
        count: int,
    ) -> list[RankedView]:
        """Ranks poses; see `planning.next_best_view`, whose arguments these are. Raises as `score`."""
        from worldstereo_ros.planning import next_best_view

        grid = self.grid(question)
        question.check()
        remembered, _ = self._remembered(question)
        sensor = _sensor(_camera_of(remembered), self._parameters.planning.sensor_range)
        return next_best_view(
            grid, robot, candidates, sensor=sensor, region=region, through_imagined=through_imagined, count=count
        )

    def newest_pose(self, question: Question) -> np.ndarray:
        """world_from_camera (4, 4) of the newest image. Raises as `score`."""
        newest = self._remembered(question)[0].newest_observation
        assert newest is not None
        return newest.world_from_camera

    def imagine_view(self, question: Question, world_from_camera: np.ndarray) -> ImaginedView:
        """The view from a camera pose (4, 4). Raises as `score`."""
        remembered, _ = self._remembered(question)
        camera = _camera_of(remembered)
        return self._imagine(question, world_from_camera[None], camera, seed=0, views=1, width=camera.width)[0]

    def grid(self, question: Question) -> OccupancyGrid:
        """The grid of what is remembered, completed as the parameters say. Raises as `score`."""
        from worldstereo_ros.planning.columns import make_grid

        return self._completed(make_grid(self._occupancy(question), **self._shape_settings()))

    def _completed(self, grid: OccupancyGrid) -> OccupancyGrid:
        from worldstereo_ros.planning.completion import complete_unknown

        count = self._parameters.planning.completions
        return complete_unknown(grid, range(count)) if count else grid

    def _occupancy(self, question: Question) -> OccupancyMap:
        """The map of what is remembered; the one before, if nothing has changed."""
        from worldstereo_ros.planning import OccupancyMap

        remembered, key = self._remembered(question)
        of = (key, tuple(sorted(self._map_settings().items())))
        if self._map is None or self._map[0] != of:
            question.check()
            self._map = of, OccupancyMap.from_world(remembered, **self._map_settings())
        return self._map[1]

    def _map_settings(self) -> dict[str, Any]:
        chosen = self._parameters.planning
        return {"resolution": chosen.resolution, "max_range": chosen.max_range, "up": UP}

    def _shape_settings(self) -> dict[str, Any]:
        chosen = self._parameters.planning
        floor = None if chosen.floor == AUTO else float(chosen.floor)
        return {"robot": robot_shape(self._parameters), "floor": floor}

    def _remembered(self, question: Question) -> tuple[RememberedWorld, object]:
        """(a copy of the memories, a key that changes with them). Raises JobRejectedError NO_OBSERVATION."""
        from worldstereo_ros.planning.remembered import RememberedWorld

        worker = self._get_worker()

        def copy(world: WorldModel) -> tuple[RememberedWorld, object]:
            newest = world.bank.views[-1].stamp_ns if world.bank.views else 0
            key = (id(world), worker.observations_done, len(world.bank.views), len(world.cloud), newest)
            return RememberedWorld.of(world), key

        remembered, key = self._on_worker(question, copy)
        if remembered.newest_observation is None:
            raise JobRejectedError(
                ErrorCode.NO_OBSERVATION,
                "Nothing was observed yet. Publish an image with camera_info, depth and pose first, or load a map.",
            )
        return remembered, key

    def _imagine(
        self,
        question: Question,
        poses: np.ndarray,
        camera: Camera,
        *,
        seed: int,
        views: int,
        prompt: str = "",
        width: int = 0,
    ) -> list[ImaginedView]:
        """Views along a path; between two paths the worker does other things that wait."""
        from worldstereo_ros.planning import imagine_hypotheses

        width = min(width or self._parameters.planning.view_width, camera.width)
        small = camera.resized(width, max(1, round(camera.height * width / camera.width)))

        def on_step(stage: str, step: int, steps: int) -> None:
            try:
                question.check()
            except JobRejectedError as error:
                raise Cancelled(str(error)) from None

        def imagine(world: WorldModel) -> list[ImaginedView]:
            return imagine_hypotheses(world, [poses], small, seeds=[seed], views=views, prompt=prompt, on_step=on_step)[
                0
            ]

        try:
            return self._on_worker(question, imagine)
        except Cancelled:
            question.check()
            raise

    def _on_worker(self, question: Question, function: Callable[[WorldModel], Value]) -> Value:
        """Calls a function with the world model on the worker's thread, and waits for it."""
        worker = self._get_worker()

        def call() -> Value:
            if worker.world is None:
                raise JobRejectedError(ErrorCode.INACTIVE, "The node is not configured.")
            return function(worker.world)

        future = worker.call(call)
        while True:
            try:
                return future.result(POLL_PERIOD_S)  # type: ignore[return-value]  # what `call` returns
            except CancelledError:
                raise JobRejectedError(ErrorCode.INACTIVE, "The node is shutting down.") from None
            except FutureTimeoutError:
                if future.done():  # with a TimeoutError of its own
                    raise
                try:
                    question.check()
                except JobRejectedError:
                    future.cancel()
                    raise


def robot_shape(parameters: NodeParameters) -> RobotShape:
    """The robot of the parameters. Raises InputError if its numbers contradict each other."""
    from worldstereo_ros.planning import RobotShape

    chosen = parameters.planning
    return RobotShape(chosen.robot_radius, chosen.robot_height, chosen.max_step, chosen.max_slope)


def _camera_of(remembered: RememberedWorld) -> Camera:
    newest = remembered.newest_observation
    assert newest is not None
    return newest.camera


def _sensor(camera: Camera, sensor_range: float) -> Any:
    from worldstereo_ros.planning.visibility import Sensor

    sensor = Sensor.of_camera(camera, sensor_range)
    assert math.isfinite(sensor.fov)
    return sensor
