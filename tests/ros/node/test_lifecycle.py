"""The life of the node: states, bad configuration, models that fail or hang, and its end."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from helpers.node_harness import NODE, PATIENCE, running, wait_for
from helpers.paths import HELPERS
from sensor_msgs.msg import PointCloud2
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.srv import SaveMap

from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.clouds import cloud_arrays

SUCCEEDED, ABORTED = GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_ABORTED
Result = ImaginePath.Result
ODD = HELPERS / "fault_injection_node.py"


def test_states_in_every_order():  # (26)
    with running({"autostart": False}, ready=False) as (node, robot):
        assert wait_for(lambda: robot.services["get_state"].service_is_ready(), 40)
        assert robot.state() == "unconfigured"
        # Not possible now: refused, and the node lives.
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
        # What is remembered outlives a deactivation, not a cleanup.
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
def test_bad_configuration_is_a_failure_with_a_sentence(unconfigured, name, bad, good, word):
    node, robot = unconfigured
    start = len(node.lines)
    assert robot.set(**{name: bad}) == (True, "")
    assert not robot.transition("configure")
    assert robot.state() == "unconfigured"
    assert word in node.wait_log("Not configured", since=start)
    assert wait_for(lambda: robot.diagnostics().get("level node") == "2" and word in robot.diagnostics()["node"])
    # Set right, it comes up without a restart.
    assert robot.set(**{name: good}) == (True, "")
    assert robot.transition("configure")
    assert robot.transition("activate")
    assert wait_for(lambda: robot.diagnostics().get("level node") == "0")
    assert robot.transition("deactivate")
    assert robot.transition("cleanup")


def test_bad_values_at_the_start_are_told_and_can_be_set_right():
    bad = {"device": "gpu", "voxel_size": -1.0, "max_points": '"many"', "base_to_camera": "[1.0, 2.0]"}
    with running(bad, ready=False) as (node, robot):
        sentence = node.wait_log("Not configured")
        for word in ("'gpu'", "voxel_size", "max_points", "seven numbers"):
            assert word in sentence
        assert wait_for(lambda: robot.services["get_state"].service_is_ready(), 40)
        right = {"device": "cpu", "voxel_size": 0.02, "max_points": 10_000, "base_to_camera": [0.0] * 6 + [1.0]}
        for index, (name, value) in enumerate(right.items()):
            assert not robot.transition("configure"), f"configured with {len(right) - index} bad values"
            assert robot.set(**{name: value}) == (True, "")
        assert robot.transition("configure")


def test_int_for_a_double_is_taken():
    with running({"voxel_size": 1}, ready=False) as (node, _):
        node.wait_log("Active")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A node whose pipeline does what the prompt says, that has seen one view."""
    release = tmp_path_factory.mktemp("odd") / "release"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ODD_RELEASE", str(release))
        with running({"model": "odd", "watchdog_grace": 0.5}, script=ODD) as (node, robot):
            robot.publish_view()
            robot.release = release
            yield node, robot


@pytest.mark.parametrize(
    ("prompt", "code", "word", "done"),
    [
        ("fails", Result.MODEL_ERROR, "weights are damaged", 0),
        ("oom", Result.MODEL_ERROR, "ran out of memory", 0),  # (17)
        ("short", Result.MODEL_ERROR, "2 of 4", 2),
        ("surprise", Result.UNKNOWN, "slip of the pen", 0),
    ],
)
def test_model_that_fails(odd, prompt, code, word, done):
    _, robot = odd
    for _ in range(2):  # a failure after a failure is told as well
        status, result = robot.imagine(robot.goal(poses=4, prompt=prompt))
        assert (status, result.error_code, result.views_done) == (ABORTED, code, done)
        assert word in result.error_msg
    status, result = robot.imagine()
    assert (status, result.views_done) == (SUCCEEDED, 5)


def test_depth_that_is_no_number_never_leaves_the_node(odd):  # (19)
    _, robot = odd
    points = robot.listen(f"{NODE}/points", PointCloud2, qos.CLOUD)
    imagined = robot.listen(f"{NODE}/map/imagined", PointCloud2, qos.MAP)
    time.sleep(0.3)
    status, _ = robot.imagine(robot.goal(remember=True, prompt="nan"))
    assert status == SUCCEEDED
    assert wait_for(lambda: points and imagined)
    for cloud in (points[-1], imagined[-1]):
        assert np.isfinite(cloud_arrays(cloud)[0]).all()
        assert cloud.is_dense
    assert robot.imagine()[0] == SUCCEEDED


