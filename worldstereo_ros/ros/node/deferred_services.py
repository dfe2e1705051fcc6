"""Services and an action whose answers come later, without a callback that waits for them.

rclpy answers a service when its callback returns, and a coroutine that waits is polled all the time on the executor of
Humble and Jazzy: one core busy for nothing. Here the callback returns at once, and the answer is sent by whoever has
it, through the executor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

from rclpy.action import ActionServer
from rclpy.action.server import CancelResponse, GoalResponse, ServerGoalHandle
from rclpy.node import Node


class DeferredReply:
    """The answer of one request; to be sent once, from any thread. What comes after the first is ignored."""

    def __init__(self, response: Any, send: Callable[[Any], None], timeout: float) -> None:
        self.response = response
        self.deadline = time.monotonic() + timeout
        self._send = send
        self._sent = False
        self._lock = threading.Lock()

    @property
    def sent(self) -> bool:
        """Whether it was sent."""
        return self._sent

    def send(self, **values: Any) -> None:
        """Fills the response in and sends it."""
        with self._lock:
            if self._sent:
                return
            self._sent = True
        for name, value in values.items():
            setattr(self.response, name, value)
        self._send(self.response)


class DeferredService:
    """A service whose handler gets a `DeferredReply` to send whenever it is ready.

    Args:
        node: whose service it is.
        kind: service type. name: of the service.
        handler: called with the request and the reply; an exception in it is answered through `failed`.
        failed: (error) -> the values of a response that says so.
        timeout: seconds; by then `expired` answers in its place.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        name: str,
        handler: Callable[[Any, DeferredReply], None],
        *,
        failed: Callable[[Exception], dict[str, Any]],
        timeout: Callable[[], float],
    ) -> None:
        self._node, self._handler, self._failed, self._timeout = node, handler, failed, timeout
        self._open: list[DeferredReply] = []
        # `_take` returns no response, and the sending is replaced, neither of which a service foresees.
        self._service = cast(Any, node.create_service(kind, name, self._take))
        self._send_now = self._service.send_response
        self._service.send_response = self._send_unless_later

    def _take(self, request: Any, response: Any) -> tuple[Any, Any]:
        return request, response

    def _send_unless_later(self, taken: tuple[Any, Any], header: Any) -> None:
        """Called by the executor in place of the sending, with the header that the answer needs."""
        request, response = taken

        def send(answer: Any) -> None:
            executor = self._node.executor
            if executor is not None:
                executor.create_task(self._send_quietly, answer, header)

        reply = DeferredReply(response, send, self._timeout())
        self._open = [other for other in self._open if not other.sent] + [reply]
        try:
            self._handler(request, reply)
        except Exception as error:
            reply.send(**self._failed(error))

    def _send_quietly(self, answer: Any, header: Any) -> None:
        try:
            self._send_now(answer, header)
        except Exception as error:
            self._node.get_logger().debug(f"The client of {self._service.srv_name} is gone: {error}")

    def expire(self) -> None:
        """Answers what nobody answered in time."""
        now = time.monotonic()
        for reply in self._open:
            if not reply.sent and now > reply.deadline:
                reply.send(**self._failed(TimeoutError("It was not done in time; the worker is busy or hangs.")))


class DeferredActionServer(ActionServer):
    """An action server whose goals run elsewhere; `conclude` ends one.

    `execute()` of a goal handle turns it to executing and runs nothing.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        name: str,
        *,
        accepted: Callable[[ServerGoalHandle], None],
        cancel: Callable[[ServerGoalHandle], None],
    ) -> None:
        def on_cancel(handle: ServerGoalHandle) -> CancelResponse:
            cancel(handle)
            return CancelResponse.ACCEPT

        super().__init__(
            node,
            kind,
            name,
            execute_callback=lambda handle: None,
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            handle_accepted_callback=accepted,
            cancel_callback=on_cancel,  # rclpy refuses every cancel unless told otherwise
        )

    def notify_execute(self, goal_handle: ServerGoalHandle, execute_callback: Callable | None) -> None:
        """Called by `goal_handle.execute()`; the goal runs elsewhere."""

    def conclude(self, handle: ServerGoalHandle, end: str, result: Any) -> None:
        """Ends a goal from any thread: `end` is succeed, abort or canceled. Canceled needs a client's request."""

        def finish(goal: ServerGoalHandle) -> Any:
            if end == "canceled" and not goal.is_cancel_requested:
                goal.abort()
            else:
                getattr(goal, end)()
            return result

        super().notify_execute(handle, finish)
