"""Lifecycle of the node: transitions, invalid configurations, models that fail or hang, and shutdown."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from helpers.node_harness import NODE, TIMEOUT_S, running, wait_for
from helpers.paths import HELPERS
from sensor_msgs.msg import PointCloud2
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.srv import SaveMap

from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.clouds import cloud_arrays

SUCCEEDED, ABORTED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED
Result = ImaginePath.Result
FAULTY_NODE = HELPERS / "fault_injection_node.py"


def test_transitions_in_every_order():  # (26)
    with running({"autostart": False}, ready=False) as (node, robot):
        assert wait_for(lambda: robot.services["get_state"].service_is_ready(), 40)
        assert robot.state() == "unconfigured"
        # Impossible transitions are rejected, and the node continues.
        for label in ("activate", "deactivate", "cleanup", "no_such_transition"):
            assert not robot.transition(label)
        node.wait_log("not possible while unconfigured")
        assert wait_for(robot.action.server_is_ready)
        status, result = robot.imagine(robot.goal())
        assert (status, result.error_code) == (ABORTED, Result.INACTIVE)
        assert "unconfigured" in result.error_msg
        answer = robot.call("save_map", SaveMap.Request(name="x"))
        assert not answer.success
        assert "configure" in answer.message
        assert robot.transition("configure")
        assert not robot.transition("configure")
        assert robot.state() == "inactive"
        assert robot.imagine(robot.goal())[1].error_code == Result.INACTIVE
        assert robot.transition("activate")
        assert not robot.transition("activate")
        robot.wait_ready()
        robot.publish_view()
        assert robot.imagine()[0] == SUCCEEDED
        # The memory survives a deactivation but not a cleanup.
        assert robot.transition("deactivate")
        assert robot.transition("activate")
        assert robot.imagine()[0] == SUCCEEDED
        assert robot.transition("deactivate")
        assert robot.transition("cleanup")
        assert robot.transition("configure")
        assert robot.transition("activate")
        assert robot.imagine()[1].error_code == Result.NO_OBSERVATION
        assert robot.transition("shutdown")
        assert robot.state() == "finalized"
        assert node.terminate() == 0


@pytest.fixture(scope="module")
def unconfigured():
    with running({"autostart": False}, ready=False) as (node, robot):
        assert wait_for(lambda: robot.services["get_state"].service_is_ready(), 40)
        yield node, robot


@pytest.mark.parametrize(
    ("name", "bad", "good", "word"),
    [
        ("model", "no_such_model", "geometric", "no_such_model"),  # (18)
        ("device", "cuda:77", "cpu", "cuda:77"),  # (16)
        ("world_frame", "base_link", "map", "different frames"),
        ("depth_model", "/nowhere/depth", "", "/nowhere/depth"),
    ],
)
def test_invalid_configuration_fails_with_reason(unconfigured, name, bad, good, word):
    node, robot = unconfigured
    start = len(node.lines)
    assert robot.set(**{name: bad}) == (True, "")
    assert not robot.transition("configure")
    assert robot.state() == "unconfigured"
    assert word in node.wait_log("Not configured", since=start)
    assert wait_for(lambda: robot.diagnostics().get("level node") == "2" and word in robot.diagnostics()["node"])
    # With the corrected value it configures without a restart.
    assert robot.set(**{name: good}) == (True, "")
    assert robot.transition("configure")
    assert robot.transition("activate")
    assert wait_for(lambda: robot.diagnostics().get("level node") == "0")
    assert robot.transition("deactivate")
    assert robot.transition("cleanup")


def test_invalid_start_values_are_reported_and_can_be_corrected():
    bad = {"device": "gpu", "voxel_size": -1.0, "max_points": '"many"', "base_to_camera": "[1.0, 2.0]"}
    with running(bad, ready=False) as (node, robot):
        line = node.wait_log("Not configured")
        for word in ("'gpu'", "voxel_size", "max_points", "seven numbers"):
            assert word in line
        assert wait_for(lambda: robot.services["get_state"].service_is_ready(), 40)
        corrections = {"device": "cpu", "voxel_size": 0.02, "max_points": 10_000, "base_to_camera": [0.0] * 6 + [1.0]}
        for index, (name, value) in enumerate(corrections.items()):
            assert not robot.transition("configure"), f"configured with {len(corrections) - index} invalid values"
            assert robot.set(**{name: value}) == (True, "")
        assert robot.transition("configure")


def test_integer_is_accepted_for_double():
    with running({"voxel_size": 1}, ready=False) as (node, _):
        node.wait_log("Active")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A node whose pipeline fails as the prompt says, with one observation in memory."""
    release = tmp_path_factory.mktemp("faulty") / "release"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTY_RELEASE", str(release))
        with running({"model": "faulty", "watchdog_grace": 0.5}, script=FAULTY_NODE) as (node, robot):
            robot.publish_view()
            robot.release = release
            yield node, robot