def test_job_over_its_time_is_ended(odd):  # (20)
    _, robot = odd
    assert robot.set(job_timeout=0.9)[0]
    status, result = robot.imagine(robot.goal(poses=50, prompt="slow"))
    assert (status, result.error_code) == (ABORTED, Result.TIMEOUT)
    assert "job_timeout" in result.error_msg
    assert 1 <= result.views_done < 50
    robot.set(job_timeout=300.0)
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED


def test_model_that_hangs_is_told_and_outlived(odd):  # (20)
    _, robot = odd
    assert robot.set(job_timeout=0.4)[0]
    status, result = robot.imagine(robot.goal(prompt="hangs"))
    assert (status, result.error_code) == (ABORTED, Result.TIMEOUT)
    assert wait_for(lambda: "hangs" in robot.diagnostics()["node"])
    assert robot.diagnostics()["level node"] == "2"
    # The executor is free: services answer, and a new goal ends by its own time.
    assert robot.state() == "active"
    assert robot.imagine()[1].error_code == Result.TIMEOUT
    # When the model comes back, so does the node.
    robot.release.touch()
    assert wait_for(lambda: robot.diagnostics()["level node"] == "0")
    robot.set(job_timeout=300.0)
    assert robot.imagine(robot.goal(poses=1))[0] == SUCCEEDED
    robot.release.unlink()


def test_cleanup_and_configure_replace_a_worker_that_hangs(odd):  # (20)
    _, robot = odd
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
    robot.release.touch()  # the one left behind wakes up, and must not disturb
    time.sleep(0.2)
    assert robot.imagine()[0] == SUCCEEDED
    robot.release.unlink()


def test_waiting_for_a_job_burns_no_core(odd):
    node, robot = odd
    feedback: list = []
    job = robot.send(robot.goal(poses=15, prompt="slow"), feedback)  # its worker mostly sleeps
    assert wait_for(lambda: len(feedback) > 3)
    used, started = node.processor_seconds(), time.monotonic()
    time.sleep(1.5)
    share = (node.processor_seconds() - used) / (time.monotonic() - started)
    assert share < 0.6, f"{share:.2f} of a core while a job sleeps: something polls"
    assert robot.result(job)[0] == SUCCEEDED


def test_exception_in_a_callback_ends_nothing(odd):  # (28)
    node, robot = odd
    image, _, _ = robot.view()
    image.header.frame_id = "poison"
    robot.image.publish(image)
    node.wait_log("ZeroDivisionError: poison")
    assert wait_for(lambda: robot.diagnostics().get("level node") == "2")
    robot.publish_view()
    assert robot.imagine()[0] == SUCCEEDED


def test_deactivate_and_sigterm_end_a_running_job():  # (25)
    with running({"model": "odd"}, script=ODD) as (node, robot):
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
        answer = job.get_result_async()
        assert node.terminate() == 0
        # Its client is told before the process ends.
        assert wait_for(answer.done)
        assert answer.result().result.error_code == Result.INACTIVE


def test_sigterm_while_the_model_hangs(tmp_path, monkeypatch):  # (25)
    monkeypatch.setenv("ODD_RELEASE", str(tmp_path / "never"))
    with running({"model": "odd"}, script=ODD) as (node, robot):
        robot.publish_view()
        feedback: list = []
        job = robot.send(robot.goal(prompt="hangs"), feedback)
        assert wait_for(lambda: any(item.stage == "rendering" for item in feedback))
        time.sleep(0.2)
        answer = job.get_result_async()
        assert node.terminate(30) == 1  # not within the bound, so the process ends without its worker
        assert wait_for(answer.done)
        assert answer.result().result.error_code == Result.INACTIVE


@pytest.mark.slow
def test_hundred_rounds_leak_nothing():  # (27)
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
        # Caches may settle; growth that goes on is a leak. Each round makes and destroys six subscriptions.
        assert end - middle < 4, f"{warm:.1f}, {middle:.1f}, {end:.1f} MB"
        assert robot.imagine()[0] == SUCCEEDED
        assert Path(f"/proc/{node.process.pid}").exists()
        threads = len(list(Path(f"/proc/{node.process.pid}/task").iterdir()))
        rounds(5)
        assert math.isclose(len(list(Path(f"/proc/{node.process.pid}/task").iterdir())), threads, abs_tol=2)
        assert node.terminate(PATIENCE) == 0
