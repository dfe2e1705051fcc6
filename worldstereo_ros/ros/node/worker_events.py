"""Forwards the worker's events to the publishers and the diagnostics. Its methods run on the worker's thread."""

from __future__ import annotations

from collections.abc import Callable

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.memory.path_clearance import describe_blocked
from worldstereo_ros.ros.node.activity_log import JobLog, ObservationLog
from worldstereo_ros.ros.node.backend import describe_backend
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobRejectedError, JobResult
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.photographs import Photograph
from worldstereo_ros.ros.node.publishers import Publishers
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.world import EmptyMemoryError, WorldModel


class WorkerEventHandler:
    """Implements `worker.WorkerEvents`.

    Args:
        diagnostics: counts rejected observations, faults and jobs.
        log: logs a line at level info.

    Attributes:
        publishers: publish views and maps; None while the node is not configured.
        memory_status: sizes of the memories by diagnostics key.
    """

    def __init__(self, diagnostics: NodeDiagnostics, log: Callable[[str], None]) -> None:
        self._diagnostics, self._log = diagnostics, log
        self._parameters = NodeParameters()
        self.publishers: Publishers | None = None
        self.memory_status: dict[str, object] = {}
        self._depth_of_newest = ""
        self._camera: Camera | None = None  # of the newest image that was no photograph
        self._observation_log = ObservationLog(log, lambda text, key: diagnostics.warn(text, key=key))
        self._job_log = JobLog(log)

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters

    def on_observation_remembered(self, world: WorldModel, observation: Observation) -> None:
        """Publishes that an observation was inserted into the memories."""
        if self.publishers is not None:
            self.publishers.memory_changed()
            self.publishers.publish_remembered(observation.stamp_ns, observation.image.header.frame_id)
        if isinstance(observation, Photograph):
            if self.publishers is not None:
                self.publishers.publish_photograph_pose(observation.stamp_ns, observation.world_from_camera)
            self._log(f"Placed a photograph from {observation.topic}: {observation.placed}.")
        else:
            newest = world.newest_observation
            self._camera = None if newest is None else newest.camera
            self._log_depth_change(world)
            self._observation_log.on_observation(world, observation.topic)
        self.between_steps(world)

    def _log_depth_change(self, world: WorldModel) -> None:
        """Logs when observations begin to have estimated or measured depth, since ~/map has measured points only."""
        depth = _depth_of_newest(world)
        changed = (depth or "measured") != (self._depth_of_newest or "measured")
        self._depth_of_newest = depth
        # Depth that comes and goes, such as at half the rate of the images, must not fill the log.
        if changed and self._diagnostics.is_log_due(f"depth:{depth}"):
            self._log(
                "Observations have no measured depth; their points are estimated: on ~/map/estimated, not on ~/map."
                if depth == "estimated"
                else "Observations have measured depth; it replaces estimated depth, and their points are on ~/map."
            )

    def on_observation_rejected(self, topic: str, reason: str) -> None:
        """Counts and logs an observation that is not usable."""
        self._diagnostics.on_rejected(topic, reason)

    def on_view(self, view: ImaginedView, job: Job) -> None:
        """Publishes a finished view of a path. A single view is returned by its service only."""
        if self.publishers is None or job.origin == VIEW_ORIGIN:
            return
        try:
            self.publishers.publish_view(view)
        except Exception as error:
            self._diagnostics.on_fault("publishing a view", error)

    def between_steps(self, world: WorldModel) -> None:
        """Updates `memory_status` and publishes the maps if they are due."""
        cloud = world.cloud
        self.memory_status = {
            "points": len(cloud),
            "observed points": cloud.observed_count,
            "estimated points": cloud.estimated_count,
            "imagined points": len(cloud) - cloud.observed_count - cloud.estimated_count,
            "depth of the newest observation": self._depth_of_newest or "none",
            "views in the bank": len(world.bank.views),
            "device in use": str(world.device),
            "backend": describe_backend(world),
        }
        if world.device.type == "cuda":
            import torch

            self.memory_status["GPU memory [MB]"] = f"{torch.cuda.memory_allocated(world.device) / 1e6:.0f}"
        try:
            if self.publishers is not None and self.publishers.map_due():
                self.publishers.publish_maps(world)
        except Exception as error:
            self._diagnostics.on_fault("publishing the map", error)

    def on_memory_replaced(self, world: WorldModel) -> None:
        """Publishes the memories after they were reset or loaded from a file."""
        self._depth_of_newest = _depth_of_newest(world)
        self._camera = None
        self._observation_log.restart()
        if self.publishers is not None:
            self.publishers.memory_replaced()
        self.between_steps(world)

    def on_memory_moved(self, world: WorldModel) -> None:
        """Publishes the memories after a corrected path moved them."""
        if self.publishers is not None:
            self.publishers.memory_changed()
        self.between_steps(world)

    def on_job_ended(self, job: Job, result: JobResult, seconds: float) -> None:
        """Counts and logs the job."""
        self._diagnostics.on_job_ended(result.code.name, job.views_done, seconds, job.fractions)
        if self.publishers is not None:
            self.publishers.memory_changed()
        self._job_log.on_ended(job, result, seconds)
        if text := describe_blocked(job.blocked, job.clearance):
            self._diagnostics.warn(text, key="blocked")

    def on_fault(self, where: str, error: Exception) -> None:
        """Counts and logs an unexpected exception."""
        self._diagnostics.on_fault(where, error)

    def camera_for(self, world: WorldModel, job: Job) -> Camera:
        """Returns the camera of a job's views: that of the newest image, resized to `view_width`. Logs the start.

        A photograph of another camera does not change it; of memories that were loaded it is the newest view's.

        Raises:
            EmptyMemoryError: the memories are empty.
            JobRejectedError: TOO_LARGE.
        """
        observation = world.newest_observation
        if observation is None:
            raise EmptyMemoryError(
                "The memory is empty. Publish an image with camera_info, depth and pose first, or load a map."
            )
        camera, width = self._camera or observation.camera, self._parameters.view_width
        if width:
            camera = camera.resized(width, max(1, round(width * camera.height / camera.width)))
        pixels = camera.width * camera.height * job.views
        if pixels > self._parameters.max_job_pixels:
            raise JobRejectedError(
                ErrorCode.TOO_LARGE,
                f"{job.views} views of {camera.width}x{camera.height} have {pixels} pixels; at most "
                f"{self._parameters.max_job_pixels} are accepted (parameter `max_job_pixels`). Request fewer views or "
                "reduce `view_width`.",
            )
        self._job_log.on_started(job, camera)
        return camera


def _depth_of_newest(world: WorldModel) -> str:
    """Where the newest observation's depth is from: measured if any of it is, else estimated; "" without one."""
    newest = world.newest_observation
    if newest is None:
        return ""
    measured = newest.depth is not None and ((newest.depth > 0) & ~newest.estimated_mask).any()
    return "measured" if measured else "estimated"
