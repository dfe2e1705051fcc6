"""Workers as processes of this machine, each with a pipe of its own.

The pools of the standard library give up all jobs when one process is killed; here only its own job is affected.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from worldstereo_ros.batch.engines import Died, Event, Finished, Ready, Unusable
from worldstereo_ros.batch.jobs import Job, WorkerSpec
from worldstereo_ros.batch.worker import THREAD_VARIABLES, Worker

END_S = 5.0  # for a killed process to be gone


@dataclass
class _Process:
    process: SpawnProcess
    connection: Connection


class LocalEngine:
    """See `engines.Engine`. Processes are spawned: forked ones would share locks of threads that they do not have."""

    name = "local"

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[int, _Process] = {}

    def start(self, worker: int) -> None:
        """Starts a process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._spec), name=f"worker {worker}", daemon=True)
        with _one_thread():
            process.start()
        theirs.close()  # so that the pipe ends with the process
        self._workers[worker] = _Process(process, ours)

    def submit(self, worker: int, job: Job) -> None:
        """Sends a job; that the process is gone is told by `wait`."""
        with contextlib.suppress(OSError):
            self._workers[worker].connection.send(job)

    def wait(self, seconds: float) -> list[Event]:
        """See `engines.Engine`."""
        by_connection = {one.connection: number for number, one in self._workers.items()}
        events: list[Event] = []
        for connection in wait(list(by_connection), timeout=seconds):
            number = by_connection[connection]  # type: ignore[index]
            try:
                kind, content = self._workers[number].connection.recv()
            except Exception:  # the end of the pipe, or a message that was cut off
                events.append(Died(number, self._remove(number)))
                continue
            if kind == "report":
                events.append(Finished(number, content))
            else:
                events.append(Unusable(number, content) if content else Ready(number))
        return events

    def process_ids(self) -> dict[int, int]:
        """Process ids by number of the worker."""
        return {number: one.process.pid or 0 for number, one in self._workers.items()}

    def stop(self, worker: int) -> None:
        """Kills a process, also one that hangs."""
        self._workers[worker].process.kill()
        self._remove(worker)

    def close(self) -> None:
        """Kills all processes; what they write is not complete, so that it is not taken for results."""
        for one in self._workers.values():
            one.process.kill()
        for number in list(self._workers):
            self._remove(number)

    def _remove(self, number: int) -> str:
        """Makes sure that a process is gone; says how it ended."""
        one = self._workers.pop(number)
        one.process.join(END_S)  # its pipe ends a moment before it does
        if one.process.exitcode is None:
            one.process.kill()
            one.process.join(END_S)
        one.connection.close()
        code = one.process.exitcode
        if code is None:
            return "the process does not end"
        if code >= 0:
            return f"the process ended with status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"the process was ended by {name}{memory}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Lets processes that start in the block have libraries with one thread; some read this when they are loaded."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection: Any, spec: WorkerSpec) -> None:
    """The main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent ends its workers
    _end_with_parent()
    worker = Worker(spec)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        connection.send(("prepared", worker.prepare()))
        while True:
            connection.send(("report", worker.run(connection.recv())))
    os._exit(0)


def _end_with_parent() -> None:
    """Ends this process when the parent is killed, which cannot end its children itself then."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
