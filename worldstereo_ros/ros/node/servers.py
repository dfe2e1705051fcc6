"""What others ask of the node: the action, the services and the path topic. Each becomes a job of the worker or a call
to it; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from nav_msgs.msg import Path
from rclpy.action.server import ServerGoalHandle
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from worldstereo_ros.action import ImaginePath
from worldstereo_ros.memory.archive import archive_path
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.node.deferred_services import DeferredActionServer, DeferredReply, DeferredService
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobRefused, JobResult, Progress
from worldstereo_ros.ros.node.parameters import map_directory
from worldstereo_ros.srv import ImagineView, LoadMap, SaveMap

if TYPE_CHECKING:
    from worldstereo_ros.ros.node.node import WorldStereoNode

CALL_TIMEOUT = 60.0  # seconds that save, load and reset may take before the caller is told so

SERVICES = (
    ("~/imagine_view", ImagineView, "the view from one pose"),
    ("~/reset", Trigger, "forgets everything; ends the running job"),
    ("~/save_map", SaveMap, "saves both memories under a name inside `map_directory`"),
    ("~/load_map", LoadMap, "replaces both memories by saved ones; if the file is not good, nothing changes"),
)
ACTIONS = (("~/imagine_path", ImaginePath, "the views along a path, with progress; cancelled between steps"),)
COMMANDS = (("path", Path, qos.COMMAND, "starts a job as the action does, with the parameters `path_*`"),)


class Servers:
    """The action, the services and the path topic of a node."""

    def __init__(self, node: WorldStereoNode) -> None:
        self._node = node
        self._jobs: dict[bytes, Job] = {}
        self._action = DeferredActionServer(
            node, ImaginePath, ACTIONS[0][0], accepted=self._goal_accepted, cancel=self._goal_cancelled
        )
        handlers: tuple[Callable[[Any, DeferredReply], None], ...] = (self._view, self._reset, self._save, self._load)
        self._services = []
        for (name, kind, _), handler in zip(SERVICES, handlers, strict=True):
            view = kind is ImagineView
            service = DeferredService(
                node,
                kind,
                name,
                handler,
                failed=_view_failed if view else _call_failed,
                timeout=self._view_timeout if view else (lambda: CALL_TIMEOUT),
            )
            self._services.append(service)
        name, kind, profile, _ = COMMANDS[0]
        self._path = node.create_subscription(kind, name, node.guarded(name, self._path_came), profile)

    def tick(self) -> None:
        """Answers what took too long."""
        for service in self._services:
            service.expire()

    def destroy(self) -> None:
        """Takes the action server back (rclpy leaves it to its maker)."""
        self._action.destroy()

    def _view_timeout(self) -> float:
        # The job's own deadline comes first, with a better sentence.
        return self._node.settings.job_timeout + self._node.settings.watchdog_grace + 5.0

    def _require_active(self) -> None:
        if not self._node.active:
            raise JobRefused(
                ErrorCode.INACTIVE,
                f"The node is {self._node.state_label}, not active. Configure and activate it (ros2 lifecycle set "
                f"{self._node.get_fully_qualified_name()} configure, then activate), or start it with autostart.",
            )

    # --- the action -----------------------------------------------------------------------------------------------

    def _goal_accepted(self, handle: ServerGoalHandle) -> None:
        """Every goal is accepted: a refusal could not say why, a result can."""
        handle.execute()
        goal, key = handle.request, bytes(handle.goal_id.uuid)
        try:
            self._require_active()
            job = Job(
                self._node.frames.poses_of_path(goal.path, goal.views),
                origin=f"{ACTIONS[0][0]} {key[:4].hex()}",
                timeout=self._node.settings.job_timeout,
                prompt=goal.prompt,
                seed=goal.seed,
                remember=goal.remember,
                on_progress=lambda progress: handle.publish_feedback(_feedback(progress)),
                on_end=lambda outcome: self._goal_ended(handle, outcome),
            )
        except JobRefused as error:
            self._goal_ended(handle, JobResult(error.code, str(error)))
            return
        except Exception as error:
            self._node.health.fault("goal", error)
            self._goal_ended(handle, JobResult(ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}"))
            return
        self._jobs[key] = job
        self._node.worker.submit_path(job)

    def _goal_cancelled(self, handle: ServerGoalHandle) -> None:
        job = self._jobs.get(bytes(handle.goal_id.uuid))
        if job is not None:
            self._node.worker.withdraw(job, ErrorCode.CANCELED, "The client canceled it.")

    def _goal_ended(self, handle: ServerGoalHandle, outcome: JobResult) -> None:
        self._jobs.pop(bytes(handle.goal_id.uuid), None)
        if outcome.code not in (ErrorCode.NONE, ErrorCode.CANCELED, ErrorCode.SUPERSEDED):
            self._node.health.warn(f"A path ended with {outcome.code.name}: {outcome.message}", key=outcome.code.name)
        end = {ErrorCode.NONE: "succeed", ErrorCode.CANCELED: "canceled"}.get(outcome.code, "abort")
        result = ImaginePath.Result(error_code=int(outcome.code), error_msg=outcome.message)
        result.views_done = outcome.views_done
        result.coverage, result.observed_fraction = outcome.coverage, outcome.observed_fraction
        result.seconds, result.seconds_to_first = outcome.seconds, outcome.seconds_to_first
        self._action.conclude(handle, end, result)

    # --- the path topic -------------------------------------------------------------------------------------------

    def _path_came(self, path: Path) -> None:
        node = self._node
        node.health.on_message("path")
        try:
            self._require_active()
            settings = node.settings
            job = Job(
                node.frames.poses_of_path(path, settings.path_views),
                origin="the topic path",
                timeout=settings.job_timeout,
                prompt=settings.path_prompt,
                remember=settings.path_remember,
                on_end=self._path_ended,
            )
        except JobRefused as error:
            node.health.on_rejected("path", f"{error.code.name}: {error}")
            return
        node.worker.submit_path(job)

    def _path_ended(self, outcome: JobResult) -> None:
        if outcome.code in (ErrorCode.NONE, ErrorCode.SUPERSEDED, ErrorCode.INACTIVE):
            return
        self._node.health.on_rejected("path", f"{outcome.code.name}: {outcome.message}")

    # --- services -------------------------------------------------------------------------------------------------

    def _view(self, request: ImagineView.Request, reply: DeferredReply) -> None:
        node = self._node
        try:
            self._require_active()
            poses = node.frames.pose_of(request.pose)
        except JobRefused as error:
            reply.send(error_code=int(error.code), error_msg=str(error))
            return

        def ended(outcome: JobResult) -> None:
            values: dict[str, Any] = {"error_code": int(outcome.code), "error_msg": outcome.message}
            if outcome.code == ErrorCode.NONE and outcome.view is not None:
                header = Header(stamp=node.get_clock().now().to_msg(), frame_id=node.settings.imagined_frame)
                values["view"] = messages.view_message(outcome.view, header, node.settings.world_frame)
            reply.send(**values)

        timeout = node.settings.job_timeout
        job = Job(poses, origin=VIEW_ORIGIN, timeout=timeout, prompt=request.prompt, seed=request.seed, on_end=ended)
        if not node.worker.submit_view(job):
            job.end(JobResult(ErrorCode.TOO_LARGE, "Too many single views wait already; ask for a path instead."))

    def _reset(self, request: Trigger.Request, reply: DeferredReply) -> None:
        node = self._node
        node.worker.end_all(ErrorCode.CANCELED, "The memory was reset.")
        self._answer(node.worker.call(self._forget), reply)

    def _forget(self) -> str:
        world = self._world()
        views, points = len(world.bank.views), len(world.cloud)
        world.reset()
        self._node.relay.memory_cleared(world)
        return f"Forgot {points} points and {views} views."

    def _save(self, request: SaveMap.Request, reply: DeferredReply) -> None:
        path = archive_path(map_directory(self._node.settings), request.name)

        def save() -> str:
            world, existed = self._world(), path.exists()
            path.parent.mkdir(parents=True, exist_ok=True)
            world.save(path)
            what = "Replaced" if existed else "Saved"
            return f"{what} {path}: {len(world.cloud)} points, {len(world.bank.views)} views."

        self._answer(self._node.worker.call(save), reply)

    def _load(self, request: LoadMap.Request, reply: DeferredReply) -> None:
        path = archive_path(map_directory(self._node.settings), request.name)

        def load() -> str:
            world = self._world()
            world.load(path)
            self._node.relay.memory_cleared(world)
            return f"Loaded {path}: {len(world.cloud)} points, {len(world.bank.views)} views."

        self._answer(self._node.worker.call(load), reply)

    def _world(self):
        world = self._node.worker.world
        if world is None:
            raise RuntimeError(f"The node is {self._node.state_label}; configure it first.")
        return world

    def _answer(self, future: Future, reply: DeferredReply) -> None:
        """Sends the sentence that the call returns, or the one of its exception."""

        def done(finished: Future) -> None:
            error = finished.exception()
            if error is None:
                reply.send(success=True, message=finished.result())
            else:
                reply.send(**_call_failed(error))

        future.add_done_callback(done)


def _feedback(progress: Progress) -> ImaginePath.Feedback:
    return ImaginePath.Feedback(
        stage=progress.stage,
        step=progress.step,
        steps=progress.steps,
        views_done=progress.views_done,
        views=progress.views,
        seconds_left=progress.seconds_left,
    )


def _call_failed(error: BaseException) -> dict[str, Any]:
    return {"success": False, "message": str(error) or type(error).__name__}


def _view_failed(error: BaseException) -> dict[str, Any]:
    code = ErrorCode.TIMEOUT if isinstance(error, TimeoutError) else ErrorCode.UNKNOWN
    return {"error_code": int(code), "error_msg": str(error) or type(error).__name__}
