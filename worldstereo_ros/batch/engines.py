"""What the scheduler expects of an engine, and what it hears from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from worldstereo_ros.batch.jobs import Job, JobReport
from worldstereo_ros.utils.errors import InputError, WorldStereoError


class BatchError(WorldStereoError, RuntimeError):
    """No job can run: workers cannot be started, or the engine is gone."""


@dataclass(frozen=True)
class Ready:
    """A worker has loaded what all jobs share."""

    worker: int


@dataclass(frozen=True)
class Unusable:
    """A worker cannot run any job, for a reason that all workers have: a sentence."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """The job of a worker ended, and the worker takes the next one."""

    worker: int
    report: JobReport


@dataclass(frozen=True)
class Died:
    """The process of a worker is gone, with the job that it had; the reason is a phrase."""

    worker: int
    reason: str


Event = Ready | Unusable | Finished | Died


class Engine(Protocol):
    """Starts worker processes somewhere. Numbers of workers are the caller's; one that died may be started again."""

    name: str

    def start(self, worker: int) -> None:
        """Starts a worker; `Ready`, `Unusable` or `Died` follows."""

    def submit(self, worker: int, job: Job) -> None:
        """Gives a job to a worker that has none; `Finished` or `Died` follows."""

    def wait(self, seconds: float) -> list[Event]:
        """What happened; waits for it for so long at most."""

    def stop(self, worker: int) -> None:
        """Ends a worker; no event follows."""

    def close(self) -> None:
        """Ends all workers at once, whatever they do. May be called twice."""


def check_workers(count: int) -> None:
    """Raises InputError if there are none, or far more than machines have cores."""
    if not 1 <= count <= 4096:
        raise InputError(f"--workers is {count}; 1 to 4096 were expected.")
