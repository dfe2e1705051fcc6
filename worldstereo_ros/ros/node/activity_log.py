"""What the node logs of its work, sparingly: observations and jobs. An idle node logs nothing. Imports no rclpy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.depth_units import check_depth
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.node.jobs import ErrorCode, Job, JobResult
from worldstereo_ros.world import WorldModel

SUMMARY_PERIOD_S = 30.0  # between two lines about observations
MIN_JOB_PERIOD_S = 1.0  # between the starts of two jobs that are logged
DEPTH_CHECKS = (2, 4, 8, 16)  # numbers of observations after which depth is checked, and every hundredth
CHECKED_VIEWS = 4
CHECKED_WIDTH_PX = 320  # to which they are reduced, so that the worker is not held up


class ObservationLog:
    """Logs the first observation, then a summary at most every SUMMARY_PERIOD_S, with an observation.

    Args:
        log: logs a line at level info.
        warn: logs (text, key) at level warning, sparingly for each key.
    """

    def __init__(self, log: Callable[[str], None], warn: Callable[[str, str], None]) -> None:
        self._log, self._warn = log, warn
        self.restart()

    def restart(self) -> None:
        """Starts over, when the memories were replaced."""
        self._count = self._logged_count = 0
        self._logged_at = -1e9

    def on_observation(self, world: WorldModel, topic: str) -> None:
        """Logs an observation that was remembered, if a line is due, and checks its depth now and then."""
        self._count += 1
        if self._count in DEPTH_CHECKS or self._count % 100 == 0:
            views = [view for view in world.bank.views if view.is_observation][-CHECKED_VIEWS:]
            warning = check_depth([_reduced(view) for view in views], "The depth", "parameter `depth_unit`")
            if warning:
                self._warn(warning, "depth unit")
        now = time.monotonic()
        if now - self._logged_at < SUMMARY_PERIOD_S:
            return
        new = self._count - self._logged_count
        newest = world.newest_observation
        size = f" of {newest.camera.width}x{newest.camera.height}" if newest is not None else ""
        what = (
            f"Remembered the first image{size}, from {topic}" if new == self._count else f"Remembered {new} more images"
        )
        self._log(f"{what}: {len(world.cloud)} points and {len(world.bank.views)} views in memory.")
        self._logged_at, self._logged_count = now, self._count


def _reduced(view: View) -> View:
    """Every n-th pixel of a view, in both directions."""
    step, camera = max(view.camera.width // CHECKED_WIDTH_PX, 1), view.camera
    if step == 1:
        return view
    image = np.ascontiguousarray(view.image[::step, ::step])
    height, width = image.shape[:2]
    small = Camera(width, height, camera.fx / step, camera.fy / step, camera.cx / step, camera.cy / step)
    every = slice(None, None, step), slice(None, None, step)
    return View(
        image,
        small,
        view.world_from_camera,
        depth=None if view.depth is None else np.ascontiguousarray(view.depth[every]),
        estimated=None if view.estimated is None else np.ascontiguousarray(view.estimated[every]),
        stamp_ns=view.stamp_ns,
    )


class JobLog:
    """Logs the start and the end of jobs. Of jobs that follow each other within MIN_JOB_PERIOD_S only some are logged.

    Args:
        log: logs a line at level info.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._logged: Job | None = None
        self._logged_at = -1e9
        self._passed_over = 0

    def on_started(self, job: Job, camera: Camera) -> None:
        """Logs that a job starts."""
        now = time.monotonic()
        with self._lock:
            if now - self._logged_at < MIN_JOB_PERIOD_S:
                self._passed_over += 1
                return
            passed_over, self._passed_over = self._passed_over, 0
            self._logged, self._logged_at = job, now
        others = f" ({passed_over} jobs since the last one that was logged)" if passed_over else ""
        self._log(f"Imagining {_views(job.views)} of {camera.width}x{camera.height} for {job.origin}{others}.")

    def on_ended(self, job: Job, result: JobResult, seconds: float) -> None:
        """Logs the end of a job whose start was logged."""
        with self._lock:
            if job is not self._logged:
                return
            self._logged = None
        if result.code != ErrorCode.NONE:
            self._log(
                f"Ended with {result.code.name} after {seconds:.2f} s: {job.views_done} of {_views(job.views)} for "
                f"{job.origin}."
            )
            return
        _, observed, estimated = job.fractions
        self._log(
            f"Imagined {_views(job.views_done)} for {job.origin} in {seconds:.2f} s "
            f"({seconds / max(job.views_done, 1):.3f} s per view): {observed:.0%} of the pixels observed, "
            f"{estimated:.0%} estimated."
        )


def _views(count: int) -> str:
    return "1 view" if count == 1 else f"{count} views"
