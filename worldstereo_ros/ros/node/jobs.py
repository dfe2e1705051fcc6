"""What is asked of the worker, and how it ended. No rclpy here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Generic, TypeVar

import numpy as np

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.utils.errors import WorldStereoError

VIEW_ORIGIN = "imagine_view"  # single views supersede nothing and are superseded by nothing


class ErrorCode(IntEnum):
    """The error codes of ImaginePath and ImagineView; a test holds them equal to the interface files."""

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


@dataclass(frozen=True)
class JobResult:
    """How a job ended."""

    code: ErrorCode = ErrorCode.NONE
    message: str = ""
    views_done: int = 0
    coverage: float = 0.0
    observed_fraction: float = 0.0
    seconds: float = 0.0
    seconds_to_first: float = 0.0
    view: ImaginedView | None = None


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str
    step: int = 0
    steps: int = 0
    views_done: int = 0
    views: int = 0
    seconds_left: float = -1.0


class JobRefused(WorldStereoError, ValueError):  # noqa: N818 - reads as what happened
    """A job that cannot be done; `code` and the message go to whoever asked."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Job:
    """One path (or one pose) to imagine along.

    It ends exactly once, whoever ends it first: the worker, a cancel, a newer job, or the watchdog.

    Attributes:
        world_from_camera: (F, 4, 4).
        origin: who asked, for the log.
        deadline: `time.monotonic()` at which it must be done.
        views_done, coverage_sum: of the views so far.
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
        on_progress: Callable[[Progress], None] | None = None,
        on_end: Callable[[JobResult], None] | None = None,
    ) -> None:
        self.world_from_camera = world_from_camera
        self.origin = origin
        self.prompt, self.seed, self.remember = prompt, seed, remember
        self.accepted_at = time.monotonic()
        self.timeout = timeout
        self.deadline = self.accepted_at + timeout
        self.views_done = 0
        self.coverage_sum = self._observed = 0.0
        self._first: float | None = None
        self._last: ImaginedView | None = None
        self._on_progress, self._on_end = on_progress, on_end
        self._stop: tuple[ErrorCode, str] | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def views(self) -> int:
        """How many views were asked for."""
        return len(self.world_from_camera)

    @property
    def ended(self) -> bool:
        """Whether its outcome is known."""
        return self._ended

    def stop(self, code: ErrorCode, message: str) -> None:
        """Asks it to end at the next step. The first reason counts."""
        with self._lock:
            self._stop = self._stop or (code, message)

    def check(self) -> None:
        """Raises Cancelled where it was asked to end, was ended already, or is over its deadline."""
        if time.monotonic() > self.deadline:
            self.stop(ErrorCode.TIMEOUT, self.timeout_sentence())
        if self._stop is not None or self._ended:
            raise Cancelled(self._stop[1] if self._stop else "the job has ended")

    def timeout_sentence(self) -> str:
        """Why it was ended when its time was up."""
        return (
            f"The job was not done after {self.timeout:g} s (parameter `job_timeout`): "
            f"{self.views_done} of {self.views} views were."
        )

    def stopped(self) -> JobResult:
        """The outcome of a job that was stopped."""
        code, message = self._stop or (ErrorCode.CANCELED, "The job was canceled.")
        return JobResult(code, message)

    def view_done(self, view: ImaginedView) -> None:
        """Counts a finished view."""
        self.views_done += 1
        self.coverage_sum += view.coverage
        self._observed += view.observed_fraction
        self._last = view
        if self._first is None:
            self._first = time.monotonic() - self.accepted_at

    def progress(self, stage: str, step: int, steps: int) -> None:
        """Tells whoever asked how far it is."""
        if self._on_progress is None or self._ended:
            return
        seconds = time.monotonic() - self.accepted_at
        left = seconds / self.views_done * (self.views - self.views_done) if self.views_done else -1.0
        self._on_progress(Progress(stage, step, steps, self.views_done, self.views, left))

    def end(self, outcome: JobResult) -> bool:
        """Ends it, with the counts filled in. False where it had ended before."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        done = max(self.views_done, 1)
        outcome = replace(
            outcome,
            views_done=self.views_done,
            coverage=self.coverage_sum / done,
            observed_fraction=self._observed / done,
            seconds=time.monotonic() - self.accepted_at,
            seconds_to_first=self._first or 0.0,
            view=self._last,
        )
        if self._on_end is not None:
            self._on_end(outcome)
        return True


Item = TypeVar("Item")


@dataclass
class Mailbox(Generic[Item]):
    """One slot, newest wins; what was displaced is counted. Guarded by its owner's lock."""

    dropped: int = 0
    _item: Item | None = field(default=None, repr=False)

    def put(self, item: Item) -> Item | None:
        """Puts it in; returns what it displaced."""
        displaced, self._item = self._item, item
        self.dropped += displaced is not None
        return displaced

    def take(self) -> Item | None:
        """Takes it out; None where there is none."""
        item, self._item = self._item, None
        return item

    def peek(self) -> Item | None:
        """Looks at it; None where there is none."""
        return self._item
