"""Workers as Ray actors: on this machine, or on those of a cluster, which need a file system that they share.

Each worker is an actor, which holds the model; a job is a call of it. Results are folders, not Ray objects.
"""

from __future__ import annotations

import contextlib
from typing import Any

from worldstereo_ros.batch.engines import BatchError, Died, Event, Finished, Ready, Unusable
from worldstereo_ros.batch.jobs import Job, WorkerSpec
from worldstereo_ros.batch.worker import Worker
from worldstereo_ros.utils.errors import InputError, first_line
from worldstereo_ros.utils.ray_cluster import AUTO, connect_ray

MAX_PORT = 65535


def check_ray() -> None:
    """Raises InputError if Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise InputError(
            "The engine ray needs Ray, which is not installed: pip install 'worldstereo_ros[batch]'. The engine local "
            "needs nothing."
        )


def check_address(address: str) -> None:
    """Checks the form of an address: empty (a cluster of this machine alone), auto, or HOST:PORT.

    Raises:
        InputError: it has another form.
    """
    if address in ("", AUTO):
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) <= MAX_PORT:
        raise InputError(
            f"--address is '{address}'; auto (the cluster that this machine is part of) or HOST:PORT of a cluster's "
            "head, such as 192.168.1.10:6379, was expected."
        )


class RayEngine:
    """See `engines.Engine`.

    Args:
        spec: for the workers.
        workers: number of workers.
        address: see `check_address`.
        gpus: GPUs of each worker.

    Raises:
        InputError: Ray is not installed, or no cluster answers at the address.
    """

    name = "ray"

    def __init__(self, spec: WorkerSpec, *, workers: int, address: str = "", gpus: float = 0) -> None:
        check_ray()
        check_address(address)
        import ray

        self._ray = ray
        self._spec = spec
        self._own = not ray.is_initialized()
        if self._own:
            connect_ray(ray, address, workers)
        self._actor_class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Worker)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, tuple[int, bool]] = {}  # reference -> (worker, whether it runs a job)

    @property
    def cpus(self) -> float:
        """CPU cores of the cluster; each worker takes one."""
        return float(self._ray.cluster_resources().get("CPU", 0))

    def start(self, worker: int) -> None:
        """Asks the cluster for an actor; it may wait for a free core."""
        actor: Any = self._actor_class.remote(self._spec)
        self._actors[worker] = actor
        self._calls[actor.prepare.remote()] = worker, False

    def submit(self, worker: int, job: Job) -> None:
        """Calls an actor."""
        self._calls[self._actors[worker].run.remote(job)] = worker, True

    def wait(self, seconds: float) -> list[Event]:
        """See `engines.Engine`."""
        if not self._calls:
            return []
        try:
            done, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=seconds)
            more, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        except Exception as error:  # Ray has many kinds of errors of a lost cluster
            raise BatchError(
                f"The connection to the Ray cluster is lost: {first_line(error)}. Run the command again to continue."
            ) from error
        events: list[Event] = []
        for reference in dict.fromkeys([*done, *more]):
            worker, is_job = self._calls.pop(reference)
            try:
                content = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self.stop(worker)
                events.append(Died(worker, _reason(error)))
                continue
            if is_job:
                events.append(Finished(worker, content))
            else:
                events.append(Unusable(worker, content) if content else Ready(worker))
        return events

    def stop(self, worker: int) -> None:
        """Kills an actor."""
        self._calls = {reference: call for reference, call in self._calls.items() if call[0] != worker}
        actor = self._actors.pop(worker, None)
        if actor is not None:
            with contextlib.suppress(Exception):  # it is gone, or the cluster is
                self._ray.kill(actor)

    def close(self) -> None:
        """Kills the actors, and ends the cluster if it was started here."""
        for worker in list(self._actors):
            self.stop(worker)
        if self._own and self._ray.is_initialized():
            self._ray.shutdown()


def _reason(error: Exception) -> str:
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if text != type(error).__name__ else text
