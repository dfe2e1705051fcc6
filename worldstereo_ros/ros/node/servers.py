"""The node's action, services and path topic. Each request becomes a job of the worker or a call on its thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from nav_msgs.msg import Path
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from worldstereo_ros.action import ImaginePath
from worldstereo_ros.memory.archive import archive_path
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.deferred_services import DeferredActionServer, DeferredReply, DeferredService
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.folders import map_directory
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobRejectedError, JobResult, Progress
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.planner import Planner
from worldstereo_ros.ros.node.planning_servers import PlanningServers
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.reconstruction_servers import ReconstructionServers
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.srv import ImagineView, LoadMap, SaveMap
from worldstereo_ros.world import WorldModel

CALL_TIMEOUT_S = 60.0  # of save_map, load_map and reset
VIEW_TIMEOUT_MARGIN_S = 5.0  # of imagine_view beyond the watchdog, whose error message is better

SERVICES = (
    ("~/imagine_view", ImagineView, "imagines the view from one pose"),
    ("~/reset", Trigger, "clears both memories and ends the running job"),
    ("~/save_map", SaveMap, "saves both memories under a name in `map_directory`"),
    ("~/load_map", LoadMap, "replaces both memories by saved ones; an invalid file changes nothing"),
)
ACTIONS = (("~/imagine_path", ImaginePath, "imagines the views along a path, with progress; cancelled between steps"),)
COMMANDS = (("path", Path, qos.COMMAND, "imagines the views along a path, with the parameters `path_*`"),)


class Servers:
    """The action, services and path topic of a node, from its construction on in every lifecycle state.

    Jobs are rejected with INACTIVE unless `accept_jobs` is set.

    Args:
        node: node on which the servers are created.
        parameters: parameters of the node.
        pose_resolver: converts paths and poses to camera poses.
        diagnostics: counts messages, rejections and faults.
        get_worker: returns the current worker; the node replaces one that hangs.
        get_state: returns the label of the lifecycle state.
        on_reset: called when a reset is requested, before it is carried out.
        on_memory_replaced: called with the world model on the worker's thread after a reset or load.
        guarded: (name, callback) -> a callback that reports exceptions instead of raising them.

    Attributes:
        accept_jobs: whether the node is active.
        reconstructions: the service and the action `~/reconstruct`.
        planner: answers the questions of planners.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        pose_resolver: PoseResolver,
        diagnostics: NodeDiagnostics,
        *,
        get_worker: Callable[[], Worker],
        get_state: Callable[[], str],
        on_reset: Callable[[], None],
        on_memory_replaced: Callable[[WorldModel], None],
        guarded: Callable[[str, Callable], Callable],
    ) -> None:
        self._node, self._parameters = node, parameters
        self._pose_resolver, self._diagnostics = pose_resolver, diagnostics
        self._get_worker, self._get_state = get_worker, get_state
        self._forget_waiting, self._on_memory_replaced = on_reset, on_memory_replaced
        self._jobs: dict[bytes, Job] = {}
        self.accept_jobs = False
        self._action = DeferredActionServer(
            node, ImaginePath, ACTIONS[0][0], on_accepted=self._on_goal, on_cancel=self._on_cancel
        )
        handlers: tuple[Callable[[Any, DeferredReply], None], ...] = (
            self._on_imagine_view,
            self._on_reset,
            self._on_save_map,
            self._on_load_map,
        )
        self._services = []
        for (name, kind, _), handler in zip(SERVICES, handlers, strict=True):
            is_view = kind is ImagineView
            service = DeferredService(
                node,
                kind,
                name,
                handler,
                error_fields=_view_error_fields if is_view else _call_error_fields,
                timeout=self._view_timeout if is_view else (lambda: CALL_TIMEOUT_S),
            )
            self._services.append(service)
        self.reconstructions = ReconstructionServers(
            node, parameters, diagnostics, get_worker=get_worker, require_active=self._require_active
        )
        self.planner = Planner(get_worker, diagnostics.on_fault)
        self._planning = PlanningServers(
            node, parameters, pose_resolver, diagnostics, self.planner, require_active=self._require_active
        )
        name, kind, profile, _ = COMMANDS[0]
        self._path_subscription = node.create_subscription(kind, name, guarded(name, self._on_path), profile)

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters
        self.reconstructions.apply(parameters)
        self.planner.apply(parameters)
        self._planning.apply(parameters)

    def stop_accepting(self, reason: str) -> None:
        """Rejects jobs from now on, and ends the reconstruction and the requests of planners with INACTIVE."""
        self.accept_jobs = False
        self.reconstructions.jobs.end_all(ErrorCode.INACTIVE, reason)
        self.planner.end_all(ErrorCode.INACTIVE, reason)

    def expire(self) -> None:
        """Answers service requests that have reached their timeout."""
        for service in self._services:
            service.expire()
        self.reconstructions.expire()
        self._planning.expire()

    def destroy(self) -> None:
        """Destroys the action servers, which rclpy leaves to their owner."""
        self.reconstructions.destroy()
        self.planner.close()
        self._planning.destroy()
        self._action.destroy()

    def _view_timeout(self) -> float:
        return self._parameters.job_timeout + self._parameters.watchdog_grace + VIEW_TIMEOUT_MARGIN_S

    def _require_active(self) -> None:
        if not self.accept_jobs:
            raise JobRejectedError(
                ErrorCode.INACTIVE,
                f"The node is {self._get_state()}, not active. Configure and activate it (ros2 lifecycle set "
                f"{self._node.get_fully_qualified_name()} configure, then activate), or start it with autostart.",
            )

    # --- the action ---

    def _on_goal(self, handle: ServerGoalHandle) -> None:
        """Starts a goal. Every goal is accepted: a rejection has no room for a reason, a result has."""
        handle.execute()
        goal, key = handle.request, bytes(handle.goal_id.uuid)
        try:
            self._require_active()
            job = Job(
                self._pose_resolver.path_poses(goal.path, goal.views),
                origin=f"{ACTIONS[0][0]} {key[:4].hex()}",
                timeout=self._parameters.job_timeout,
                clearance=self._parameters.path_clearance,
                prompt=goal.prompt,
                seed=goal.seed,
                remember=goal.remember,
                on_progress=lambda progress: handle.publish_feedback(_feedback(progress)),
                on_end=lambda result: self._on_goal_ended(handle, result),
            )
        except JobRejectedError as error:
            self._on_goal_ended(handle, JobResult(error.code, str(error)))
            return
        except Exception as error:
            self._diagnostics.on_fault("goal", error)
            self._on_goal_ended(handle, JobResult(ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}"))
            return
        self._jobs[key] = job
        self._get_worker().submit_path(job)

    def _on_cancel(self, handle: ServerGoalHandle) -> None:
        job = self._jobs.get(bytes(handle.goal_id.uuid))
        if job is not None:
            self._get_worker().cancel(job, ErrorCode.CANCELED, "Canceled by the client.")

    def _on_goal_ended(self, handle: ServerGoalHandle, result: JobResult) -> None:
        self._jobs.pop(bytes(handle.goal_id.uuid), None)
        if result.code not in (ErrorCode.NONE, ErrorCode.CANCELED, ErrorCode.SUPERSEDED):
            self._diagnostics.warn(f"A path ended with {result.code.name}: {result.message}", key=result.code.name)
        state = {ErrorCode.NONE: "succeed", ErrorCode.CANCELED: "canceled"}.get(result.code, "abort")
        message = ImaginePath.Result(error_code=int(result.code), error_msg=result.message)
        message.views_done = result.views_done
        message.coverage = result.coverage
        message.observed_fraction, message.estimated_fraction = result.observed_fraction, result.estimated_fraction
        message.blocked = list(result.blocked)
        message.seconds, message.seconds_to_first = result.seconds, result.seconds_to_first
        self._action.conclude(handle, state, message)

    # --- the path topic ---

    def _on_path(self, path: Path) -> None:
        self._diagnostics.on_message("path")
        try:
            self._require_active()
            job = Job(
                self._pose_resolver.path_poses(path, self._parameters.path_views),
                origin="the topic path",
                timeout=self._parameters.job_timeout,
                clearance=self._parameters.path_clearance,
                prompt=self._parameters.path_prompt,
                remember=self._parameters.path_remember,
                on_end=self._on_path_ended,
            )
        except JobRejectedError as error:
            self._diagnostics.on_rejected("path", f"{error.code.name}: {error}")
            return
        self._get_worker().submit_path(job)

    def _on_path_ended(self, result: JobResult) -> None:
        if result.code not in (ErrorCode.NONE, ErrorCode.SUPERSEDED, ErrorCode.INACTIVE):
            self._diagnostics.on_rejected("path", f"{result.code.name}: {result.message}")

    # --- services ---

    def _on_imagine_view(self, request: ImagineView.Request, reply: DeferredReply) -> None:
        try:
            self._require_active()
            poses = self._pose_resolver.single_pose(request.pose)
        except JobRejectedError as error:
            reply.send(error_code=int(error.code), error_msg=str(error))
            return

        def on_end(result: JobResult) -> None:
            fields: dict[str, Any] = {"error_code": int(result.code), "error_msg": result.message}
            if result.code == ErrorCode.NONE and result.view is not None:
                stamp = self._node.get_clock().now().to_msg()
                header = Header(stamp=stamp, frame_id=self._parameters.imagined_frame)
                fields["view"] = messages.view_message(result.view, header, self._parameters.world_frame)
            reply.send(**fields)

        job = Job(
            poses,
            origin=VIEW_ORIGIN,
            timeout=self._parameters.job_timeout,
            clearance=self._parameters.path_clearance,
            prompt=request.prompt,
            seed=request.seed,
            on_end=on_end,
        )
        if not self._get_worker().submit_view(job):
            message = "Too many requests for single views are waiting; request a path instead."
            job.end(JobResult(ErrorCode.TOO_LARGE, message))

    def _on_reset(self, request: Trigger.Request, reply: DeferredReply) -> None:
        worker = self._get_worker()
        self._forget_waiting()
        worker.end_all(ErrorCode.CANCELED, "The memory was reset.")
        self.reconstructions.jobs.end_all(ErrorCode.CANCELED, "The memory was reset.")
        reply.outcome = "Jobs were told to end; the memories were not cleared."

        def reset() -> str:
            world = self._world(worker)
            views, points = len(world.bank.views), len(world.cloud)
            world.reset()
            self._memory_replaced(worker, world)
            return f"Removed {points} points and {views} views."

        _reply_with(worker.call(reset), reply)

    def _on_save_map(self, request: SaveMap.Request, reply: DeferredReply) -> None:
        worker = self._get_worker()
        path = archive_path(map_directory(self._parameters), request.name)

        def save() -> str:
            world, existed = self._world(worker), path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            world.save(path)
            action = "Replaced" if existed else "Saved"
            return f"{action} {path}: {len(world.cloud)} points, {len(world.bank.views)} views."

        _reply_with(worker.call(save), reply)

    def _on_load_map(self, request: LoadMap.Request, reply: DeferredReply) -> None:
        worker = self._get_worker()
        path = archive_path(map_directory(self._parameters), request.name)

        def load() -> str:
            world = self._world(worker)
            world.load(path, metric_only=True)  # messages are in metres
            self._memory_replaced(worker, world)
            return f"Loaded {path}: {len(world.cloud)} points, {len(world.bank.views)} views."

        _reply_with(worker.call(load), reply)

    def _memory_replaced(self, worker: Worker, world: WorldModel) -> None:
        if worker is self._get_worker():  # and not one that hung and was replaced
            self._on_memory_replaced(world)

    def _world(self, worker: Worker) -> WorldModel:
        if worker.world is None:
            raise RuntimeError(f"The node is {self._get_state()}; configure it first.")
        return worker.world


def _reply_with(future: Future, reply: DeferredReply) -> None:
    """Sends the message that the call returns, or that of its exception. At its timeout a waiting call is cancelled."""
    timed_out = threading.Event()

    def withdraw() -> bool:
        timed_out.set()
        return future.cancel()

    reply.withdraw = withdraw

    def on_done(finished: Future) -> None:
        if finished.cancelled():
            if timed_out.is_set():
                return  # the service answers
            error: BaseException | None = RuntimeError("The node was cleaned up or is shutting down; nothing was done.")
        else:
            error = finished.exception()
        if error is None:
            reply.send(success=True, message=finished.result())
        else:
            reply.send(**_call_error_fields(error))

    future.add_done_callback(on_done)


def _feedback(progress: Progress) -> ImaginePath.Feedback:
    return ImaginePath.Feedback(
        stage=progress.stage,
        step=progress.step,
        steps=progress.steps,
        views_done=progress.views_done,
        views=progress.views,
        seconds_left=progress.seconds_left,
    )


def _call_error_fields(error: BaseException) -> dict[str, Any]:
    return {"success": False, "message": str(error) or type(error).__name__}


def _view_error_fields(error: BaseException) -> dict[str, Any]:
    code = ErrorCode.TIMEOUT if isinstance(error, TimeoutError) else ErrorCode.UNKNOWN
    return {"error_code": int(code), "error_msg": str(error) or type(error).__name__}
