"""A whole run: what is done already, what is left, the manifest at every moment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldstereo_ros.batch import job_folder
from worldstereo_ros.batch.engines import Engine, check_workers
from worldstereo_ros.batch.jobs import Job, JobReport, Setup, WorkerSpec
from worldstereo_ros.batch.manifest import MANIFEST_FILE, Manifest, read_manifest
from worldstereo_ros.batch.scheduler import Observer, run_jobs
from worldstereo_ros.utils.atomic_files import lock_folder
from worldstereo_ros.utils.errors import InputError

MAX_ATTEMPTS = 3
MAX_TIMEOUT_S = 30 * 86400.0


@dataclass(frozen=True)
class BatchRun:
    """How a run ended.

    Attributes:
        counts: number of jobs by status: done, failed, pending.
        reused: how many of those that are done were so before.
        failed: sentences of the failed jobs, by their names.
        manifest: path of the manifest.
    """

    counts: dict[str, int]
    reused: int
    failed: dict[str, str]
    manifest: Path


class BatchObserver(Observer):
    """Hears what happens; does nothing. A progress display derives from it."""

    def found(self, total: int, reused: int, changed: int) -> None:
        """Before the start: number of jobs, those that are done already, and those that were done for other inputs."""

    def begin(self, job: Job) -> None:
        """See `scheduler.Observer`."""

    def again(self, job: Job, reason: str) -> None:
        """See `scheduler.Observer`."""

    def end(self, job: Job, report: JobReport) -> None:
        """See `scheduler.Observer`."""


def run_batch(
    jobs: Sequence[Job],
    out: Path,
    *,
    setup: Setup,
    settings: dict[str, Any],
    base: Path,
    make_engine: Callable[[WorkerSpec], Engine],
    workers: int,
    max_attempts: int = MAX_ATTEMPTS,
    job_timeout: float | None = None,
    observer: BatchObserver | None = None,
) -> BatchRun:
    """Runs the jobs that are not done yet, each into `out`/`job.name`.

    An interruption leaves a manifest and the folders of finished jobs; the same call continues from there.

    Args:
        jobs: with fingerprints.
        out: output folder.
        setup, settings, base: see `WorkerSpec`.
        make_engine: starts an engine; not called if nothing is left to do.
        workers, max_attempts, job_timeout: see `scheduler.run_jobs`.
        observer: hears what happens.

    Raises:
        InputError: another run uses the folder, its manifest is damaged, or a number is out of range.
        BatchError: no worker can be started; the manifest says what was done until then.
        WriteError: the manifest cannot be written.
    """
    from worldstereo_ros import __version__

    check_workers(workers)
    if not 1 <= max_attempts <= 100:
        raise InputError(f"--attempts is {max_attempts}; 1 to 100 were expected.")
    if job_timeout is not None and not 0 < job_timeout <= MAX_TIMEOUT_S:
        raise InputError(f"--job-timeout is {job_timeout:g}; more than 0 and at most {MAX_TIMEOUT_S:g} s was expected.")
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(out.resolve())
    except BlockingIOError:
        raise InputError(f"Another run uses {out} now. Wait for its end, or choose another --out.") from None
    observer = observer or BatchObserver()
    try:
        earlier = read_manifest(out / MANIFEST_FILE)
        job_folder.remove_staged(out)
        run = secrets.token_hex(8)
        description = {"version": __version__, "run": run, "settings": settings, "workers": workers}
        manifest = Manifest(out / MANIFEST_FILE, jobs, description, earlier)
        waiting, changed = _reuse(jobs, out, manifest, earlier)
        manifest.write()
        observer.found(len(jobs), len(jobs) - len(waiting), changed)
        reused = len(jobs) - len(waiting)
        if waiting:
            spec = WorkerSpec(setup, settings, str(base.absolute()), str(out), run, __version__)
            engine = make_engine(spec)
            manifest.describe(engine=engine.name)
            try:
                manifest.write()
                run_jobs(
                    engine, waiting, _Recorder(manifest, observer), workers=workers, max_attempts=max_attempts,
                    job_timeout=job_timeout,
                )  # fmt: skip
            finally:
                try:
                    engine.close()
                finally:
                    manifest.write()
                    job_folder.remove_staged(out)
        return BatchRun(manifest.counts, reused, manifest.failed(), manifest.path)
    finally:
        os.close(lock)


def _reuse(jobs: Sequence[Job], out: Path, manifest: Manifest, earlier: dict[str, Any] | None) -> tuple[list[Job], int]:
    """Enters finished jobs into the manifest.

    Returns:
        The jobs that are left, and how many of them were done by the earlier manifest: for other inputs, or their files
        are not what they were.
    """
    was_done = {job["name"] for job in (earlier or {}).get("jobs", []) if job.get("status") == "done"}
    with ThreadPoolExecutor(4) as threads:  # hashing and reading release the interpreter's lock
        reports = list(threads.map(lambda job: job_folder.read_finished(out, job), jobs))
    waiting = []
    for job, report in zip(jobs, reports, strict=True):
        if report is None:
            waiting.append(job)
        else:
            manifest.enter(job, report)
    return waiting, sum(job.name in was_done for job in waiting)


class _Recorder:
    """Keeps the manifest, and tells the observer."""

    def __init__(self, manifest: Manifest, observer: BatchObserver) -> None:
        self._manifest, self._observer = manifest, observer

    def begin(self, job: Job) -> None:
        self._manifest.begin(job)
        self._observer.begin(job)

    def again(self, job: Job, reason: str) -> None:
        self._observer.again(job, reason)

    def end(self, job: Job, report: JobReport) -> None:
        self._manifest.end(job, report)
        self._observer.end(job, report)
