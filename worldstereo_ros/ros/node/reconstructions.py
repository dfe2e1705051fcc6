"""Reconstructions of what is remembered: jobs beside the worker, each in a process of its own. Imports no rclpy.

The worker hands over its views, which takes no time; the node remembers and imagines meanwhile. One
reconstruction runs, and a newer one supersedes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # another class than TimeoutError in Python 3.10
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldstereo_ros.memory.archive import SUFFIX, write_archive
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.ros.node.jobs import ErrorCode
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.utils.errors import WorldStereoError

if TYPE_CHECKING:
    from worldstereo_ros.reconstruction.background import BackgroundReconstruction
    from worldstereo_ros.reconstruction.place import PlaceSettings

POLL_PERIOD_S = 0.2  # between two looks whether the views are there, or the time is up
STOP_TIMEOUT_S = 5.0  # of the node's end, for a reconstruction to end

OnProgress = Callable[[str, str, int, int], None]  # (stage, what, step, steps)


@dataclass(frozen=True)
class ReconstructionResult:
    """How a reconstruction ended.

    Attributes:
        code, message: NONE and empty if it succeeded.
        folder: where the results are.
        figures: what figures.json holds; empty if it failed.
        seconds: from acceptance to the end.
    """

    code: ErrorCode = ErrorCode.NONE
    message: str = ""
    folder: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Reconstruction:
    """One request. It ends exactly once: by its process, a newer request, its client, the node or its timeout.

    Args:
        folder: where the results are written.
        options: fields of `reconstruction.place.PlaceSettings`.
        origin: which interface and client requested it, for the log.
        timeout: seconds from now until it ends with TIMEOUT.
        on_progress: called with its progress, on a thread of its own.
        on_end: called once with the result, on that thread or the one that ends it.
    """

    def __init__(
        self,
        folder: Path,
        options: dict[str, Any],
        *,
        origin: str,
        timeout: float,
        on_end: Callable[[ReconstructionResult], None],
        on_progress: OnProgress | None = None,
    ) -> None:
        self.folder, self.options, self.origin, self.timeout = folder, options, origin, timeout
        self.accepted_at = time.monotonic()
        self.progress = "waiting"
        self._on_end, self._on_progress = on_end, on_progress
        self._process: BackgroundReconstruction | None = None
        self._reason: tuple[ErrorCode, str] | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def stopped(self) -> bool:
        """Whether it was told to end; also at its timeout."""
        if time.monotonic() > self.accepted_at + self.timeout:
            self.stop(
                ErrorCode.TIMEOUT,
                f"The reconstruction exceeded its timeout of {self.timeout:g} s (parameter `reconstruct_timeout`), in "
                f"the stage {self.progress}. What it computed is kept.",
            )
        return self._reason is not None

    def stop(self, code: ErrorCode, message: str) -> None:
        """Ends it soon. Of several reasons the first one is reported."""
        with self._lock:
            self._reason = self._reason or (code, message)
            process = self._process
        if process is not None:
            process.stop()

    def start(self, source: Path, settings: PlaceSettings) -> BackgroundReconstruction:
        """Starts the process; it is stopped at once if `stop` was called before."""
        from worldstereo_ros.reconstruction.background import BackgroundReconstruction

        process = BackgroundReconstruction(source, self.folder, settings)
        with self._lock:
            self._process, stopped = process, self._reason is not None
        if stopped:
            process.stop()
        return process

    def report(self, stage: str, what: str, step: int, steps: int) -> None:
        """Notes and forwards the progress."""
        self.progress = f"{stage}: {what} {step}/{steps}" if steps else f"{stage}: {what}"
        if self._on_progress is not None and not self._ended:
            self._on_progress(stage, what, step, steps)

    def end(self, code: ErrorCode = ErrorCode.NONE, message: str = "", figures: dict[str, Any] | None = None) -> None:
        """Ends it with a result; with the reason for which it was told to end, if it was."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._reason is not None and figures is None:
                code, message = self._reason
        seconds = time.monotonic() - self.accepted_at
        self._on_end(ReconstructionResult(code, message, str(self.folder), figures or {}, seconds))