@pytest.mark.parametrize(
    ("prompt", "code", "word", "done"),
    [
        ("fails", Result.MODEL_ERROR, "damaged weights", 0),
        ("oom", Result.MODEL_ERROR, "ran out of memory", 0),  # (17)
        ("short", Result.MODEL_ERROR, "returned 2 views; 4 were expected", 2),
        ("unexpected", Result.UNKNOWN, "missing key", 0),
    ],
)
def test_failing_model_ends_goal_with_error(faulty, prompt, code, word, done):
    _, robot = faulty
    for _ in range(2):  # repeated failures are reported as well
        status, result = robot.imagine(robot.goal(poses=4, prompt=prompt))
        assert (status, result.error_code, result.views_done) == (ABORTED, code, done)
        assert word in result.error_msg
    status, result = robot.imagine()
    assert (status, result.views_done) == (SUCCEEDED, 5)


def test_non_finite_depth_is_not_published(faulty):  # (19)
    _, robot = faulty
    points = robot.subscribe(f"{NODE}/points", PointCloud2, qos.CLOUD)
    imagined = robot.subscribe(f"{NODE}/map/imagined", PointCloud2, qos.MAP)
    time.sleep(0.3)
    status, _ = robot.imagine(robot.goal(remember=True, prompt="nan"))
    assert status == SUCCEEDED
    assert wait_for(lambda: points and imagined)
    for cloud in (points[-1], imagined[-1]):
        assert np.isfinite(cloud_arrays(cloud)[0]).all()
        assert cloud.is_dense
    assert robot.imagine()[0] == SUCCEEDED


def test_job_ends_at_timeout(faulty):  # (20)
    _, robot = faulty
    assert robot.set(job_timeout=0.9)[0]
    status, result = robot.imagine(robot.goal(poses=50, prompt="slow"))
    assert (status, result.error_code) == (ABORTED, Result.TIMEOUT)
    assert "job_timeout" in result.error_msg
    assert 1 <= result.views_done < 50
    robot.set(job_timeout=300.0)
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED


def test_hanging_model_is_reported_and_recovers(faulty):  # (20)
    _, robot = faulty
    assert robot.set(job_timeout=0.4)[0]
    status, result = robot.imagine(robot.goal(prompt="hangs"))
    assert (status, result.error_code) == (ABORTED, Result.TIMEOUT)
    assert wait_for(lambda: "hangs" in robot.diagnostics()["node"])
    assert robot.diagnostics()["level node"] == "2"
    # The executor is free: services respond, and a new goal ends at its own timeout.
    assert robot.state() == "active"
    assert robot.imagine()[1].error_code == Result.TIMEOUT
    # When the model resumes, so does the node.
    robot.release.touch()
    assert wait_for(lambda: robot.diagnostics()["level node"] == "0")
    robot.set(job_timeout=300.0)
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
    robot.release.unlink()


