"""Finds out that the worker hangs, and says so for as long as it does. Imports no rclpy."""

from __future__ import annotations

import time
from collections.abc import Callable

from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, Job, JobResult
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.worker import Work, Worker


class Watchdog:
    """Watches whatever the worker does: jobs, observations (decoding, depth, fusion) and requests.

    Python cannot end a thread that hangs. What waits for it ends with a message, `NodeDiagnostics.problem` is set until
    the worker continues, and a new configuration of the node replaces the worker.

    Args:
        diagnostics: gets the problem, and an observation that hangs as a rejected one.
        error, info: log a line at that level.
    """

    def __init__(
        self, diagnostics: NodeDiagnostics, error: Callable[[str], object], info: Callable[[str], object]
    ) -> None:
        self._diagnostics, self._error, self._info = diagnostics, error, info
        self._hanging: Work | None = None

    def check(self, worker: Worker, parameters: NodeParameters) -> None:
        """Ends jobs that are overdue and reports a hang once. Call it often."""
        current = worker.current
        for job in worker.overdue(parameters.watchdog_grace):
            waits = current is not None and current.item is not job
            behind = f" It waited behind {current.description}." if waits and current is not None else ""
            job.end(JobResult(ErrorCode.TIMEOUT, job.timeout_message() + behind))
        if current is not None and time.monotonic() > deadline_of(current, parameters.job_timeout) + (
            parameters.watchdog_grace
        ):
            if self._hanging is not current:
                self._report(current, parameters)
            return
        if self._hanging is not None:
            self._hanging = None
            self._diagnostics.problem = ""
            self._info("Worker resumed.")

    def _report(self, work: Work, parameters: NodeParameters) -> None:
        self._hanging = work
        seconds = time.monotonic() - work.started_at
        self._diagnostics.problem = (
            f"The worker hangs in {work.description}, for {seconds:.0f} s: more than job_timeout and watchdog_grace "
            f"({parameters.job_timeout:g} + {parameters.watchdog_grace:g} s). New jobs and observations wait. Clean up "
            "and configure the node, which starts a new worker, or restart it."
        )
        self._error(self._diagnostics.problem)
        if isinstance(work.item, Observation):
            self._diagnostics.on_rejected(
                work.item.topic, f"The image was not remembered within {seconds:.0f} s; its decoding or depth hangs."
            )


def deadline_of(work: Work, timeout: float) -> float:
    """Returns the `time.monotonic()` by which work must be done: that of a job, else `timeout` s after its start."""
    if isinstance(work.item, Job):
        return max(work.item.deadline, work.started_at)  # one that waited too long ends right after its start
    return work.started_at + timeout