class Reconstructions:
    """Runs reconstructions, one at a time.

    Args:
        get_worker: returns the current worker, which owns the views.
        log: logs a line at level info.
        on_fault: gets unexpected exceptions.
    """

    def __init__(
        self, get_worker: Callable[[], Worker], log: Callable[[str], object], on_fault: Callable[[str, Exception], None]
    ) -> None:
        self._get_worker, self._log, self._on_fault = get_worker, log, on_fault
        self._running: Reconstruction | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def running(self) -> Reconstruction | None:
        """The one that runs; None if there is none."""
        return self._running

    def submit(self, job: Reconstruction) -> None:
        """Starts a reconstruction, which supersedes the one that runs."""
        with self._lock:
            earlier, self._running = self._running, job
            previous = self._thread
            self._thread = threading.Thread(
                target=self._run, args=(job, previous), name="worldstereo_reconstruction", daemon=True
            )
        if earlier is not None:
            earlier.stop(ErrorCode.SUPERSEDED, f"Superseded by a newer request from {job.origin}.")
        self._thread.start()

    def end_all(self, code: ErrorCode, message: str) -> None:
        """Stops the one that runs."""
        running = self._running
        if running is not None:
            running.stop(code, message)

    def close(self) -> None:
        """Waits until the one that was told to end has ended."""
        thread = self._thread
        if thread is not None:
            thread.join(STOP_TIMEOUT_S)

    def _run(self, job: Reconstruction, previous: threading.Thread | None) -> None:
        if previous is not None:
            previous.join()  # it writes to the folder until it has ended
        self._log(f"Reconstructing {job.folder} for {job.origin}.")
        source = job.folder.with_name(f".{job.folder.name}.remembered{SUFFIX}")
        try:
            figures = self._reconstruct(job, source)
        except Exception as error:
            code, message = _failure(error)
            if code == ErrorCode.UNKNOWN and not job.stopped:
                self._on_fault("reconstruction", error)
            job.end(code, message)
        else:
            self._log(
                f"Reconstructed {job.folder} in {time.monotonic() - job.accepted_at:.0f} s: {figures['registered']} of "
                f"{figures['images']} photographs, {figures['points']} points."
            )
            job.end(figures=figures)
        finally:
            source.unlink(missing_ok=True)
            with self._lock:
                if self._running is job:
                    self._running = None

    def _reconstruct(self, job: Reconstruction, source: Path) -> dict[str, Any]:
        """Runs the process on the views of the worker; figures.json. Raises whatever goes wrong."""
        job.report("waiting", "for the views", 0, 0)
        bank = self._views(job)
        count = int(bank["count"])
        further = list(job.options["photographs"])
        if not count and not further:
            raise _RejectedError(
                ErrorCode.NO_OBSERVATION,
                "Nothing was observed yet. Publish images with camera_info and poses, load a map, or name photographs.",
            )
        if count:
            source.parent.mkdir(parents=True, exist_ok=True)
            write_archive(source, CloudMemory().state(), bank, {"pipeline": "remembered"})
        elif len(further) == 1 and Path(further[0]).is_dir():
            source, further = Path(further[0]), []
        else:
            raise _RejectedError(
                ErrorCode.INVALID_REQUEST,
                "Nothing was observed yet, so that the photographs join nothing; name one folder that holds them all.",
            )
        from worldstereo_ros.reconstruction.place import PlaceSettings

        settings = PlaceSettings(**{**job.options, "photographs": tuple(str(path) for path in further)})
        process = job.start(source, settings)
        timer = threading.Thread(target=self._watch, args=(job,), daemon=True)
        timer.start()
        return process.wait(job.report)

    def _watch(self, job: Reconstruction) -> None:
        """Ends a job at its timeout, also while its process says nothing."""
        while self._running is job and not job.stopped:
            time.sleep(POLL_PERIOD_S)

    def _views(self, job: Reconstruction) -> dict[str, Any]:
        """State of the bank of views, which is not changed in place. Waits for the worker, which may run a job."""
        worker = self._get_worker()

        def state() -> dict[str, Any]:
            if worker.world is None:
                raise _RejectedError(ErrorCode.INACTIVE, "The node is not configured; configure and activate it.")
            return worker.world.bank.state()

        future: Future = worker.call(state)
        while not job.stopped:
            try:
                return future.result(POLL_PERIOD_S)
            except FutureTimeoutError:
                continue
            except CancelledError:
                raise _RejectedError(ErrorCode.INACTIVE, "The node is shutting down.") from None
        future.cancel()
        raise _RejectedError(ErrorCode.CANCELED, "The reconstruction was stopped.")  # `end` knows why


class _RejectedError(WorldStereoError, RuntimeError):
    """A reconstruction that cannot run; with the code for the client."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def _failure(error: Exception) -> tuple[ErrorCode, str]:
    """Code and message for the client."""
    from worldstereo_ros.reconstruction.background import ReconstructionFailedError, ReconstructionStoppedError

    if isinstance(error, _RejectedError):
        return error.code, str(error)
    if isinstance(error, ReconstructionStoppedError):
        return ErrorCode.CANCELED, str(error)
    if isinstance(error, ReconstructionFailedError | WorldStereoError):
        return ErrorCode.NOT_RECONSTRUCTED, str(error)
    return ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}"