def test_cleanup_and_configure_replace_hanging_worker(faulty):  # (20)
    _, robot = faulty
    robot.set(job_timeout=0.4)
    assert robot.imagine(robot.goal(prompt="hangs"))[1].error_code == Result.TIMEOUT
    assert robot.transition("deactivate")
    assert robot.transition("cleanup")
    robot.set(job_timeout=300.0)
    assert robot.transition("configure")
    assert robot.transition("activate")
    robot.wait_ready()
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED
    assert wait_for(lambda: robot.diagnostics()["level node"] == "0")
    robot.release.touch()  # the abandoned worker resumes and must not interfere
    time.sleep(0.2)
    assert robot.imagine()[0] == SUCCEEDED
    robot.release.unlink()


def test_waiting_for_job_uses_no_cpu(faulty):
    node, robot = faulty
    feedback: list = []
    job = robot.send(robot.goal(poses=15, prompt="slow"), feedback)  # the worker mostly sleeps
    assert wait_for(lambda: len(feedback) > 3)
    used, started = node.processor_seconds(), time.monotonic()
    time.sleep(1.5)
    cpu_load = (node.processor_seconds() - used) / (time.monotonic() - started)
    assert cpu_load < 0.6, f"{cpu_load:.2f} of a core while a job sleeps"
    assert robot.result(job)[0] == SUCCEEDED


def test_exception_in_callback_is_reported(faulty):  # (28)
    node, robot = faulty
    image, _, _ = robot.view()
    image.header.frame_id = "poison"
    robot.image.publish(image)
    node.wait_log("ZeroDivisionError: poison")
    assert wait_for(lambda: robot.diagnostics().get("level node") == "2")
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED


def test_deactivate_and_sigterm_end_running_job():  # (25)
    with running({"model": "faulty"}, script=FAULTY_NODE) as (node, robot):
        robot.publish_view()
        job = robot.send(robot.goal(poses=100, prompt="slow"))
        assert robot.transition("deactivate")
        status, result = robot.result(job)
        assert (status, result.error_code) == (ABORTED, Result.INACTIVE)
        assert robot.transition("activate")
        robot.wait_ready()
        feedback: list = []
        job = robot.send(robot.goal(poses=100, prompt="slow"), feedback)
        assert wait_for(lambda: any(item.views_done for item in feedback))
        answer = robot.on_executor(job.get_result_async)
        assert node.terminate() == 0
        # The client gets the result before the process ends.
        assert wait_for(answer.done)
        assert answer.result().result.error_code == Result.INACTIVE


def test_sigterm_ends_process_with_hanging_model(tmp_path, monkeypatch):  # (25)
    monkeypatch.setenv("FAULTY_RELEASE", str(tmp_path / "never"))
    with running({"model": "faulty"}, script=FAULTY_NODE) as (node, robot):
        robot.publish_view()
        feedback: list = []
        job = robot.send(robot.goal(prompt="hangs"), feedback)
        assert wait_for(lambda: any(item.stage == "rendering" for item in feedback))
        time.sleep(0.2)
        answer = robot.on_executor(job.get_result_async)
        assert node.terminate(30) == 1  # the worker does not stop in time, so the process ends without it
        assert wait_for(answer.done)
        assert answer.result().result.error_code == Result.INACTIVE


@pytest.mark.slow
def test_hundred_activations_leak_nothing():  # (27)
    with running() as (node, robot):
        robot.publish_view()
        assert robot.imagine()[0] == SUCCEEDED

        def rounds(count: int) -> float:
            for _ in range(count):
                assert robot.transition("deactivate")
                assert robot.transition("activate")
            return node.resident_megabytes()

        warm = rounds(20)
        middle = rounds(40)
        end = rounds(40)
        # Caches may fill first; continued growth is a leak. Each round creates and destroys six subscriptions.
        assert end - middle < 4, f"{warm:.1f}, {middle:.1f}, {end:.1f} MB"
        assert robot.imagine()[0] == SUCCEEDED
        assert Path(f"/proc/{node.process.pid}").exists()
        threads = len(list(Path(f"/proc/{node.process.pid}/task").iterdir()))
        rounds(5)
        assert math.isclose(len(list(Path(f"/proc/{node.process.pid}/task").iterdir())), threads, abs_tol=2)
        assert node.terminate(TIMEOUT_S) == 0
