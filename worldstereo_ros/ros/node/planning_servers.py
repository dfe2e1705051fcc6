"""The services `~/score_paths` and `~/query_points`, and the action `~/next_best_view`."""

from __future__ import annotations

import array
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from std_msgs.msg import Header

from worldstereo_ros.action import NextBestView
from worldstereo_ros.msg import PathScore
from worldstereo_ros.pipelines.base import ModelError
from worldstereo_ros.ros.conversions import grids, messages
from worldstereo_ros.ros.node.deferred_services import DeferredActionServer, DeferredReply, DeferredService
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.planner import PlannedPath, Planner
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.questions import Question
from worldstereo_ros.ros.node.tf_buffer import TransformUnavailableError
from worldstereo_ros.srv import QueryPoints, ScorePaths
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import EmptyMemoryError

PLANNING_SERVICES = (
    (
        "~/score_paths",
        ScorePaths,
        "scores paths: collision, clearance, what is not known, what they would show",
    ),
    ("~/query_points", QueryPoints, "free, occupied or unknown: the state of points, and who says so"),
)
PLANNING_ACTIONS = (("~/next_best_view", NextBestView, "ranks poses by what they would show against the way to them"),)
TIMEOUT_MARGIN_S = 5.0  # of the services beyond the requests' own, whose error message is better
MAX_PATHS, MAX_POINTS, MAX_CANDIDATES, MAX_NAME = 1000, 1_000_000, 2000, 200
DEFAULT_COUNT = 10


