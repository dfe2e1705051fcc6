"""Requests of the client whose answers are lost, and its settings; no process runs."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from rcl_interfaces.msg import ParameterType, ParameterValue
from rclpy.task import Future

from worldstereo_ros.ros.client import requests
from worldstereo_ros.ros.client.node_settings import NAMES, NodeSettings
from worldstereo_ros.ros.client.requests import NodeTimeoutError, Requests, SentGoal


class ImmediateExecutor:
    """Runs tasks at once."""

    def create_task(self, task):
        task()


class LossyAction:
    """An action client that loses the first answers of the server, which knows the goal from then on."""

    def __init__(self, lost):
        self.lost, self.goal_ids, self.cancelled = lost, [], []

    def send_goal_async(self, goal, feedback_callback, goal_uuid):
        self.goal_ids.append(bytes(goal_uuid.uuid))
        future = Future()
        if len(self.goal_ids) > self.lost:
            future.set_result(SimpleNamespace(accepted=len(set(self.goal_ids)) == len(self.goal_ids)))
        return future

    def _cancel_goal_async(self, handle):
        self.cancelled.append(bytes(handle.goal_id.uuid))


@pytest.mark.parametrize(("lost", "attempts"), [(0, 1), (2, 3)])
def test_goal_is_sent_again_under_the_same_id(monkeypatch, lost, attempts):
    monkeypatch.setattr(requests, "RESEND_GOAL_S", 0.01)
    action = LossyAction(lost)
    sent = Requests(ImmediateExecutor()).send_goal(action, object(), None, timeout=20)
    assert sent.accepted
    assert len(action.goal_ids) == attempts
    assert len(set(action.goal_ids)) == 1


def test_unanswered_goal_is_cancelled(monkeypatch):
    """The server may be busy and find the goal later."""
    monkeypatch.setattr(requests, "RESEND_GOAL_S", 0.01)
    action = LossyAction(10_000)
    assert Requests(ImmediateExecutor()).send_goal(action, object(), None, timeout=0.1) is None
    assert action.cancelled == action.goal_ids[:1]


def test_refused_goal_is_not_accepted():
    action = LossyAction(0)
    action.send_goal_async = lambda *_: _resolved(SimpleNamespace(accepted=False))
    assert not Requests(ImmediateExecutor()).send_goal(action, object(), None, timeout=5).accepted


def _resolved(value):
    future = Future()
    future.set_result(value)
    return future


def test_lost_result_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(requests, "CHECK_RESULT_S", 0.01)
    answers = itertools.chain([Future()], itertools.repeat(_resolved("result")))
    handle = SimpleNamespace(status=GoalStatus.STATUS_SUCCEEDED, get_result_async=lambda: next(answers))
    assert Requests(ImmediateExecutor()).result(SentGoal(handle, True), timeout=20) == "result"


def test_result_of_a_running_goal_is_asked_for_once(monkeypatch):
    monkeypatch.setattr(requests, "CHECK_RESULT_S", 0.01)
    asked = []
    handle = SimpleNamespace(status=GoalStatus.STATUS_EXECUTING, get_result_async=lambda: asked.append(1) or Future())
    assert Requests(ImmediateExecutor()).result(SentGoal(handle, True), timeout=0.2) is None
    assert len(asked) == 1


def test_exceptions_reach_the_caller():
    calls = Requests(ImmediateExecutor())
    with pytest.raises(ZeroDivisionError):
        calls.run(lambda: 1 / 0)
    with pytest.raises(NodeTimeoutError, match="closed"):
        Requests(SimpleNamespace(create_task=lambda task: None)).run(lambda: 1, timeout=0.05)


def test_settings_from_parameters():
    values = [ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=name) for name in NAMES[:-1]]
    numbers = ParameterValue(type=ParameterType.PARAMETER_DOUBLE_ARRAY, double_array_value=[1.0, 2, 3, 0, 0, 0, 1])
    settings = NodeSettings.from_values([*values, numbers])
    assert [getattr(settings, name) for name in NAMES[:-1]] == list(NAMES[:-1])
    np.testing.assert_array_equal(settings.base_to_camera[:3, 3], [1, 2, 3])
    numbers.double_array_value = [0.0] * 7
    assert NodeSettings.from_values([*values, numbers]).base_to_camera is None
    assert NodeSettings.from_values([ParameterValue()] * len(NAMES)) == NodeSettings()
