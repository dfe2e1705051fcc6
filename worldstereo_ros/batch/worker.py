"""What runs in a worker, whichever engine started it: load the model once, then one job after the other."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from worldstereo_ros.batch import job_folder
from worldstereo_ros.batch.jobs import FAILED, Job, JobReport, Note, RunJob, WorkerSpec
from worldstereo_ros.batch.manifest import MANIFEST_FILE, read_run
from worldstereo_ros.utils.errors import InputError, WorldStereoError, first_line

# Workers share the cores: with more threads each they would wait for one another.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
MAX_NOTES = 100
SHARED_FOLDER_WAIT_S = 10.0  # network folders show the file of an earlier run for some seconds


class Worker:
    """Runs jobs in the process that it lives in, whose working folder becomes `spec.base`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._out = Path(spec.out)
        self._run_job: RunJob | None = None

    def prepare(self) -> str:
        """Loads what all jobs share.

        Returns:
            Why no job can run here, a sentence; empty if they can.
        """
        from worldstereo_ros import __version__

        try:
            if __version__ != self.spec.version:
                raise InputError(
                    f"{_machine()} has version {__version__} of worldstereo_ros, and the jobs are handed out by "
                    f"version {self.spec.version}; install the same version on all machines."
                )
            if not self._sees_manifest():
                raise InputError(
                    f"{_machine()} does not see the output folder {self._out} of this run; all machines need a file "
                    "system that they share, with the same paths."
                )
            try:
                os.chdir(self.spec.base)
            except OSError as error:
                raise InputError(
                    f"{_machine()} cannot enter {self.spec.base}, the folder of the jobs ({error.strerror}); all "
                    "machines need a file system that they share, with the same paths."
                ) from None
            _limit_threads()
            self._run_job = self.spec.setup(self.spec.settings)
            _limit_threads()
        except Exception as error:
            return describe(error)
        return ""

    def _sees_manifest(self) -> bool:
        end = time.monotonic() + SHARED_FOLDER_WAIT_S
        while read_run(self._out / MANIFEST_FILE) != self.spec.run:
            if time.monotonic() >= end:
                return False
            time.sleep(0.5)
        return True

    def run(self, job: Job) -> JobReport:
        """Runs one job. Whatever goes wrong ends in its report."""
        assert self._run_job is not None
        start = time.perf_counter()
        notes: list[str] = []
        staged: Path | None = None
        try:
            with _gather_warnings(notes.append):
                job_folder.check_free(self._out, job)
                staged = job_folder.stage(self._out)
                self._run_job(job, staged, notes.append)
            seconds = time.perf_counter() - start
            return job_folder.publish(staged, self._out, job, seconds, tuple(notes[:MAX_NOTES]))
        except Exception as error:
            if staged is not None:
                shutil.rmtree(staged, ignore_errors=True)
            # Bad input stays bad; a full disk, a lost network folder or a bug of a library may not be there again.
            retry = not isinstance(error, WorldStereoError) or isinstance(error, OSError)
            seconds = round(time.perf_counter() - start, 3)
            return JobReport(FAILED, seconds, describe(error), notes=tuple(notes[:MAX_NOTES]), retry=retry)


def describe(error: Exception) -> str:
    """A sentence about an error."""
    if isinstance(error, WorldStereoError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}."
    name, line = type(error).__name__, first_line(error)
    return f"{name}." if line == name else f"{name}: {line}."


def _machine() -> str:
    import socket

    return f"The machine {socket.gethostname()}"


def _limit_threads() -> None:
    """One thread for all libraries: for those that are not loaded yet, by variables that they read then."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:  # reads no variable
        sys.modules["cv2"].setNumThreads(1)


@contextlib.contextmanager
def _gather_warnings(note: Note) -> Iterator[None]:
    """Gives warnings of this package's log to the job that caused them."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(record.getMessage())

    logger, handler = logging.getLogger("worldstereo_ros"), Handler(logging.WARNING)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # a terminal with a progress bar is no place for it
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
