"""Hands jobs to workers until all have ended. A job whose worker dies runs again, a bounded number of times."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Protocol

from worldstereo_ros.batch.engines import BatchError, Died, Engine, Finished, Ready, Unusable
from worldstereo_ros.batch.jobs import FAILED, Job, JobReport

MAX_FAILED_STARTS = 3  # in a row, of workers that end before they can take a job
WAIT_S = 1.0


class Observer(Protocol):
    """Hears what happens to jobs."""

    def begin(self, job: Job) -> None:
        """A worker got the job."""

    def again(self, job: Job, reason: str) -> None:
        """The job is to be run again; why, a sentence."""

    def end(self, job: Job, report: JobReport) -> None:
        """The job ended."""


def run_jobs(
    engine: Engine,
    jobs: Iterable[Job],
    observer: Observer,
    *,
    workers: int,
    max_attempts: int,
    job_timeout: float | None = None,
) -> None:
    """Runs all jobs. The engine is left open.

    Args:
        engine: starts the workers.
        jobs: in the order in which they are handed out.
        observer: hears what happens.
        workers: number of workers.
        max_attempts: so often is a job started before it counts as failed, if its worker dies or an unexpected error
            ends it. Bad input fails at once.
        job_timeout: seconds after which a job counts as failed, without another attempt, and its worker is replaced;
            None: never. What all jobs share is loaded before that time begins.

    Raises:
        BatchError: no worker can be started.
    """
    waiting = deque(jobs)
    attempts: Counter[str] = Counter()
    running: dict[int, Job] = {}
    deadlines: dict[int, float] = {}
    failed_starts = 0
    idle: list[int] = []
    starting = set(range(min(workers, len(waiting))))
    for worker in sorted(starting):
        engine.start(worker)

    def restart(worker: int) -> None:
        if waiting:
            starting.add(worker)
            engine.start(worker)

    def end_or_repeat(job: Job, report: JobReport) -> None:
        if report.status == FAILED and report.retry and attempts[job.name] < max_attempts:
            observer.again(job, report.error)
            waiting.append(job)  # behind the others: it may be the one that ends its workers
        else:
            observer.end(job, report)

    while waiting or running:
        while idle and waiting:
            worker, job = idle.pop(0), waiting.popleft()
            attempts[job.name] += 1
            running[worker] = job
            observer.begin(job)
            engine.submit(worker, job)
            if job_timeout is not None:
                deadlines[worker] = time.monotonic() + job_timeout
        left = (
            min((deadlines[worker] for worker in running if worker in deadlines), default=math.inf) - time.monotonic()
        )
        for event in engine.wait(min(WAIT_S, max(left, 0.0))):
            worker = event.worker
            if isinstance(event, Ready):
                starting.discard(worker)
                failed_starts = 0
                idle.append(worker)
            elif isinstance(event, Unusable):
                raise BatchError(f"No job can run: {event.reason}")
            elif isinstance(event, Finished):
                job = running.pop(worker)
                end_or_repeat(job, event.report)
                if event.report.retry:  # an unexpected error may leave a process, or its GPU, in an unknown state
                    engine.stop(worker)
                    restart(worker)
                else:
                    idle.append(worker)
            elif isinstance(event, Died):
                if worker in starting:
                    starting.discard(worker)
                    failed_starts += 1
                    if failed_starts >= MAX_FAILED_STARTS:
                        raise BatchError(
                            f"No job can run: {failed_starts} workers in a row ended before they could take one. The "
                            f"last: {event.reason}."
                        )
                if worker in idle:
                    idle.remove(worker)
                if worker in running:
                    job = running.pop(worker)
                    tries = attempts[job.name]
                    times = "" if tries == 1 else f", {tries} times now"
                    error = f"Its worker ended while it ran{times}: {event.reason}."
                    end_or_repeat(job, JobReport(FAILED, error=error, retry=True))
                restart(worker)
        for worker in [n for n in running if deadlines.get(n, math.inf) <= time.monotonic()]:
            engine.stop(worker)
            error = f"It did not end within {job_timeout:g} s, the time that a job is given, and was stopped."
            observer.end(running.pop(worker), JobReport(FAILED, float(job_timeout or 0), error))
            restart(worker)
        _start_missing(engine, waiting, idle, starting, running, workers)


def _start_missing(
    engine: Engine, waiting: deque[Job], idle: list[int], starting: set[int], running: dict[int, Job], workers: int
) -> None:
    """Starts workers for jobs that wait, where one was not replaced because nothing waited when it died."""
    there = {*idle, *starting, *running}
    for worker in range(workers):
        if len(there) >= min(workers, len(waiting) + len(running)):
            return
        if worker not in there:
            there.add(worker)
            starting.add(worker)
            engine.start(worker)
