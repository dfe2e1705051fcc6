"""Jobs of the worker: what is to be imagined, how far it is, and how it ended. Imports no rclpy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Generic, TypeVar

import numpy as np

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.memory.path_clearance import PATH_CLEARANCE_M
from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.utils.errors import WorldStereoError

VIEW_ORIGIN = "imagine_view"  # origin of single views, which neither supersede a job nor are superseded


class ErrorCode(IntEnum):
    """Error codes of the action and services, equal to the constants of the interface files."""

    NONE = 0
    UNKNOWN = 300
    INVALID_PATH = 301
    TF_ERROR = 302
    NO_OBSERVATION = 303
    INACTIVE = 304
    SUPERSEDED = 305
    CANCELED = 306
    MODEL_ERROR = 307
    TOO_LARGE = 308
    TIMEOUT = 309
    INVALID_REQUEST = 310
    NOT_RECONSTRUCTED = 311


@dataclass(frozen=True)
class JobResult:
    """Result of a job.

    Attributes:
        code, message: NONE and empty if the job succeeded.
        views_done: number of finished views.
        coverage, observed_fraction, estimated_fraction: means over the finished views, 0..1.
        blocked: of each finished view, see `ImaginedView.blocked`.
        seconds: time from acceptance to the end. seconds_to_first: time from acceptance to the first view; 0 if there
            is none.
        view: the last finished view.
    """

    code: ErrorCode = ErrorCode.NONE
    message: str = ""
    views_done: int = 0
    coverage: float = 0.0
    observed_fraction: float = 0.0
    estimated_fraction: float = 0.0
    blocked: tuple[bool, ...] = ()
    seconds: float = 0.0
    seconds_to_first: float = 0.0
    view: ImaginedView | None = None


@dataclass(frozen=True)
class Progress:
    """Progress of a job; the fields are those of the feedback of ImaginePath."""

    stage: str
    step: int = 0
    steps: int = 0
    views_done: int = 0
    views: int = 0
    seconds_left: float = -1.0


class JobRejectedError(WorldStereoError, ValueError):
    """The job cannot run; `code` and the message go to the client."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Job:
    """Imagines the views of one path or one pose.

    A job ends exactly once: by the worker, a cancel request, a newer job or the watchdog, whichever is first.

    Args:
        world_from_camera: (F, 4, 4) poses of the views.
        origin: which interface and client requested it, for the log.
        timeout: seconds from now until it is ended with TIMEOUT.
        prompt, seed, remember: as in ImaginePath.
        clearance: distance of the path from observed surfaces, metres; views that are closer are blocked.
        on_progress: called with the progress after each step, on the worker's thread.
        on_end: called once with the result, on the thread that ends the job.

    Attributes:
        accepted_at: `time.monotonic()` of its creation.
        deadline: `time.monotonic()` by which it must be done.
        views_done: number of finished views.
    """

    def __init__(
        self,
        world_from_camera: np.ndarray,
        *,
        origin: str,
        timeout: float,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        clearance: float = PATH_CLEARANCE_M,
        on_progress: Callable[[Progress], None] | None = None,
        on_end: Callable[[JobResult], None] | None = None,
    ) -> None:
        self.world_from_camera = world_from_camera
        self.origin = origin
        self.prompt, self.seed, self.remember, self.clearance = prompt, seed, remember, clearance
        self.accepted_at = time.monotonic()
        self.timeout = timeout
        self.deadline = self.accepted_at + timeout
        self.views_done = 0
        self._coverage_sum = self._observed_sum = self._estimated_sum = 0.0
        self._blocked: list[bool] = []
        self._seconds_to_first: float | None = None
        self._last_view: ImaginedView | None = None
        self._on_progress, self._on_end = on_progress, on_end
        self._stop_reason: tuple[ErrorCode, str] | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def views(self) -> int:
        """Number of requested views."""
        return len(self.world_from_camera)

    @property
    def fractions(self) -> tuple[float, float, float]:
        """(coverage, observed fraction, estimated fraction): means over the finished views, 0 without one."""
        count = max(self.views_done, 1)
        return self._coverage_sum / count, self._observed_sum / count, self._estimated_sum / count

    @property
    def blocked(self) -> tuple[bool, ...]:
        """Of each finished view whether its pose is blocked."""
        return tuple(self._blocked)

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self._ended

    def request_stop(self, code: ErrorCode, message: str) -> None:
        """Makes the job end at its next step. Of several reasons the first one is reported."""
        with self._lock:
            self._stop_reason = self._stop_reason or (code, message)

    def raise_if_stopped(self) -> None:
        """Raises Cancelled if a stop was requested, the job has ended, or its deadline has passed."""
        if time.monotonic() > self.deadline:
            self.request_stop(ErrorCode.TIMEOUT, self.timeout_message())
        if self._stop_reason is not None or self._ended:
            raise Cancelled(self._stop_reason[1] if self._stop_reason else "the job has ended")

    def timeout_message(self) -> str:
        """Error message of a job that exceeded its timeout."""
        return (
            f"The job exceeded its timeout of {self.timeout:g} s (parameter `job_timeout`): "
            f"{self.views_done} of {self.views} views are done."
        )

    def stop_result(self) -> JobResult:
        """Result of a job that was stopped: the first reason, else CANCELED."""
        code, message = self._stop_reason or (ErrorCode.CANCELED, "The job was canceled.")
        return JobResult(code, message)

    def add_view(self, view: ImaginedView) -> None:
        """Counts a finished view."""
        self.views_done += 1
        self._coverage_sum += view.coverage
        self._observed_sum += view.observed_fraction
        self._estimated_sum += view.estimated_fraction
        self._blocked.append(view.blocked)
        self._last_view = view
        if self._seconds_to_first is None:
            self._seconds_to_first = time.monotonic() - self.accepted_at

    def report_progress(self, stage: str, step: int, steps: int) -> None:
        """Calls `on_progress`, unless the job has ended.

        Args:
            stage: one of the stages that `ImaginePath.action` lists.
            step, steps: step within the stage, and the number of steps.
        """
        if self._on_progress is None or self._ended:
            return
        seconds = time.monotonic() - self.accepted_at
        seconds_left = seconds / self.views_done * (self.views - self.views_done) if self.views_done else -1.0
        self._on_progress(Progress(stage, step, steps, self.views_done, self.views, seconds_left))

    def end(self, result: JobResult) -> bool:
        """Ends the job and calls `on_end` with the result and the counts so far. Returns False if it had ended."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        coverage, observed_fraction, estimated_fraction = self.fractions
        result = replace(
            result,
            views_done=self.views_done,
            coverage=coverage,
            observed_fraction=observed_fraction,
            estimated_fraction=estimated_fraction,
            blocked=self.blocked,
            seconds=time.monotonic() - self.accepted_at,
            seconds_to_first=self._seconds_to_first or 0.0,
            view=self._last_view,
        )
        if self._on_end is not None:
            self._on_end(result)
        return True


Item = TypeVar("Item")


@dataclass
class Mailbox(Generic[Item]):
    """A queue of one slot in which the newest item wins. Not thread-safe: its owner locks.

    Attributes:
        dropped: number of items that a newer one replaced.
    """

    dropped: int = 0
    _item: Item | None = field(default=None, repr=False)

    def put(self, item: Item) -> Item | None:
        """Stores an item and returns the one it replaced, None if the slot was empty."""
        replaced, self._item = self._item, item
        self.dropped += replaced is not None
        return replaced

    def take(self) -> Item | None:
        """Removes and returns the item, None if the slot is empty."""
        item, self._item = self._item, None
        return item

    def peek(self) -> Item | None:
        """Returns the item without removing it, None if the slot is empty."""
        return self._item
