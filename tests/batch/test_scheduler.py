"""Handing out jobs: deaths, repeats, workers that never start."""

import time

import pytest
from helpers.batch import jobs

from worldstereo_ros.batch.engines import BatchError, Died, Finished, Ready, Unusable
from worldstereo_ros.batch.jobs import DONE, FAILED, JobReport
from worldstereo_ros.batch.scheduler import MAX_FAILED_STARTS, run_jobs

GOOD = JobReport(DONE)
BUG = JobReport(FAILED, error="RuntimeError.", retry=True)
BAD = JobReport(FAILED, error="The source is bad.")


class ScriptedEngine:
    """Answers each attempt of a job by its script (a report, or "die"), and each start of a worker by `starts`."""

    name = "scripted"

    def __init__(self, script, starts=()):
        self.script, self.starts = {name: list(answers) for name, answers in script.items()}, list(starts)
        self.events, self.alive, self.submitted, self.started, self.stopped = [], set(), [], [], []

    def start(self, worker):
        assert worker not in self.alive
        self.started.append(worker)
        how = self.starts.pop(0) if self.starts else "ready"
        if how == "ready":
            self.alive.add(worker)
            self.events.append(Ready(worker))
        elif how == "die":
            self.events.append(Died(worker, "no memory"))
        else:
            self.events.append(Unusable(worker, how))

    def submit(self, worker, job):
        assert worker in self.alive
        self.submitted.append((worker, job.name))
        answer = self.script.get(job.name, [GOOD]).pop(0)
        if answer == "die":
            self.alive.discard(worker)
            self.events.append(Died(worker, "ended by SIGKILL"))
        else:
            self.events.append(Finished(worker, answer))

    def wait(self, seconds):
        assert self.events, "the scheduler waits for nothing"
        return [self.events.pop(0)]

    def stop(self, worker):
        self.alive.discard(worker)
        self.stopped.append(worker)


class Record:
    def __init__(self):
        self.begun, self.repeated, self.ended = [], [], {}

    def begin(self, job):
        self.begun.append(job.name)

    def again(self, job, reason):
        self.repeated.append((job.name, reason))

    def end(self, job, report):
        assert job.name not in self.ended
        self.ended[job.name] = report


def run(engine, listed, workers=2, max_attempts=3):
    record = Record()
    run_jobs(engine, listed, record, workers=workers, max_attempts=max_attempts)
    return record


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_ends_once(workers):
    engine = ScriptedEngine({})
    record = run(engine, jobs(*"abcd"), workers)
    assert record.ended == {f"s{i}/p/seed_0": GOOD for i in range(4)}
    assert sorted(engine.started) == list(range(min(workers, 4)))


def test_no_jobs_start_no_worker():
    engine = ScriptedEngine({})
    run(engine, [])
    assert engine.started == []


def test_a_job_whose_worker_dies_runs_again_after_the_others():
    engine = ScriptedEngine({"s0/p/seed_0": ["die", GOOD]})
    record = run(engine, jobs(*"abc"), workers=1)
    assert record.begun == ["s0/p/seed_0", "s1/p/seed_0", "s2/p/seed_0", "s0/p/seed_0"]
    assert record.ended["s0/p/seed_0"] == GOOD
    assert record.repeated == [("s0/p/seed_0", "Its worker ended while it ran: ended by SIGKILL.")]
    assert engine.started == [0, 0]


def test_a_job_that_always_ends_its_worker_fails_and_the_others_go_on():
    engine = ScriptedEngine({"s1/p/seed_0": ["die"] * 3})
    record = run(engine, jobs(*"abcde"))
    assert [name for name, report in record.ended.items() if report.status == DONE] == [
        "s0/p/seed_0", "s2/p/seed_0", "s3/p/seed_0", "s4/p/seed_0",
    ]  # fmt: skip
    assert record.ended["s1/p/seed_0"].error == "Its worker ended while it ran, 3 times now: ended by SIGKILL."
    assert record.begun.count("s1/p/seed_0") == 3


def test_bad_input_fails_at_once_and_its_worker_goes_on():
    engine = ScriptedEngine({"s0/p/seed_0": [BAD]})
    record = run(engine, jobs(*"ab"), workers=1)
    assert record.ended["s0/p/seed_0"] == BAD
    assert record.repeated == []
    assert engine.started == [0]


def test_an_unexpected_error_gets_another_attempt_in_a_new_process():
    engine = ScriptedEngine({"s0/p/seed_0": [BUG, BUG, GOOD]})
    record = run(engine, jobs(*"ab"), workers=1)
    assert record.ended["s0/p/seed_0"] == GOOD
    assert engine.stopped == [0, 0]
    assert engine.started == [0, 0, 0]


def test_an_unexpected_error_that_stays_fails_with_its_sentence():
    record = run(ScriptedEngine({"s0/p/seed_0": [BUG] * 2}), jobs("a"), max_attempts=2)
    assert record.ended["s0/p/seed_0"] == BUG


def test_the_reason_that_no_worker_can_work_is_told():
    with pytest.raises(BatchError, match=r"No job can run: There is no such model\."):
        run(ScriptedEngine({}, ["There is no such model."]), jobs("a"))


def test_workers_that_never_start_are_an_error_and_no_endless_loop():
    engine = ScriptedEngine({}, ["die"] * 10)
    with pytest.raises(BatchError, match="3 workers in a row ended before they could take one"):
        run(engine, jobs(*"abcdef"))
    assert len(engine.started) <= MAX_FAILED_STARTS + 2


def test_a_start_that_fails_now_and_then_is_repeated():
    engine = ScriptedEngine({}, ["die", "die", "ready", "die", "ready"])
    assert len(run(engine, jobs(*"abcd"), workers=1).ended) == 4


def test_an_idle_worker_that_dies_is_replaced_when_a_job_comes_back():
    class Engine(ScriptedEngine):
        def submit(self, worker, job):
            super().submit(worker, job)
            if len(self.submitted) == 2:  # the first worker has nothing to do while the second one's job runs
                self.alive.discard(0)
                self.events.insert(-1, Died(0, "lost"))

    engine = Engine({"s1/p/seed_0": ["die", GOOD]})
    record = run(engine, jobs(*"ab"), workers=2)
    assert all(report.status == DONE for report in record.ended.values())


class HangingEngine(ScriptedEngine):
    """A job whose script says "hang" never ends."""

    def submit(self, worker, job):
        if self.script.get(job.name) == ["hang"]:
            self.submitted.append((worker, job.name))
        else:
            super().submit(worker, job)

    def wait(self, seconds):
        if self.events:
            return super().wait(seconds)
        time.sleep(seconds)
        return []


def test_a_job_that_hangs_fails_after_its_time_and_its_worker_is_replaced():
    engine, record = HangingEngine({"s1/p/seed_0": ["hang"]}), Record()
    run_jobs(engine, jobs(*"abcd"), record, workers=1, max_attempts=3, job_timeout=0.05)
    assert [name for name, report in record.ended.items() if report == GOOD] == [
        "s0/p/seed_0", "s2/p/seed_0", "s3/p/seed_0",
    ]  # fmt: skip
    failed = record.ended["s1/p/seed_0"]
    assert (failed.status, failed.error) == (
        FAILED,
        "It did not end within 0.05 s, the time that a job is given, and was stopped.",
    )
    assert (engine.started, engine.stopped, record.repeated) == ([0, 0], [0], [])
