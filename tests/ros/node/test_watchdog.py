"""A worker that hangs, in whatever it does. No process runs."""

import threading
import time

import numpy as np
import pytest
from helpers.node_harness import wait_for

from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, Job
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.watchdog import Watchdog
from worldstereo_ros.ros.node.worker import Worker, abandoned_work_runs

PARAMETERS = NodeParameters(job_timeout=0.1, watchdog_grace=0.1)


class Recorder:
    """Events of the worker."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


@pytest.fixture
def hung():
    """(worker, watchdog, diagnostics, go, log, events): the worker hangs in an observation until `go` is set."""
    go, log, events = threading.Event(), [], Recorder()
    worker = Worker(events, lambda world, job: None)
    diagnostics = NodeDiagnostics(log.append)
    watchdog = Watchdog(diagnostics, log.append, log.append)
    worker.call(lambda: worker.set_world(object())).result(20)

    class HangingObservation(Observation):
        def remember(self, world):
            go.wait(60)

    worker.offer_observation(HangingObservation(None, None, None, np.eye(4), 0, "image", False))
    assert wait_for(lambda: worker.current is not None)
    yield worker, watchdog, diagnostics, go, log, events
    go.set()
    worker.stop(20)


def check_until(watchdog, worker, condition):
    def check():
        watchdog.check(worker, PARAMETERS)
        return condition()

    return wait_for(check)


def test_observation_that_hangs_is_said_until_it_ends(hung):
    worker, watchdog, diagnostics, go, log, _ = hung
    watchdog.check(worker, PARAMETERS)
    assert not diagnostics.problem
    assert check_until(watchdog, worker, lambda: diagnostics.problem)
    assert "hangs in an observation from image" in diagnostics.problem
    for _ in range(3):  # it stays said, and is logged once
        time.sleep(0.02)
        watchdog.check(worker, PARAMETERS)
        assert diagnostics.problem
    assert sum("The worker hangs" in line for line in log) == 1
    assert any(line.startswith("image: The image was not remembered") for line in log)
    go.set()
    assert check_until(watchdog, worker, lambda: not diagnostics.problem)
    assert log[-1] == "Worker resumed."


def test_job_behind_an_observation_that_hangs_ends(hung):
    worker, watchdog, _, _, _, _ = hung
    results = []
    worker.submit_path(Job(np.eye(4)[None], origin="a test", timeout=0.1, on_end=results.append))
    assert check_until(watchdog, worker, lambda: results)
    assert results[0].code == ErrorCode.TIMEOUT
    assert "waited behind an observation from image" in results[0].message


def test_abandoned_worker_stays_silent(hung):
    worker, _, _, go, _, events = hung
    waiting = worker.call(lambda: 1)
    worker.abandon()
    assert waiting.cancelled()
    assert abandoned_work_runs()  # so that the process must not end as usual
    go.set()
    assert wait_for(lambda: not worker._thread.is_alive())
    assert wait_for(lambda: not abandoned_work_runs())
    assert events.calls == []


def test_call_in_which_a_worker_hangs_is_answered_when_it_is_abandoned():
    go = threading.Event()
    worker = Worker(Recorder(), lambda world, job: None)
    call = worker.call(lambda: go.wait(60))
    assert wait_for(call.running)
    worker.abandon()
    with pytest.raises(RuntimeError, match="whether it will be carried out is not known"):
        call.result(20)
    go.set()
    assert wait_for(lambda: not worker._thread.is_alive())
