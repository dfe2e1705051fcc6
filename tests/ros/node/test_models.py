"""Goals end to end with tiny WorldStereo checkpoints and with the bundled model, over DDS."""

from __future__ import annotations

import pytest
from action_msgs.msg import GoalStatus
from helpers.checkpoints import DMD_VARIANT, write_checkpoint, write_small_checkpoint
from helpers.node_harness import NODE, running, wait_for
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.msg import ImaginedView

from worldstereo_ros.ros.conversions import qos


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(root, DMD_VARIANT, encoders=True)
    return root


def test_goal_with_a_checkpoint(checkpoint):
    with running({"model": checkpoint, "variant": "memory-dmd", "device": "cpu"}) as (node, robot):
        robot.publish_view()
        views = robot.subscribe(f"{NODE}/view", ImaginedView, qos.VIEW)
        assert wait_for(lambda: robot.node.count_publishers(f"{NODE}/view"))
        feedback: list = []
        robot.prompt = "a hall"
        # Six views are two clips of the tiny model, whose clips have four views.
        status, result = robot.result(robot.send(robot.goal(length=0.4, poses=6), feedback), seconds=60.0)
        assert (status, result.error_code, result.error_msg) == (
            GoalStatus.STATUS_SUCCEEDED,
            ImaginePath.Result.NONE,
            "",
        )
        assert result.views_done == 6
        assert 0 < result.observed_fraction <= result.coverage <= 1
        assert {"encoding", "denoising", "decoding"} <= {item.stage for item in feedback}
        assert max(item.steps for item in feedback if item.stage == "denoising") == 4
        assert wait_for(lambda: len(views) >= 6)
        # A cancelled goal ends between two steps, and the next one runs.
        handle = robot.send(robot.goal(poses=12))
        robot.wait(handle.cancel_goal_async())
        assert robot.result(handle, seconds=60.0)[0] == GoalStatus.STATUS_CANCELED
        assert robot.imagine(robot.goal(poses=2), seconds=60.0)[1].views_done == 2
        assert node.alive


def test_unloadable_checkpoint_fails_with_reason(checkpoint):
    with running({"model": checkpoint, "variant": "camera"}, ready=False) as (node, robot):
        line = node.wait_log("worldstereo-camera", seconds=60.0)
        assert "no checkpoint worldstereo-camera" in line
        assert robot.state() == "unconfigured"


def test_goal_with_model_without_text_encoder(tmp_path):
    root = write_small_checkpoint(tmp_path / "model")
    with running({"model": f"{root}:memory-dmd", "device": "cpu"}) as (node, robot):
        robot.publish_view()
        for prompt in ("a hall", "a kitchen"):
            status, result = robot.imagine(robot.goal(poses=3, prompt=prompt), seconds=60.0)
            assert (status, result.error_msg, result.views_done) == (GoalStatus.STATUS_SUCCEEDED, "", 3)
        line = node.wait_log("The prompt is ignored")
        assert "WARN" in line
        assert "[worldstereo]" in line  # the node's own log
        assert sum("The prompt is ignored" in line for line in node.lines) == 1


def test_goal_with_bundled_model():
    with running({"model": "small", "device": "cpu"}) as (node, robot):
        node.wait_log("model 'small' on cpu")
        robot.publish_view()
        feedback: list = []
        status, result = robot.result(robot.send(robot.goal(length=0.4, poses=6), feedback), seconds=120.0)
        assert (status, result.error_msg, result.views_done) == (GoalStatus.STATUS_SUCCEEDED, "", 6)
        assert max(item.steps for item in feedback if item.stage == "denoising") == 1
        assert 0 < result.observed_fraction <= result.coverage <= 1
