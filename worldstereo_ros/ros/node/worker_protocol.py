"""What the worker tells of its work. Imports no rclpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.ros.node.jobs import Job, JobResult
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.world import WorldModel


class WorkerEvents(Protocol):
    """Callbacks of the worker, called on its thread. It reports their exceptions by `on_fault` and continues."""

    def on_observation_remembered(self, world: WorldModel, observation: Observation) -> None:
        """An observation was inserted into the memories."""

    def on_observation_rejected(self, topic: str, reason: str) -> None:
        """An observation was not usable."""

    def on_view(self, view: ImaginedView, job: Job) -> None:
        """A view is finished."""

    def between_steps(self, world: WorldModel) -> None:
        """Called between two steps of a job and after each job; the memories are consistent."""

    def on_job_ended(self, job: Job, result: JobResult, seconds: float) -> None:
        """A job left the worker after `seconds` of work. Called before the client gets the result."""

    def on_fault(self, where: str, error: Exception) -> None:
        """An unexpected exception."""


class NoEvents:
    """Events of a worker that was given up: nothing happens."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Any event of the protocol."""
        return lambda *arguments: None