class PlanningServers:
    """Serves the questions of planners, while the node is active.

    Args:
        node: node on which the servers are created.
        parameters: parameters of the node.
        pose_resolver: converts paths and poses to camera poses.
        diagnostics: counts faults.
        planner: answers the questions.
        require_active: raises JobRejectedError unless the node is active.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        pose_resolver: PoseResolver,
        diagnostics: NodeDiagnostics,
        planner: Planner,
        *,
        require_active: Callable[[], None],
    ) -> None:
        self._node, self._parameters, self._pose_resolver = node, parameters, pose_resolver
        self._diagnostics, self._planner, self._require_active = diagnostics, planner, require_active
        handlers = (self._on_score, self._on_query)
        self._services = [
            DeferredService(
                node,
                kind,
                name,
                handler,
                error_fields=self._error_fields,
                timeout=lambda: self._parameters.job_timeout + TIMEOUT_MARGIN_S,
            )
            for (name, kind, _), handler in zip(PLANNING_SERVICES, handlers, strict=True)
        ]
        self._goals: dict[bytes, Question] = {}
        self._action = DeferredActionServer(
            node, NextBestView, PLANNING_ACTIONS[0][0], on_accepted=self._on_goal, on_cancel=self._on_cancel
        )

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters

    def expire(self) -> None:
        """Answers requests that have reached their timeout."""
        for service in self._services:
            service.expire()

    def destroy(self) -> None:
        """Destroys the action server, which rclpy leaves to its owner."""
        self._action.destroy()

    def _error_fields(self, error: Exception) -> dict[str, Any]:
        code = _code_of(error)
        if code == ErrorCode.UNKNOWN:
            self._diagnostics.on_fault("planning", error)
        return {"error_code": int(code), "error_msg": str(error) or type(error).__name__}

    def _ask(self, reply: DeferredReply, work: Callable[[Question], dict[str, Any]]) -> None:
        """Answers a service with the fields that a question returns."""
        question = Question(
            work,
            lambda fields, error: reply.send(**(fields if error is None else self._error_fields(error))),
            self._parameters.job_timeout,
        )

        def withdraw() -> bool:
            question.stop(ErrorCode.TIMEOUT, "The service has reached its timeout.")
            return True

        reply.withdraw = withdraw
        self._planner.submit(question)

    # --- services ---

    def _on_score(self, request: ScorePaths.Request, reply: DeferredReply) -> None:
        self._require_active()
        paths = self._paths(request)

        def work(question: Question) -> dict[str, Any]:
            scores, seconds = self._planner.score(
                question, paths, hypotheses=request.hypotheses, views=request.views, prompt=request.prompt
            )
            rows: list[PathScore] = [grids.score_message(score) for score in scores.scores]
            return {
                "best": scores.best,
                "reason": scores.reason,
                "scores": rows,
                "hypotheses": scores.hypotheses,
                "seconds": question.seconds,
                "seconds_imagining": seconds,
            }

        self._ask(reply, work)

    def _paths(self, request: ScorePaths.Request) -> dict[str, PlannedPath]:
        """The paths of a request by name. Raises JobRejectedError, InputError."""
        if not 1 <= len(request.paths) <= MAX_PATHS:
            raise InputError(f"The request has {len(request.paths)} paths; 1 to {MAX_PATHS} were expected.")
        names = list(request.names) or [str(index) for index in range(len(request.paths))]
        if len(names) != len(request.paths) or len(set(names)) != len(names) or max(map(len, names)) > MAX_NAME:
            raise InputError(
                f"The request has {len(request.paths)} paths and {len(names)} names; one for each was expected, all "
                f"different and of at most {MAX_NAME} characters, or none."
            )
        total = sum(len(path.poses) for path in request.paths)
        if total > self._parameters.max_path_poses:
            raise JobRejectedError(
                ErrorCode.TOO_LARGE,
                f"The paths have {total} poses; at most {self._parameters.max_path_poses} are accepted (parameter "
                "`max_path_poses`).",
            )
        paths = {}
        for name, path in zip(names, request.paths, strict=True):
            try:
                paths[name] = PlannedPath.of(*self._pose_resolver.resolve_path(path))
            except JobRejectedError as error:
                raise JobRejectedError(error.code, f"The path '{name}': {error}") from None
            except InputError as error:
                raise JobRejectedError(ErrorCode.INVALID_PATH, f"The path '{name}': {error}") from None
        return paths

    def _on_query(self, request: QueryPoints.Request, reply: DeferredReply) -> None:
        self._require_active()
        if not 1 <= len(request.points) <= MAX_POINTS:
            raise InputError(f"The request has {len(request.points)} points; 1 to {MAX_POINTS} were expected.")
        points = grids.point_array(request.points)
        stamp_ns = messages.nanoseconds(request.header.stamp)
        try:
            transform = self._pose_resolver.world_from(request.header.frame_id, stamp_ns or None)
        except TransformUnavailableError as error:
            raise JobRejectedError(ErrorCode.TF_ERROR, str(error)) from None
        points = points @ transform[:3, :3].T + transform[:3, 3]

        def work(question: Question) -> dict[str, Any]:
            found = self._planner.query(question, points)
            return {
                "states": array.array("B", found.state.tobytes()),
                "occupied": grids.float_field(found.occupied),
                "confidence": grids.float_field(found.confidence),
            }

        self._ask(reply, work)

    # --- the action ---

    def _on_goal(self, handle: ServerGoalHandle) -> None:
        """Starts a goal. Every goal is accepted: a rejection has no room for a reason, a result has."""
        handle.execute()
        key = bytes(handle.goal_id.uuid)

        def on_answer(result: NextBestView.Result | None, error: Exception | None) -> None:
            self._goals.pop(key, None)
            if error is None:
                self._action.conclude(handle, "succeed", result)
                return
            fields = self._error_fields(error)
            state = "canceled" if fields["error_code"] == ErrorCode.CANCELED else "abort"
            self._action.conclude(handle, state, NextBestView.Result(**fields))

        try:
            self._require_active()
            question = Question(self._ranking(handle), on_answer, self._parameters.job_timeout)
            self._goals[key] = question
            self._planner.submit(question)
        except Exception as error:
            on_answer(None, error)

    def _on_cancel(self, handle: ServerGoalHandle) -> None:
        question = self._goals.get(bytes(handle.goal_id.uuid))
        if question is not None:
            question.stop(ErrorCode.CANCELED, "Canceled by the client.")

    def _ranking(self, handle: ServerGoalHandle) -> Callable[[Question], NextBestView.Result]:
        """What ranks the poses of a goal. Raises JobRejectedError, InputError."""
        goal: NextBestView.Goal = handle.request
        if len(goal.candidates) > MAX_CANDIDATES:
            raise InputError(f"There are {len(goal.candidates)} candidates; at most {MAX_CANDIDATES} were expected.")
        given: np.ndarray | None = None
        candidates: PlannedPath | None = None
        if goal.candidates:
            given, cameras = self._pose_resolver.resolve_path(
                Path(header=goal.candidates[0].header, poses=goal.candidates)
            )
            candidates = PlannedPath.of(given, cameras)
        region = tuple(float(value) for value in goal.region)

        def work(question: Question) -> NextBestView.Result:
            feedback = NextBestView.Feedback(stage="ranking")
            handle.publish_feedback(feedback)
            base, here = self._pose_resolver.robot_now(self._planner.newest_pose(question))
            ranked = self._planner.rank_views(
                question,
                PlannedPath.of(base[None], here[None]).robot[0],
                None if candidates is None else candidates.robot,
                region=region if any(region) else None,  # type: ignore[arg-type]  # four numbers
                through_imagined=bool(goal.through_imagined),
                count=goal.count or DEFAULT_COUNT,
            )
            result = NextBestView.Result(
                information_gain=grids.float_field(np.array([view.information_gain for view in ranked])),
                new_area=grids.float_field(np.array([view.new_area for view in ranked])),
                travel=grids.float_field(np.array([view.travel for view in ranked])),
                scores=grids.float_field(np.array([view.score for view in ranked])),
            )
            result.indices = [view.index for view in ranked]
            header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._parameters.world_frame)
            for view in ranked:
                pose = view.world_from_camera if given is None else given[view.index]
                if given is None and self._parameters.path_pose_frame == "base":
                    pose = level_base_pose(view.world_from_camera, base)
                result.poses.append(PoseStamped(header=header, pose=messages.pose_message(pose)))
            if goal.preview and ranked:
                feedback.stage = "imagining"
                handle.publish_feedback(feedback)
                best = ranked[0]
                camera = best.world_from_camera if candidates is None else candidates.camera[best.index]
                seen = self._planner.imagine_view(question, camera)
                frame = Header(stamp=header.stamp, frame_id=self._parameters.imagined_frame)
                result.preview = messages.view_message(seen, frame, self._parameters.world_frame)
            result.seconds = question.seconds
            return result

        return work


def level_base_pose(world_from_camera: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Pose (4, 4) of a robot that stands at a place and looks where a camera looks, level and at its height now.

    Args:
        world_from_camera: (4, 4) pose at the place, optical axes.
        base: (4, 4) pose of the robot now.
    """
    ahead = world_from_camera[:2, 2]
    yaw = math.atan2(ahead[1], ahead[0])
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]]
    pose[:3, 3] = (*world_from_camera[:2, 3], base[2, 3])
    return pose


def _code_of(error: Exception) -> ErrorCode:
    if isinstance(error, JobRejectedError):
        return error.code
    if isinstance(error, EmptyMemoryError):
        return ErrorCode.NO_OBSERVATION
    if isinstance(error, ModelError | MemoryError):
        return ErrorCode.MODEL_ERROR
    if isinstance(error, TimeoutError):
        return ErrorCode.TIMEOUT
    return ErrorCode.INVALID_REQUEST if isinstance(error, InputError) else ErrorCode.UNKNOWN
