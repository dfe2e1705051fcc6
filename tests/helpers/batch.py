"""Jobs that need no model, and an engine that runs jobs in the process of the test."""

import os
import signal
import time
from pathlib import Path

import pytest

from worldstereo_ros.batch.engines import Finished, Ready, Unusable
from worldstereo_ros.batch.jobs import Job
from worldstereo_ros.batch.worker import THREAD_VARIABLES, Worker
from worldstereo_ros.utils.errors import InputError


def setup(settings):
    """Jobs that do what their source says under `do`."""
    if "refuse" in settings:
        raise InputError(settings["refuse"])

    def run(job, folder, note):
        do, marker = job.source.get("do", "write"), Path(job.source.get("marker", "marker"))
        if do == "die once" and not marker.exists():
            marker.write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "fail once" and not marker.exists():
            marker.write_text("failed")
            raise RuntimeError("the network folder is gone\nand more")
        if do == "refuse":
            raise InputError("The source is bad. Use another one.")
        if do == "sleep":
            Path("pid.partial").write_text(str(os.getpid()))
            Path("pid.partial").rename("pid")
            time.sleep(60)
        if do != "nothing":
            (folder / "sub").mkdir()
            (folder / "sub" / "seed.txt").write_text(f"{job.seed}")
            (folder / "name.txt").write_text(job.name)
        note("One thing was assumed.")

    return run


def jobs(*what, settings=None):
    """A job for each word; see `setup`."""
    return [
        Job(f"s{number}/p/seed_0", {"name": f"s{number}", "do": do, "marker": f"marker{number}"}, {"name": "p"}, 0)
        .with_fingerprint(settings or {}, [], "0")
        for number, do in enumerate(what)
    ]  # fmt: skip


class InProcessEngine:
    """One worker, here."""

    name = "in process"

    def __init__(self, spec):
        self._worker, self._events, self.closed = Worker(spec), [], False

    def start(self, worker):
        reason = self._worker.prepare()
        self._events.append(Unusable(worker, reason) if reason else Ready(worker))

    def submit(self, worker, job):
        self._events.append(Finished(worker, self._worker.run(job)))

    def wait(self, seconds):
        events, self._events = self._events, []
        return events

    def stop(self, worker):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder and the limits on threads, which workers change, are restored afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    return tmp_path
