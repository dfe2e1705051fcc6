"""The worker thread, which owns the model and the memories. Imports no rclpy: results leave through `WorkerEvents`."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import cast

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.base import Cancelled, ModelError
from worldstereo_ros.ros.node.jobs import VIEW_ORIGIN, ErrorCode, Job, JobRejectedError, JobResult, Mailbox
from worldstereo_ros.ros.node.photographs import MAX_QUEUED, NotPlacedError, Photograph, PhotographQueue
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.worker_protocol import NoEvents, WorkerEvents
from worldstereo_ros.utils.errors import first_line
from worldstereo_ros.world import EmptyMemoryError, WorldModel

MAX_WAITING_VIEWS = 8  # single views in the queue behind the running path; further ones are rejected
_abandoned: list[threading.Thread] = []


@dataclass(frozen=True)
class Work:
    """What the worker does at the moment.

    Attributes:
        description: for the log, such as "an observation from image".
        started_at: `time.monotonic()` of its start.
        item: the job, the observation, or None for a call.
    """

    description: str
    started_at: float
    item: Job | Observation | None = None


class Worker:
    """Runs a `WorldModel` on its own thread.

    Observations come through a mailbox of one slot (the newest wins), photographs through a queue. One path runs and
    one waits; a newer path supersedes both. Single views queue behind the running path. Calls (save, load, reset) run
    between jobs.

    Args:
        events: callbacks for results.
        camera_for: (world, job) -> camera of the job's views; called before the job starts, may raise
            JobRejectedError or EmptyMemoryError.

    Attributes:
        observations_done: number of observations inserted into the memories.
    """

    def __init__(self, events: WorkerEvents, camera_for: Callable[[WorldModel, Job], Camera]) -> None:
        self._events = events
        self._camera_for = camera_for
        self._world: WorldModel | None = None
        self._wake = threading.Condition()
        self._observations: Mailbox[Observation] = Mailbox()
        self._photographs = PhotographQueue()
        self._next_path: Job | None = None
        self._single_views: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], object], Future]] = deque()
        self._current: Work | None = None
        self._current_call: Future | None = None
        self._stopping = False
        self.observations_done = 0
        self._thread = threading.Thread(target=self._run, name="worldstereo_worker", daemon=True)
        self._thread.start()

    # --- requests, from any thread ---

    @property
    def observations_dropped(self) -> int:
        """Number of observations that a newer one replaced while they waited."""
        return self._observations.dropped

    @property
    def current(self) -> Work | None:
        """What the worker does at the moment; None if it is idle."""
        return self._current

    @property
    def running(self) -> Job | None:
        """The running job; None if there is none, as while the worker remembers an observation."""
        current = self._current
        return current.item if current is not None and isinstance(current.item, Job) else None

    def offer_observation(self, observation: Observation) -> None:
        """Puts an observation into the mailbox, or a photograph into the queue."""
        with self._wake:
            if isinstance(observation, Photograph):
                accepted = self._photographs.put(observation)
            else:
                accepted, _ = True, self._observations.put(observation)
            self._wake.notify()
        if not accepted:
            message = f"{MAX_QUEUED} photographs wait already; send it again later."
            self._events.on_observation_rejected(observation.topic, message)

    def submit_path(self, job: Job) -> None:
        """Runs a path next and supersedes the running path and the waiting one."""
        message = f"Superseded by a newer path from {job.origin}."
        with self._wake:
            replaced, self._next_path = self._next_path, job
            running = self.running
            if running is not None and running.origin != VIEW_ORIGIN:
                running.request_stop(ErrorCode.SUPERSEDED, message)
            self._wake.notify()
        if replaced is not None:
            replaced.end(JobResult(ErrorCode.SUPERSEDED, message))

    def submit_view(self, job: Job) -> bool:
        """Queues a single view, which supersedes nothing. Returns False if the queue is full."""
        with self._wake:
            if len(self._single_views) >= MAX_WAITING_VIEWS:
                return False
            self._single_views.append(job)
            self._wake.notify()
            return True

    def cancel(self, job: Job, code: ErrorCode, message: str) -> None:
        """Ends a job with a code: immediately if it waits, at its next step if it runs."""
        job.request_stop(code, message)
        with self._wake:
            waits = job is not self.running
            if job is self._next_path:
                self._next_path = None
            if job in self._single_views:
                self._single_views.remove(job)
        if waits:
            job.end(JobResult(code, message))

    def end_all(self, code: ErrorCode, message: str) -> None:
        """Stops the running job at its next step, ends the waiting ones and drops waiting observations."""
        with self._wake:
            waiting = [*self._single_views, *([self._next_path] if self._next_path else [])]
            self._single_views.clear()
            self._next_path = None
            self._observations.take()
            self._photographs.clear()
            running = self.running
            if running is not None:
                running.request_stop(code, message)
        for job in waiting:
            job.end(JobResult(code, message))

    def call(self, function: Callable[[], object]) -> Future:
        """Runs a function on the worker's thread, before any waiting job or observation."""
        future: Future = Future()
        with self._wake:
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def overdue(self, grace: float) -> list[Job]:
        """Jobs that have not ended `grace` seconds after their deadline, which means that the worker hangs."""
        now = time.monotonic()
        with self._wake:
            jobs = [self.running, self._next_path, *self._single_views]
        return [job for job in jobs if job is not None and not job.ended and now > job.deadline + grace]

    def wait_idle(self, timeout: float) -> bool:
        """Waits until nothing runs. Returns False if something still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self._current is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self._current is None

    def stop(self, timeout: float) -> bool:
        """Ends the thread. Returns False if it hangs; it is a daemon thread and ends with the process."""
        self.end_all(ErrorCode.INACTIVE, "The node is shutting down.")
        with self._wake:
            self._stopping = True
            calls = list(self._calls)
            self._calls.clear()
            self._wake.notify()
        for _, future in calls:
            future.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Gives up a thread that hangs: if it ever continues, it ends without any further event."""
        self._events = cast(WorkerEvents, NoEvents())
        self.stop(0)
        _abandoned.append(self._thread)
        call = self._current_call
        if call is not None and not call.done():
            message = "The worker hangs in this request and was replaced; whether it will be carried out is not known."
            with contextlib.suppress(InvalidStateError):
                call.set_exception(RuntimeError(message))

    # --- on the worker's thread ---

    def set_world(self, world: WorldModel | None) -> None:
        """Replaces the world model; None releases it and its memory. Call it through `call` only."""
        self._world = world
        if world is None:
            gc.collect()
            _empty_cuda_cache()

    @property
    def world(self) -> WorldModel | None:
        """The world model. Access its contents through `call` only."""
        return self._world

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._calls or self._next_work() is not None)
                if self._stopping:
                    return
                work = self._calls.popleft() if self._calls else self._take(self._next_work())
                self._current = _describe_work(work)
                self._current_call = work[1] if isinstance(work, tuple) else None
            try:
                if isinstance(work, Job):
                    self._run_job(work)
                elif isinstance(work, Observation):
                    self._remember(work)
                elif work is not None:
                    self._run_call(*work)
            except Exception as error:
                self._events.on_fault("worker", error)
            finally:
                self._current = self._current_call = None

    def _next_work(self) -> Observation | Job | None:
        """The oldest waiting item, so that neither a fast camera nor a fast planner starves the other."""
        if self._world is None:
            return None
        waiting = [
            self._observations.peek(),
            self._photographs.peek(),
            self._next_path,
            self._single_views[0] if self._single_views else None,
        ]
        return min((item for item in waiting if item is not None), key=lambda item: item.accepted_at, default=None)

    def _take(self, item: Observation | Job | None) -> Observation | Job | None:
        if isinstance(item, Photograph):
            return self._photographs.take()
        if isinstance(item, Observation):
            return self._observations.take()
        if item is self._next_path:
            self._next_path = None
        elif item is not None:
            self._single_views.popleft()
        return item

    def _run_call(self, function: Callable[[], object], future: Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    def _remember(self, observation: Observation) -> None:
        assert self._world is not None
        try:
            observation.remember(self._world)
        except NotPlacedError as error:
            self._keep(observation, str(error))
            return
        except ValueError as error:  # ImageError is one
            self._events.on_observation_rejected(observation.topic, str(error))
            return
        self.observations_done += 1
        self._events.on_observation_remembered(self._world, observation)
        with self._wake:
            self._photographs.retry(self.observations_done)

    def _keep(self, photograph: Observation, reason: str) -> None:
        """Keeps a photograph that overlaps nothing yet, and says so at its first attempt."""
        assert isinstance(photograph, Photograph)
        with self._wake:
            given_up = self._photographs.keep(photograph, self.observations_done)
        if not photograph.attempts:
            message = f"{reason} It waits, and is tried again when more was observed."
            self._events.on_observation_rejected(photograph.topic, message)
        if given_up is not None:
            message = "Given up a photograph that was never placed, since too many wait."
            self._events.on_observation_rejected(given_up.topic, message)

    def _run_job(self, job: Job) -> None:
        assert self._world is not None
        world, started = self._world, time.monotonic()
        result = self._imagine(world, job)
        seconds = time.monotonic() - started
        # Before the client gets its result, so that it finds everything published.
        self._events.on_job_ended(job, result, seconds)
        job.end(result)
        self._events.between_steps(world)

    def _imagine(self, world: WorldModel, job: Job) -> JobResult:
        """Runs a job and turns every exception into a result."""

        def on_step(stage: str, step: int, steps: int) -> None:
            job.raise_if_stopped()
            job.report_progress(stage, step, steps)
            self._events.between_steps(world)

        try:
            job.raise_if_stopped()
            job.report_progress("waiting", 0, 1)
            camera = self._camera_for(world, job)
            views = world.imagine(
                job.world_from_camera,
                camera,
                prompt=job.prompt,
                seed=job.seed,
                remember=job.remember,
                on_step=on_step,
                clearance=job.clearance,
            )
            for view in views:
                job.raise_if_stopped()
                job.add_view(view)
                self._events.on_view(view, job)
                job.report_progress("imagining", view.index + 1, view.count)
            if job.views_done < job.views:
                message = f"The pipeline returned {job.views_done} of {job.views} views without an error."
                return JobResult(ErrorCode.MODEL_ERROR, message)
            return JobResult()
        except Cancelled:
            return job.stop_result()
        except JobRejectedError as error:
            return JobResult(error.code, str(error))
        except EmptyMemoryError as error:
            return JobResult(ErrorCode.NO_OBSERVATION, str(error))
        except (ModelError, MemoryError, ArithmeticError, RuntimeError) as error:
            _empty_cuda_cache()
            return JobResult(ErrorCode.MODEL_ERROR, _model_error_message(error))
        except Exception as error:
            self._events.on_fault("job", error)
            return JobResult(ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}")


def abandoned_work_runs() -> bool:
    """Whether a thread that was given up still runs: it must not outlive the interpreter, whose end would crash it."""
    _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
    return bool(_abandoned)


def _describe_work(work: Observation | Job | tuple | None) -> Work:
    started_at = time.monotonic()
    if isinstance(work, Job):
        return Work(f"the job of {work.origin}", started_at, work)
    if isinstance(work, Observation):
        return Work(f"an observation from {work.topic}", started_at, work)
    return Work("a request to save, load or reset the memories, or to publish them", started_at)


def _model_error_message(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return (
            "The device ran out of memory. Request fewer or smaller views (parameter `view_width`), or free memory "
            f"that other processes use. ({first_line(error)})"
        )
    return f"The model failed: {error}" if isinstance(error, ModelError) else f"The model failed with {error!r}."


def _empty_cuda_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
