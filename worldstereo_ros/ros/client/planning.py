"""Asks a node what planners ask: which path is better, what is known of points, where to look next.

planning = PlanningRequests(client)
scores = planning.score_paths({"left": left_poses, "right": right_poses}, hypotheses=3)
print(scores.winner.name, scores.reason)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, PoseStamped
from rclpy.action import ActionClient
from std_msgs.msg import Header

from worldstereo_ros.action import NextBestView
from worldstereo_ros.msg import PathScore as PathScoreMessage
from worldstereo_ros.planning import PathScore, PathScores
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.ros.client.requests import NodeTimeoutError, Requests
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.srv import QueryPoints, ScorePaths
from worldstereo_ros.utils.errors import InputError, WorldStereoError

TIMEOUT_S = 320.0  # longer than the node's own (`job_timeout`), whose answer says why
GOAL_TIMEOUT_S = 15.0


class RequestRefusedError(WorldStereoError, RuntimeError):
    """The node did not answer a question; `code` is one of the error codes of the service."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class PointAnswers:
    """Occupancy and provenance of N points.

    Attributes:
        state: (N,) uint8 values of `planning.CellState`; unknown outside the map.
        occupied: (N,) float32 P(occupied).
        confidence: (N,) float32, probability that the state is right; 0 where it is unknown.
    """

    state: np.ndarray
    occupied: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class ViewAnswer:
    """A pose, ranked by what it would show.

    Attributes:
        pose: (4, 4) in the world frame, of what paths have poses of: the base or the camera.
        index: number among the candidates; -1 if the node chose it.
        information_gain: bits. new_area: square metres seen for the first time.
        travel: length of the way, metres; infinite where there is none.
        score: information per metre of the way.
    """

    pose: np.ndarray
    index: int
    information_gain: float
    new_area: float
    travel: float
    score: float


class PlanningRequests:
    """Asks on behalf of a client, which must be ready (`wait_until_ready`).

    Args:
        client: client of the node.
    """

    def __init__(self, client: WorldStereoClient) -> None:
        executor = client.node.executor
        if executor is None:
            raise InputError("The client is closed; an open one was expected.")
        self._client, self._requests = client, Requests(executor)
        node, name = client.node, client.node_name
        self._score = node.create_client(ScorePaths, f"{name}/score_paths")
        self._query = node.create_client(QueryPoints, f"{name}/query_points")
        self._next = ActionClient(
            node,
            NextBestView,
            f"{name}/next_best_view",
            goal_service_qos_profile=qos.REQUESTS,
            result_service_qos_profile=qos.REQUESTS,
            cancel_service_qos_profile=qos.REQUESTS,
        )

    def score_paths(
        self,
        paths: Mapping[str, np.ndarray],
        *,
        hypotheses: int = 0,
        views: int = 0,
        prompt: str = "",
        timeout: float = TIMEOUT_S,
    ) -> PathScores:
        """Scores paths by what the node remembers and imagines.

        Args:
            paths: name -> (N, 4, 4) world_from_camera of the robot's camera along the path.
            hypotheses: random seeds to imagine views along the paths with; 0 = as the node's parameter
                `planning.hypotheses` says, by default none.
            views: views a path and seed; 0 = 8.
            prompt: description of the place.
            timeout: seconds.

        Raises:
            RequestRefusedError: the node refused; the message says why.
            InputError: the camera's place on the robot is not known.
            NodeTimeoutError: no answer in time.
        """
        request = ScorePaths.Request(names=list(paths), hypotheses=hypotheses, views=views, prompt=prompt)
        request.paths = [self._client.path_message(np.asarray(poses)) for poses in paths.values()]
        answer = self._call(self._score, request, timeout)
        return PathScores([score_of(row) for row in answer.scores], answer.best, answer.reason, answer.hypotheses)

    def query_points(self, points: np.ndarray, frame: str = "map", *, timeout: float = TIMEOUT_S) -> PointAnswers:
        """Queries occupancy and provenance of points (N, 3) in a frame, metres. Raises as `score_paths`."""
        rows = np.asarray(points, np.float64).reshape(-1, 3)
        request = QueryPoints.Request(header=Header(frame_id=frame))
        request.points = [Point(x=x, y=y, z=z) for x, y, z in rows.tolist()]
        answer = self._call(self._query, request, timeout)
        return PointAnswers(
            np.array(answer.states, np.uint8), np.array(answer.occupied, np.float32),
            np.array(answer.confidence, np.float32),
        )  # fmt: skip

    def next_best_view(
        self,
        candidates: np.ndarray | None = None,
        *,
        region: tuple[float, float, float, float] | None = None,
        through_imagined: bool = False,
        count: int = 0,
        timeout: float = TIMEOUT_S,
    ) -> list[ViewAnswer]:
        """Ranks poses by what they would show, the best first; empty if there is nothing new to see.

        Args:
            candidates: (N, 4, 4) world_from_camera; None: chosen by the node.
            region: x and y of the lowest and the highest corner in the world frame; None = everywhere.
            through_imagined: the way may lead over cells that are imagined free.
            count: length of the list at most; 0 = 10.
            timeout: seconds, after which the goal is cancelled.

        Raises:
            As `score_paths`.
        """
        goal = NextBestView.Goal(through_imagined=through_imagined, count=count)
        goal.candidates = list[PoseStamped]() if candidates is None else self._client.path_message(candidates).poses
        if region is not None:
            goal.region = np.array(region, np.float64)
        sent = self._requests.send_goal(self._next, goal, None, GOAL_TIMEOUT_S)
        response = None if sent is None or not sent.accepted else self._requests.result(sent, timeout)
        if response is None:
            if sent is not None and sent.accepted:
                self._requests.run(sent.handle.cancel_goal_async)
            raise NodeTimeoutError(f"The action {self._client.node_name}/next_best_view did not answer in time.")
        result = response.result
        if result.error_code:
            raise RequestRefusedError(result.error_code, result.error_msg)
        numbers = zip(
            result.indices, result.information_gain, result.new_area, result.travel, result.scores, strict=True
        )
        return [
            ViewAnswer(messages.pose_matrix(stamped.pose), index, gain, area, travel, score)
            for stamped, (index, gain, area, travel, score) in zip(result.poses, numbers, strict=True)
        ]

    def _call(self, client: Any, request: Any, timeout: float) -> Any:
        answer = self._requests.call(client, request, timeout)
        if answer is None:
            raise NodeTimeoutError(f"The service {client.srv_name} did not answer within {timeout:g} s.")
        if answer.error_code:
            raise RequestRefusedError(answer.error_code, answer.error_msg)
        return answer


def score_of(message: PathScoreMessage) -> PathScore:
    """The score of a path, the inverse of `conversions.grids.score_message`."""
    values: dict[str, Any] = {}
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        values[name] = np.array(value, np.float32) if name.startswith("pose_") else value
    return PathScore(**values)
