"""Whole runs with real processes and jobs that need no model: kills, interruptions, restarts, the manifest."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.batch import InProcessEngine, here, jobs, setup  # noqa: F401 (a fixture)
from helpers.paths import REPOSITORY

from worldstereo_ros.batch.engines import BatchError
from worldstereo_ros.batch.local_engine import LocalEngine
from worldstereo_ros.batch.manifest import Manifest
from worldstereo_ros.batch.runner import BatchObserver, run_batch
from worldstereo_ros.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("here")


def run(tmp_path, listed, engine=InProcessEngine, settings=None, **options):
    options = {"workers": 1} | options
    return run_batch(
        listed, tmp_path / "out", setup=setup, settings=settings or {}, base=tmp_path, make_engine=engine, **options
    )


def manifest(tmp_path):
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    return content, {job["name"].split("/")[0]: job for job in content["jobs"]}


def test_a_killed_worker_loses_no_job(tmp_path):
    listed = jobs("write", "die once", "die", "write", "refuse")
    done = run(tmp_path, listed, LocalEngine, workers=2, max_attempts=2)
    assert done.counts == {"done": 3, "failed": 2, "pending": 0}
    content, entries = manifest(tmp_path)
    assert content["complete"]
    assert [entries[f"s{i}"]["attempts"] for i in range(5)] == [1, 2, 2, 1, 1]
    assert entries["s2"]["error"].startswith("Its worker ended while it ran, 2 times now: the process was ended by")
    assert "SIGKILL" in entries["s2"]["error"]
    assert entries["s4"]["error"] == "The source is bad. Use another one."
    for name in ("s0", "s1", "s3"):
        assert (tmp_path / "out" / name / "p" / "seed_0" / "sub" / "seed.txt").read_text() == "0"
        assert entries[name]["notes"] == ["One thing was assumed."]
    assert not (tmp_path / "out" / ".partial").exists()
    # A restart runs what failed, and nothing else.
    before = (tmp_path / "out" / "s0" / "p" / "seed_0" / "job.json").stat().st_ino
    again = run(tmp_path, jobs("write", "die once", "write", "write", "refuse"), InProcessEngine)
    assert (again.counts["done"], again.counts["failed"], again.reused) == (4, 1, 3)
    assert (tmp_path / "out" / "s0" / "p" / "seed_0" / "job.json").stat().st_ino == before
    assert manifest(tmp_path)[1]["s2"]["attempts"] == 3


def test_a_job_that_hangs_is_stopped_and_leaves_nothing(tmp_path):
    done = run(tmp_path, jobs("sleep", "write"), LocalEngine, workers=2, job_timeout=1.0)
    assert (done.counts["done"], done.counts["failed"]) == (1, 1)
    content, entries = manifest(tmp_path)
    assert content["complete"]
    assert entries["s0"]["error"].startswith("It did not end within 1 s")
    assert not (tmp_path / "out" / ".partial").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_for_jobs_that_is_none_is_refused(tmp_path, seconds):
    with pytest.raises(InputError, match="--job-timeout"):
        run(tmp_path, jobs("write"), job_timeout=seconds)


class InterruptAfterFirst(BatchObserver):
    def end(self, job, report):
        raise KeyboardInterrupt


def test_an_interruption_leaves_what_a_restart_goes_on_from(tmp_path):
    listed = jobs(*["write"] * 3)
    engines = []

    def make(spec):
        engines.append(InProcessEngine(spec))
        return engines[-1]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, listed, make, observer=InterruptAfterFirst())
    assert engines[0].closed
    content, _ = manifest(tmp_path)
    assert content["counts"] == {"done": 1, "failed": 0, "pending": 2}
    assert not content["complete"]
    done = run(tmp_path, listed)
    assert (done.counts["done"], done.reused) == (3, 1)
    assert [entry["attempts"] for entry in manifest(tmp_path)[1].values()] == [1, 1, 1]


def test_a_run_without_anything_left_starts_no_engine(tmp_path):
    listed = jobs("write")
    run(tmp_path, listed)
    assert run(tmp_path, listed, engine=None).reused == 1


def test_finished_jobs_are_found_without_the_manifest(tmp_path):
    listed = jobs("write", "write")
    run(tmp_path, listed)
    (tmp_path / "out" / "manifest.json").unlink()
    assert run(tmp_path, listed, engine=None).counts["done"] == 2
    assert manifest(tmp_path)[1]["s1"]["sha256"]


def test_changed_inputs_and_damaged_results_run_again(tmp_path):
    class Found(BatchObserver):
        def found(self, total, reused, changed):
            self.numbers = total, reused, changed

    listed, observer = jobs("write", "write", "write"), Found()
    run(tmp_path, listed)
    (tmp_path / "out" / "s1" / "p" / "seed_0" / "name.txt").write_text("damaged")
    done = run(tmp_path, [replace(listed[0], fingerprint="new"), *listed[1:]], observer=observer)
    assert observer.numbers == (3, 1, 2)
    assert done.counts["done"] == 3
    assert (tmp_path / "out" / "s1" / "p" / "seed_0" / "name.txt").read_text() == "s1/p/seed_0"


def test_the_reason_that_no_worker_can_work_is_told(tmp_path):
    with pytest.raises(BatchError, match=r"There is no such model\."):
        run(tmp_path, jobs("write"), LocalEngine, {"refuse": "There is no such model."})
    assert manifest(tmp_path)[0]["counts"]["pending"] == 1


def test_an_unexpected_error_is_one_line_and_gets_another_attempt(tmp_path):
    listed = jobs("fail once")
    repeated = []

    class Again(BatchObserver):
        def again(self, job, reason):
            repeated.append(reason)

    assert run(tmp_path, listed, observer=Again()).counts["done"] == 1
    assert repeated == ["RuntimeError: the network folder is gone."]


def test_a_worker_elsewhere_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr("worldstereo_ros.batch.worker.SHARED_FOLDER_WAIT_S", 0)

    def elsewhere(**changes):
        return lambda spec: InProcessEngine(replace(spec, **changes))

    for changes, sentence in (
        ({"out": str(tmp_path / "other")}, "does not see the output folder"),
        ({"run": "another"}, "does not see the output folder"),
        ({"base": str(tmp_path / "missing")}, "cannot enter"),
        ({"version": "99"}, r"handed out by version 99; install the same version"),
    ):
        with pytest.raises(BatchError, match=sentence):
            run(tmp_path, jobs("write"), elsewhere(**changes))


def test_two_runs_do_not_share_a_folder(tmp_path):
    class Second(BatchObserver):
        def begin(self, job):
            with pytest.raises(InputError, match="Another run uses"):
                run(tmp_path, jobs("write"))

    assert run(tmp_path, jobs("write"), observer=Second()).counts["done"] == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"worldstereo_batch": 7, "jobs": []}', '{"worldstereo_batch": 1}'])
def test_a_manifest_of_something_else_is_not_replaced(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="no manifest of a batch"):
        run(tmp_path, jobs("write"))
    assert (tmp_path / "out" / "manifest.json").read_text() == content


def test_numbers_out_of_range_are_refused(tmp_path):
    for options in ({"workers": 0}, {"workers": 10**6}, {"max_attempts": 0}):
        with pytest.raises(InputError, match="were expected"):
            run(tmp_path, jobs("write"), **options)


def test_the_manifest_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("worldstereo_ros.batch.manifest.WRITE_PERIOD_S", 1e9)
    writes = []
    write = Manifest.write
    monkeypatch.setattr(Manifest, "write", lambda self: (writes.append(1), write(self)))
    run(tmp_path, jobs(*["write"] * 5))
    assert len(writes) == 3  # before the start, with the name of the engine, and at the end


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers.batch import jobs, setup
from worldstereo_ros.batch.local_engine import LocalEngine
from worldstereo_ros.batch.runner import run_batch

base = Path({base!r})
run_batch(jobs("sleep"), base / "out", setup=setup, settings={{}}, base=base, make_engine=LocalEngine, workers=1)
"""


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    program = PARENT.format(tests=str(REPOSITORY / "tests"), base=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY)
    try:
        wait_until((tmp_path / "pid").exists)
    finally:
        parent.kill()
        parent.wait()
    worker = int((tmp_path / "pid").read_text())
    try:
        wait_until(lambda: has_ended(worker))
    finally:
        if not has_ended(worker):
            os.kill(worker, signal.SIGKILL)
    done = run(tmp_path, jobs("write"))  # the lock is free, and what was unfinished is gone
    assert done.counts["done"] == 1
    assert not (tmp_path / "out" / ".partial").exists()


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
