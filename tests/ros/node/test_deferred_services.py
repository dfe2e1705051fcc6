"""Services and goals that are answered later: what they keep, and what a timeout does. No process runs."""

import os
import time
from concurrent.futures import Future

import pytest
import rclpy
from helpers.node_harness import environment_of, reserved_domain, straight_path, wait_for
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import Trigger
from worldstereo_ros.action import ImaginePath

from worldstereo_ros.ros.node import deferred_services, servers
from worldstereo_ros.ros.node.deferred_services import DeferredActionServer, DeferredReply, DeferredService


@pytest.fixture
def executor(monkeypatch):
    with reserved_domain() as domain:
        for name, value in environment_of(domain).items():
            monkeypatch.setenv(name, value)
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(rclpy.create_node(f"deferred_{os.getpid()}", context=context))
        yield executor
        for node in executor.get_nodes():
            node.destroy_node()
        context.try_shutdown()


def spin_until(executor, condition):
    return wait_for(lambda: executor.spin_once(timeout_sec=0.05) or condition())


def reply_and_answers(timeout=0.0):
    answers = []
    return DeferredReply(Trigger.Response(), answers.append, timeout), answers


def test_ended_goal_keeps_no_path_and_is_forgotten(executor, monkeypatch):
    monkeypatch.setattr(deferred_services, "RESULT_TIMEOUT_S", 1)
    node = executor.get_nodes()[0]
    accepted = []

    def on_accepted(handle):
        handle.execute()
        accepted.append(handle)

    server = DeferredActionServer(node, ImaginePath, "~/go", on_accepted=on_accepted, on_cancel=lambda handle: None)
    client = ActionClient(node, ImaginePath, "~/go")
    assert spin_until(executor, client.server_is_ready)
    path = straight_path(1.0, 100, node.get_clock().now().to_msg())
    sent = client.send_goal_async(ImaginePath.Goal(path=path))
    assert spin_until(executor, lambda: accepted)
    assert len(accepted[0].request.path.poses) == 100
    server.conclude(accepted[0], "abort", ImaginePath.Result(error_msg="no"))
    assert spin_until(executor, sent.done)
    result = sent.result().get_result_async()
    assert spin_until(executor, result.done)
    assert result.result().result.error_msg == "no"
    assert accepted[0].request is None
    assert spin_until(executor, lambda: not server._goal_handles)
    server.destroy()


def test_waiting_call_is_cancelled_at_the_timeout():
    """What was answered as failed does not happen."""
    reply, answers = reply_and_answers()
    call = Future()
    servers._reply_with(call, reply)
    assert reply.withdraw()
    assert call.cancelled()
    assert not answers  # the service answers


def test_running_call_is_answered_when_it_is_done():
    reply, answers = reply_and_answers()
    call = Future()
    call.set_running_or_notify_cancel()
    servers._reply_with(call, reply)
    assert not reply.withdraw()
    assert not answers
    call.set_result("Saved.")
    assert [(answer.success, answer.message) for answer in answers] == [(True, "Saved.")]


def test_call_that_a_shutdown_cancels_is_answered():
    reply, answers = reply_and_answers()
    call = Future()
    servers._reply_with(call, reply)
    call.cancel()
    assert [answer.success for answer in answers] == [False]
    assert "nothing was done" in answers[0].message


def test_service_withdraws_late_requests(executor):
    node = executor.get_nodes()[0]
    withdrawn = {"waiting": True, "running": False, "half done": True}
    replies = []

    def handler(request, reply):
        state = list(withdrawn)[len(replies)]
        reply.withdraw = lambda: withdrawn[state]
        if state == "half done":
            reply.outcome = "Half of it was done."
        replies.append(reply)

    def error_fields(error):
        return {"success": False, "message": str(error)}

    service = DeferredService(node, Trigger, "~/do", handler, error_fields=error_fields, timeout=lambda: 0.01)
    client = node.create_client(Trigger, "~/do")
    assert spin_until(executor, client.service_is_ready)
    answers = [client.call_async(Trigger.Request()) for _ in withdrawn]
    assert spin_until(executor, lambda: len(replies) == 3)
    time.sleep(0.02)
    service.expire()
    assert spin_until(executor, answers[0].done)
    assert spin_until(executor, answers[2].done)
    assert answers[0].result().message.endswith("Nothing was done.")
    assert answers[2].result().message.endswith("Half of it was done.")
    assert not replies[1].sent
    replies[1].send(success=True, message="done")
    assert spin_until(executor, answers[1].done)
    assert answers[1].result().success


def test_flood_of_requests_is_refused(executor, monkeypatch):
    monkeypatch.setattr(deferred_services, "MAX_OPEN_REQUESTS", 2)
    node = executor.get_nodes()[0]
    replies = []
    service = DeferredService(
        node,
        Trigger,
        "~/do",
        lambda request, reply: replies.append(reply),
        error_fields=lambda error: {"success": False, "message": str(error)},
        timeout=lambda: 100.0,
    )
    client = node.create_client(Trigger, "~/do")
    assert spin_until(executor, client.service_is_ready)
    answers = [client.call_async(Trigger.Request()) for _ in range(5)]
    assert spin_until(executor, lambda: sum(answer.done() for answer in answers) == 3)
    assert len(replies) == 2
    refused = [answer.result() for answer in answers if answer.done()]
    assert all(not answer.success and "2 requests of this service wait" in answer.message for answer in refused)
    replies[0].send(success=True)
    last = client.call_async(Trigger.Request())
    assert spin_until(executor, lambda: len(replies) == 3)
    service.expire()
    replies[2].send(success=True)
    assert spin_until(executor, last.done)
    assert last.result().success
