"""Requests to services and actions that are sent from the thread that receives the answers.

rclpy notes a request after sending it. An answer that arrives in between, which happens when another thread spins, is
dropped as unexpected. Here everything is sent from the executor's thread, which cannot receive at the same time.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.client import Client
from rclpy.executors import Executor
from rclpy.task import Future
from unique_identifier_msgs.msg import UUID

from worldstereo_ros.utils.errors import WorldStereoError

logger = logging.getLogger(__name__)

RESEND_GOAL_S = 2.0  # without an answer whether the goal is accepted
CHECK_RESULT_S = 1.0  # between two looks at the status of a goal whose result is awaited
RESEND_RESULT_S = 5.0  # for a goal whose status is not known; less than a server keeps results
ENDED = (GoalStatus.STATUS_SUCCEEDED, GoalStatus.STATUS_CANCELED, GoalStatus.STATUS_ABORTED)

Value = TypeVar("Value")


class NodeTimeoutError(WorldStereoError, RuntimeError):
    """The node did not answer in time."""


@dataclass(frozen=True)
class SentGoal:
    """A goal that a server answered.

    Attributes:
        handle: asks for the result, or to cancel the goal.
        accepted: the server runs it.
    """

    handle: ClientGoalHandle
    accepted: bool


class Requests:
    """Sends requests through an executor that spins on another thread, and waits for the answers.

    Args:
        executor: its callbacks must not wait for this class.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def run(self, function: Callable[[], Value], timeout: float = 10.0) -> Value:
        """Runs a function on the executor's thread and returns its value, or raises its exception.

        Raises:
            NodeTimeoutError: the executor does not run it within `timeout` seconds; it was stopped, or hangs.
        """
        values: list[Value] = []
        errors: list[Exception] = []
        done = threading.Event()

        def task() -> None:
            try:
                values.append(function())
            except Exception as error:  # an exception of a task would end the executor's thread
                errors.append(error)
            done.set()

        self._executor.create_task(task)
        if not done.wait(timeout):
            raise NodeTimeoutError(f"The thread of the client did not answer within {timeout:g} s; is it closed?")
        if errors:
            raise errors[0]
        return values[0]

    def call(self, client: Client, request: Any, timeout: float) -> Any | None:
        """Calls a service and returns its response; None if it is not available or does not answer in time."""
        deadline = time.monotonic() + timeout
        while not client.service_is_ready():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
        answers = _Answers()
        future = self.run(lambda: answers.follow(client.call_async(request)))
        response = answers.wait(deadline - time.monotonic())
        if response is None:  # or rclpy waits for it for ever
            self.run(lambda: client.remove_pending_request(future))
        return response

    def send_goal(
        self, action: ActionClient, goal: Any, on_feedback: Callable[[Any], None] | None, timeout: float
    ) -> SentGoal | None:
        """Sends a goal until the server answers. All attempts have one goal id, so that it runs once.

        Args:
            action: client of the action.
            goal: the goal message.
            on_feedback: called with each feedback on the executor's thread; its exceptions are logged.
            timeout: seconds.

        Returns:
            The goal; None if there is no answer, after a request to cancel it.
        """
        goal_id = UUID(uuid=list(uuid.uuid4().bytes))

        def on_message(message: Any) -> None:
            try:
                on_feedback(message.feedback)  # type: ignore[misc]  # only set where it is not None
            except Exception:
                logger.exception("The feedback callback failed.")

        callback = None if on_feedback is None else on_message
        answers = _Answers()
        deadline = time.monotonic() + timeout
        attempts = 0
        while time.monotonic() < deadline:
            attempts += 1
            self.run(lambda: answers.follow(action.send_goal_async(goal, callback, goal_id)))
            handle = answers.wait(min(RESEND_GOAL_S, deadline - time.monotonic()))
            if handle is not None:
                # A server refuses an id that it knows: it has the goal, and its first answer was lost.
                return SentGoal(handle, handle.accepted or attempts > 1)
        # A node that was busy may find the goal later; what the caller is told has failed must not happen then.
        unanswered = ClientGoalHandle(action, goal_id, _Unanswered())
        self.run(unanswered.cancel_goal_async)
        return None

    def result(self, goal: SentGoal, timeout: float) -> Any | None:
        """Waits for the result of a goal, and asks for it again if the goal ended without one arriving.

        Returns:
            The response with the fields `status` and `result`; None if the goal does not end within `timeout` seconds.
        """
        handle, answers = goal.handle, _Answers()
        deadline = time.monotonic() + timeout
        asked_at = time.monotonic()
        self.run(lambda: answers.follow(handle.get_result_async()))
        while True:
            now = time.monotonic()
            response = answers.wait(min(CHECK_RESULT_S, deadline - now))
            if response is not None or now >= deadline:
                return response
            waited = time.monotonic() - asked_at
            unknown = handle.status == GoalStatus.STATUS_UNKNOWN and waited > RESEND_RESULT_S
            if handle.status in ENDED or unknown:
                asked_at = time.monotonic()
                self.run(lambda: answers.follow(handle.get_result_async()))


@dataclass(frozen=True)
class _Unanswered:
    """In place of the response to a goal whose response did not arrive."""

    accepted: bool = False
    stamp: Time = field(default_factory=Time)


class _Answers:
    """The first answer of one or several futures, for another thread to wait for."""

    def __init__(self) -> None:
        self._answers: list[Any] = []
        self._arrived = threading.Event()

    def follow(self, future: Future) -> Future:
        future.add_done_callback(self._on_done)
        return future

    def _on_done(self, future: Future) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        self._answers.append(future.result())
        self._arrived.set()

    def wait(self, timeout: float) -> Any | None:
        return self._answers[0] if self._arrived.wait(max(timeout, 0.0)) else None
