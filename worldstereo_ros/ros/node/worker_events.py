"""What the worker tells, passed on to the outputs and the diagnostics. Called on the worker's thread."""

from __future__ import annotations

from collections.abc import Callable

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobRefused, JobResult
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.publishers import Publishers
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.world import NothingSeenError, WorldModel


class WorkerEventHandler:
    """Implements `worker.Events`.

    Attributes:
        outputs: where views and maps go; None while the node is not configured.
        settings: the parameters now.
        facts: what is remembered, for the diagnostics.
    """

    def __init__(self, health: NodeDiagnostics, log: Callable[[str], None]) -> None:
        self._health, self._log = health, log
        self.outputs: Publishers | None = None
        self.settings = NodeParameters()
        self.facts: dict[str, object] = {}

    def observation_remembered(self, world: WorldModel, seed: Observation) -> None:
        """A seed is in memory."""
        if self.outputs is not None:
            self.outputs.memory_changed()
            self.outputs.observation_remembered(seed.stamp_ns, seed.image.header.frame_id)
        self.between_steps(world)

    def on_rejected(self, topic: str, sentence: str) -> None:
        """A seed was not usable."""
        self._health.on_rejected(topic, sentence)

    def imagined(self, view: ImaginedView, job: Job) -> None:
        """A view is finished; single views go only to who asked for them."""
        if self.outputs is None or job.origin == VIEW_ORIGIN:
            return
        try:
            self.outputs.view(view)
        except Exception as error:
            self._health.fault("publishing a view", error)

    def between_steps(self, world: WorldModel) -> None:
        """Publishes the map when it is due."""
        self.facts = {
            "points": len(world.cloud),
            "views in the bank": len(world.bank.views),
            "device in use": str(world.device),
        }
        if world.device.type == "cuda":
            import torch

            self.facts["memory of the GPU [MB]"] = f"{torch.cuda.memory_allocated(world.device) / 1e6:.0f}"
        try:
            if self.outputs is not None and self.outputs.map_due():
                self.outputs.map(world)
        except Exception as error:
            self._health.fault("publishing the map", error)

    def memory_cleared(self, world: WorldModel) -> None:
        """What was remembered is gone, or replaced."""
        if self.outputs is not None:
            self.outputs.memory_cleared()
        self.between_steps(world)

    def ended(self, job: Job, outcome: JobResult, seconds: float) -> None:
        """A job ended."""
        done = max(job.views_done, 1)
        self._health.job_ended(outcome.code.name.lower(), job.views_done, seconds, job.coverage_sum / done)
        if self.outputs is not None:
            self.outputs.memory_changed()
        if outcome.code == ErrorCode.NONE:
            self._log(
                f"Imagined {job.views_done} views for {job.origin} in {seconds:.2f} s ({seconds / done:.3f} s a view)."
            )

    def fault(self, where: str, error: Exception) -> None:
        """An exception that nobody expected."""
        self._health.fault(where, error)

    def camera_for(self, world: WorldModel, job: Job) -> Camera:
        """The camera of a job's views: the newest seed's, in the size the parameters say.

        Raises:
            NothingSeenError: nothing was seen.
            JobRefused: TOO_LARGE.
        """
        seed = world.newest_observation
        if seed is None:
            raise NothingSeenError(
                "Nothing was seen yet: the memory is empty. Send an image with camera_info, depth and pose first, or "
                "load a map."
            )
        camera, width = seed.camera, self.settings.view_width
        if width:
            camera = camera.resized(width, max(1, round(width * camera.height / camera.width)))
        pixels = camera.width * camera.height * job.views
        if pixels > self.settings.max_job_pixels:
            raise JobRefused(
                ErrorCode.TOO_LARGE,
                f"{job.views} views of {camera.width}x{camera.height} are {pixels} pixels; at most "
                f"{self.settings.max_job_pixels} are made (parameter `max_job_pixels`). Ask for fewer or set "
                "`view_width`.",
            )
        return camera
