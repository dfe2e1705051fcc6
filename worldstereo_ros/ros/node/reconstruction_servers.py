"""The service and the action `~/reconstruct`: the same request, with an answer at the end, or with progress as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node

from worldstereo_ros.action import Reconstruct as ReconstructAction
from worldstereo_ros.memory.archive import ArchiveError
from worldstereo_ros.ros.node.deferred_services import DeferredActionServer, DeferredReply, DeferredService
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.folders import photograph_paths, place_folder
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters
from worldstereo_ros.ros.node.reconstructions import Reconstruction, ReconstructionResult, Reconstructions
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.srv import Reconstruct
from worldstereo_ros.utils.errors import InputError

NAME = "~/reconstruct"
SERVICE = (NAME, Reconstruct, "reconstructs a place from the remembered views and from photographs, into a folder")
ACTION = (NAME, ReconstructAction, "the same with progress; cancelled at any moment")
TIMEOUT_MARGIN_S = 15.0  # of the service beyond the reconstruction's own, whose error message is better
GEOMETRIES = ("sweep", "fast")


class ReconstructionServers:
    """Serves requests of reconstructions.

    Args:
        node: node on which the servers are created.
        parameters: parameters of the node.
        diagnostics: counts faults, and warns of failures.
        get_worker: returns the current worker.
        require_active: raises JobRejectedError unless the node is active.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        diagnostics: NodeDiagnostics,
        *,
        get_worker: Callable[[], Worker],
        require_active: Callable[[], None],
    ) -> None:
        self._parameters, self._diagnostics, self._require_active = parameters, diagnostics, require_active
        self.jobs = Reconstructions(
            get_worker,
            lambda text: node.get_logger().info(text),
            diagnostics.on_fault,
        )
        self._goals: dict[bytes, Reconstruction] = {}
        self._service = DeferredService(
            node,
            Reconstruct,
            NAME,
            self._on_request,
            error_fields=lambda error: {"error_code": int(_code_of(error)), "error_msg": str(error)},
            timeout=lambda: self._parameters.reconstruct_timeout + TIMEOUT_MARGIN_S,
        )
        self._action = DeferredActionServer(
            node, ReconstructAction, NAME, on_accepted=self._on_goal, on_cancel=self._on_cancel
        )

    @property
    def progress(self) -> str:
        """What the reconstruction that runs does, for the diagnostics."""
        running = self.jobs.running
        return "none" if running is None else running.progress

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters

    def expire(self) -> None:
        """Answers requests that have reached their timeout."""
        self._service.expire()

    def destroy(self) -> None:
        """Ends the reconstruction that runs and destroys the action server, which rclpy leaves to its owner."""
        self.jobs.end_all(ErrorCode.INACTIVE, "The node is shutting down.")
        self.jobs.close()
        self._action.destroy()

    def _start(
        self,
        request: Reconstruct.Request | ReconstructAction.Goal,
        origin: str,
        on_end: Callable[[ReconstructionResult], None],
        on_progress: Callable[[str, str, int, int], None] | None = None,
    ) -> Reconstruction:
        """Checks a request and starts it. Raises JobRejectedError, InputError, ConfigurationError."""
        self._require_active()
        geometry = request.geometry or GEOMETRIES[0]
        if geometry not in GEOMETRIES:
            raise InputError(f"The geometry is '{geometry[:100]}'; {' or '.join(GEOMETRIES)} was expected.")
        if not 0 <= request.splat_seconds <= self._parameters.reconstruct_timeout:
            raise InputError(
                f"splat_seconds is {request.splat_seconds:g}; 0 to {self._parameters.reconstruct_timeout:g} "
                "(`reconstruct_timeout`) was expected."
            )
        from worldstereo_ros.ros.node.world_factory import effective_device

        options = {
            "photographs": [str(path) for path in photograph_paths(self._parameters, request.photographs)],
            "use_poses": not request.ignore_poses,
            "geometry": geometry,
            "mesh": bool(request.mesh),
            "splats": bool(request.splats),
            "splat_seconds": float(request.splat_seconds),
            "device": effective_device(self._parameters.device),
            "depth_model": self._parameters.depth_model,
        }
        job = Reconstruction(
            place_folder(self._parameters, request.name),
            options,
            origin=origin,
            timeout=self._parameters.reconstruct_timeout,
            on_end=on_end,
            on_progress=on_progress,
        )
        self.jobs.submit(job)
        return job

    # --- the service ---

    def _on_request(self, request: Reconstruct.Request, reply: DeferredReply) -> None:
        def on_end(result: ReconstructionResult) -> None:
            self._warn(result)
            reply.send(**_fields(result))

        job = self._start(request, f"the service {NAME}", on_end)

        def withdraw() -> bool:
            job.stop(ErrorCode.TIMEOUT, "The service has reached its timeout.")
            return True

        reply.withdraw = withdraw

    def _warn(self, result: ReconstructionResult) -> None:
        if result.code not in (ErrorCode.NONE, ErrorCode.CANCELED, ErrorCode.SUPERSEDED, ErrorCode.INACTIVE):
            text = f"A reconstruction ended with {result.code.name}: {result.message}"
            self._diagnostics.warn(text, key=f"reconstruction {result.code.name}")

    # --- the action ---

    def _on_goal(self, handle: ServerGoalHandle) -> None:
        """Starts a goal. Every goal is accepted: a rejection has no room for a reason, a result has."""
        handle.execute()
        key = bytes(handle.goal_id.uuid)

        def on_progress(stage: str, what: str, step: int, steps: int) -> None:
            handle.publish_feedback(
                ReconstructAction.Feedback(stage=stage, what=what, step=max(step, 0), steps=max(steps, 0))
            )

        def on_end(result: ReconstructionResult) -> None:
            self._goals.pop(key, None)
            self._warn(result)
            message = ReconstructAction.Result()
            for name, value in _fields(result).items():
                setattr(message, name, value)
            state = {ErrorCode.NONE: "succeed", ErrorCode.CANCELED: "canceled"}.get(result.code, "abort")
            self._action.conclude(handle, state, message)

        try:
            job = self._start(handle.request, f"{NAME} {key[:4].hex()}", on_end, on_progress)
        except Exception as error:
            code = _code_of(error)
            if code == ErrorCode.UNKNOWN:
                self._diagnostics.on_fault("reconstruct", error)
            on_end(ReconstructionResult(code, str(error) or type(error).__name__))
            return
        self._goals[key] = job

    def _on_cancel(self, handle: ServerGoalHandle) -> None:
        job = self._goals.get(bytes(handle.goal_id.uuid))
        if job is not None:
            job.stop(ErrorCode.CANCELED, "Canceled by the client. What was computed is kept, and used again.")


def _code_of(error: Exception) -> ErrorCode:
    if isinstance(error, JobRejectedError):
        return error.code
    if isinstance(error, TimeoutError):
        return ErrorCode.TIMEOUT
    return (
        ErrorCode.INVALID_REQUEST
        if isinstance(error, InputError | ConfigurationError | ArchiveError)
        else ErrorCode.UNKNOWN
    )


def _fields(result: ReconstructionResult) -> dict[str, Any]:
    """Fields of the response and of the result, which have the same."""
    figures = result.figures
    left_out = figures.get("left_out", {})
    return {
        "error_code": int(result.code),
        "error_msg": result.message,
        "folder": result.folder if figures else "",
        "images": int(figures.get("images", 0)),
        "registered": int(figures.get("registered", 0)),
        "left_out": list(left_out),
        "left_out_reasons": [str(reason) for reason in left_out.values()],
        "metric": bool(figures.get("metric", False)),
        "points": int(figures.get("points", 0)),
        "mesh_triangles": int(figures.get("mesh_triangles") or 0),
        "splats": int(figures.get("splats") or 0),
        "notes": [str(note) for note in figures.get("notes", [])],
        "seconds": float(result.seconds),
    }
