"""The one thread that owns the model and the memories. No rclpy here: what it makes goes out through `Events`."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.pipelines.base import Cancelled, ModelError
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobRefused, JobResult, Mailbox
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.world import NothingSeenError, WorldModel

MAX_WAITING_VIEWS = 8  # single views wait for the running path; more than this are refused


class Events(Protocol):
    """What the worker tells; called on its thread. Exceptions are reported by `fault` and end nothing."""

    def observation_remembered(self, world: WorldModel, seed: Observation) -> None:
        """A seed is in memory."""

    def on_rejected(self, topic: str, sentence: str) -> None:
        """A seed was not usable."""

    def imagined(self, view: ImaginedView, job: Job) -> None:
        """A view is finished."""

    def between_steps(self, world: WorldModel) -> None:
        """The worker has a moment; memory is whole."""

    def ended(self, job: Job, outcome: JobResult, seconds: float) -> None:
        """A job ended here, after so many seconds of work."""

    def fault(self, where: str, error: Exception) -> None:
        """An exception that nobody expected."""


class Worker:
    """Owns a `WorldModel` on its own thread and feeds it.

    Seeds come through a mailbox of one slot (newest wins). Of paths one runs and one waits; a newer one supersedes
    both. Single views wait in line behind the running path. Calls (save, load, reset) run between jobs.

    Attributes:
        limits: called with the job and the camera of its views before it starts; raises JobRefused.
    """

    def __init__(self, events: Events, camera_for: Callable[[WorldModel, Job], Camera]) -> None:
        self._events = events
        self._camera_for = camera_for
        self._world: WorldModel | None = None
        self._wake = threading.Condition()
        self._seeds: Mailbox[Observation] = Mailbox()
        self._next_path: Job | None = None
        self._single_views: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], object], Future]] = deque()
        self._running: Job | None = None
        self._stopping = False
        self.observations_done = 0
        self._thread = threading.Thread(target=self._run, name="worldstereo_worker", daemon=True)
        self._thread.start()

    # --- asking, from any thread ----------------------------------------------------------------------------------

    @property
    def observations_dropped(self) -> int:
        """Seeds that a newer one displaced before their turn."""
        return self._seeds.dropped

    @property
    def running(self) -> Job | None:
        """The job that runs now."""
        return self._running

    def offer_observation(self, seed: Observation) -> None:
        """Puts a seed into the mailbox."""
        with self._wake:
            self._seeds.put(seed)
            self._wake.notify()

    def submit_path(self, job: Job) -> None:
        """Runs a path next. The one that runs and the one that waits are superseded."""
        reason = f"A newer path came from {job.origin}; the newest one wins."
        with self._wake:
            displaced, self._next_path = self._next_path, job
            running = self._running
            if running is not None and running.origin != VIEW_ORIGIN:
                running.stop(ErrorCode.SUPERSEDED, reason)
            self._wake.notify()
        if displaced is not None:
            displaced.end(JobResult(ErrorCode.SUPERSEDED, reason))

    def submit_view(self, job: Job) -> bool:
        """Imagines a single view when its turn comes; it supersedes nothing. False where too many wait."""
        with self._wake:
            if len(self._single_views) >= MAX_WAITING_VIEWS:
                return False
            self._single_views.append(job)
            self._wake.notify()
            return True

    def withdraw(self, job: Job, code: ErrorCode, message: str) -> None:
        """Ends a job that was asked to stop: at once where it waits, at its next step where it runs."""
        job.stop(code, message)
        with self._wake:
            waits = job is not self._running
            if job is self._next_path:
                self._next_path = None
            if job in self._single_views:
                self._single_views.remove(job)
        if waits:
            job.end(JobResult(code, message))

    def end_all(self, code: ErrorCode, message: str) -> None:
        """Asks the running job to stop and ends those that wait; seeds that wait are forgotten."""
        with self._wake:
            waiting = [*self._single_views, *([self._next_path] if self._next_path else [])]
            self._single_views.clear()
            self._next_path = None
            self._seeds.take()
            if self._running is not None:
                self._running.stop(code, message)
        for job in waiting:
            job.end(JobResult(code, message))

    def call(self, function: Callable[[], object]) -> Future:
        """Runs a function on the worker's thread, before any job or seed that waits."""
        future: Future = Future()
        with self._wake:
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def overdue(self, grace: float) -> list[Job]:
        """Jobs so far over their deadline that the worker must hang: they did not even stop."""
        now = time.monotonic()
        with self._wake:
            jobs = [self._running, self._next_path, *self._single_views]
        return [job for job in jobs if job is not None and not job.ended and now > job.deadline + grace]

    def wait_idle(self, seconds: float) -> bool:
        """Waits until no job runs; False where one still does after so long."""
        until = time.monotonic() + seconds
        while self._running is not None and time.monotonic() < until:
            time.sleep(0.005)
        return self._running is None

    def stop(self, seconds: float) -> bool:
        """Ends the thread; False where it did not end in time (it hangs; it is a daemon and dies with the process)."""
        self.end_all(ErrorCode.INACTIVE, "The node shuts down.")
        with self._wake:
            self._stopping = True
            calls = list(self._calls)
            self._calls.clear()
            self._wake.notify()
        for _, future in calls:
            future.cancel()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- working, on its own thread -------------------------------------------------------------------------------

    def adopt(self, world: WorldModel | None) -> None:
        """Takes over a world, or lets it go; only through `call`."""
        self._world = world
        if world is None:
            gc.collect()
            _empty_cuda_cache()

    @property
    def world(self) -> WorldModel | None:
        """The world; to be touched only through `call`."""
        return self._world

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._calls or self._next_up() is not None)
                if self._stopping:
                    return
                work = self._calls.popleft() if self._calls else self._take(self._next_up())
                self._running = work if isinstance(work, Job) else None
            try:
                if isinstance(work, Job):
                    self._do_job(work)
                elif isinstance(work, Observation):
                    self._do_seed(work)
                elif work is not None:
                    self._do_call(*work)
            except Exception as error:
                self._events.fault("worker", error)
            finally:
                self._running = None

    def _next_up(self) -> Observation | Job | None:
        """What came first: a seed before a path shows in it, and neither a fast camera nor a fast planner starves."""
        if self._world is None:
            return None
        waiting = [self._seeds.peek(), self._next_path, self._single_views[0] if self._single_views else None]
        return min((item for item in waiting if item is not None), key=lambda item: item.accepted_at, default=None)

    def _take(self, item: Observation | Job | None) -> Observation | Job | None:
        if isinstance(item, Observation):
            return self._seeds.take()
        if item is self._next_path:
            self._next_path = None
        elif item is not None:
            self._single_views.popleft()
        return item

    def _do_call(self, function: Callable[[], object], future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    def _do_seed(self, seed: Observation) -> None:
        assert self._world is not None
        try:
            seed.remember(self._world)
        except ValueError as error:  # ImageError is one
            self._events.on_rejected(seed.topic, str(error))
            return
        self.observations_done += 1
        self._events.observation_remembered(self._world, seed)

    def _do_job(self, job: Job) -> None:
        assert self._world is not None
        world, started = self._world, time.monotonic()
        outcome = self._imagine(world, job)
        seconds = time.monotonic() - started
        # The node hears of the end before whoever asked, so that its answer finds everything published.
        self._events.ended(job, outcome, seconds)
        job.end(outcome)
        self._events.between_steps(world)

    def _imagine(self, world: WorldModel, job: Job) -> JobResult:
        """Runs a job to its end, whatever that is."""

        def on_step(stage: str, step: int, steps: int) -> None:
            job.check()
            job.progress(stage, step, steps)
            self._events.between_steps(world)

        try:
            job.check()
            job.progress("waiting", 0, 1)
            camera = self._camera_for(world, job)
            views = world.imagine(
                job.world_from_camera,
                camera,
                prompt=job.prompt,
                seed=job.seed,
                remember=job.remember,
                on_step=on_step,
            )
            for view in views:
                job.check()
                job.view_done(view)
                self._events.imagined(view, job)
                job.progress("imagining", view.index + 1, view.count)
            if job.views_done < job.views:
                message = f"The pipeline gave {job.views_done} of {job.views} views and no reason."
                return JobResult(ErrorCode.MODEL_ERROR, message)
            return JobResult()
        except Cancelled:
            return job.stopped()
        except JobRefused as error:
            return JobResult(error.code, str(error))
        except NothingSeenError as error:
            return JobResult(ErrorCode.NO_OBSERVATION, str(error))
        except (ModelError, MemoryError, ArithmeticError, RuntimeError) as error:
            _empty_cuda_cache()
            return JobResult(ErrorCode.MODEL_ERROR, _model_sentence(error))
        except Exception as error:
            self._events.fault("job", error)
            return JobResult(ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}")


def _model_sentence(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return (
            "The device ran out of memory. Ask for fewer or smaller views (`view_width`), or close what else uses it. "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
    return f"The model failed: {error}" if isinstance(error, ModelError) else f"The model failed with {error!r}."


def _empty_cuda_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
