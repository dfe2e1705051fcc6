"""Services and actions that are answered later, from another thread, without a callback that waits.

rclpy sends the response of a service when its callback returns. A coroutine that waits instead is polled by the
executor of Humble and Jazzy in a busy loop. Here the callback returns at once, and `DeferredReply.send` sends the
response later through the executor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

from rclpy.action import ActionServer
from rclpy.action.server import CancelResponse, GoalResponse, ServerGoalHandle
from rclpy.node import Node

from worldstereo_ros.ros.conversions import qos

# A client asks for the result as soon as its goal is accepted. rclpy's default of 900 s keeps the goals of a planner
# that sends ten a second for a quarter of an hour, and each new status message lists them all.
RESULT_TIMEOUT_S = 15
MAX_OPEN_REQUESTS = 100  # of a service, that wait for their answer; further ones are refused


class DeferredReply:
    """The response of one request, to be sent from any thread. Only the first `send` has an effect.

    Args:
        response: an empty response message.
        send: sends the response.
        timeout: seconds until the service replies with an error instead.

    Attributes:
        response: the response message.
        deadline: `time.monotonic()` of the timeout.
        withdraw: called at the timeout; takes the request back. Returns False if it is being carried out already: it is
            then answered when it is done, since what was answered as failed must not happen.
        outcome: sentence that says what was done of a request that is withdrawn.
    """

    def __init__(self, response: Any, send: Callable[[Any], None], timeout: float) -> None:
        self.response = response
        self.deadline = time.monotonic() + timeout
        self.withdraw: Callable[[], bool] = lambda: True
        self.outcome = "Nothing was done."
        self._send = send
        self._sent = False
        self._lock = threading.Lock()

    @property
    def sent(self) -> bool:
        """Whether the response was sent."""
        return self._sent

    def send(self, **fields: Any) -> None:
        """Sets fields of the response and sends it."""
        with self._lock:
            if self._sent:
                return
            self._sent = True
        for name, value in fields.items():
            setattr(self.response, name, value)
        self._send(self.response)


class DeferredService:
    """A service whose handler gets a `DeferredReply`, which it may send at any time.

    Args:
        node: node on which the service is created.
        kind: type of the service.
        name: name of the service.
        handler: called with the request and the reply.
        error_fields: (error) -> response fields; used for an exception of the handler and for a timeout.
        timeout: () -> seconds until a request is answered with a TimeoutError; read for each request.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        name: str,
        handler: Callable[[Any, DeferredReply], None],
        *,
        error_fields: Callable[[Exception], dict[str, Any]],
        timeout: Callable[[], float],
    ) -> None:
        self._node, self._handler, self._error_fields, self._timeout = node, handler, error_fields, timeout
        self._open: list[DeferredReply] = []
        # rclpy expects a response from the callback and sends it with `send_response`; both are replaced here.
        self._service = cast(Any, node.create_service(kind, name, self._keep_request))
        self._send_response = self._service.send_response
        self._service.send_response = self._on_request

    def _keep_request(self, request: Any, response: Any) -> tuple[Any, Any]:
        return request, response

    def _on_request(self, request_and_response: tuple[Any, Any], header: Any) -> None:
        """Replaces `send_response`, which the executor calls with the header that identifies the request."""
        request, response = request_and_response

        def send(answer: Any) -> None:
            executor = self._node.executor
            if executor is not None:
                executor.create_task(self._try_send, answer, header)

        reply = DeferredReply(response, send, self._timeout())
        self._open = [other for other in self._open if not other.sent]
        if len(self._open) >= MAX_OPEN_REQUESTS:
            message = f"{len(self._open)} requests of this service wait already. Nothing was done; ask again later."
            reply.send(**self._error_fields(RuntimeError(message)))
            return
        self._open.append(reply)
        try:
            self._handler(request, reply)
        except Exception as error:
            reply.send(**self._error_fields(error))

    def _try_send(self, response: Any, header: Any) -> None:
        try:
            self._send_response(response, header)
        except Exception as error:
            self._node.get_logger().debug(f"The client of {self._service.srv_name} has disconnected: {error}")

    def expire(self) -> None:
        """Withdraws requests that have reached their timeout, and answers them with an error."""
        now = time.monotonic()
        for reply in self._open:
            if not reply.sent and now > reply.deadline and reply.withdraw():
                message = f"Timed out before it could begin: the worker is busy with a job or hangs. {reply.outcome}"
                reply.send(**self._error_fields(TimeoutError(message)))
        self._open = [reply for reply in self._open if not reply.sent]


class DeferredActionServer(ActionServer):
    """An action server whose goals run on another thread and end by `conclude`.

    `execute()` of a goal handle sets the state to executing and runs nothing.

    Args:
        node: node on which the server is created.
        kind: type of the action.
        name: name of the action.
        on_accepted: called with the handle of each goal; every goal is accepted.
        on_cancel: called with the handle of a goal whose client requests to cancel it.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        name: str,
        *,
        on_accepted: Callable[[ServerGoalHandle], None],
        on_cancel: Callable[[ServerGoalHandle], None],
    ) -> None:
        def cancel_callback(handle: ServerGoalHandle) -> CancelResponse:
            on_cancel(handle)
            return CancelResponse.ACCEPT

        super().__init__(
            node,
            kind,
            name,
            execute_callback=lambda handle: None,
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            handle_accepted_callback=on_accepted,
            cancel_callback=cancel_callback,  # rclpy rejects cancel requests by default
            goal_service_qos_profile=qos.REQUESTS,
            result_service_qos_profile=qos.REQUESTS,
            cancel_service_qos_profile=qos.REQUESTS,
            result_timeout=RESULT_TIMEOUT_S,
        )

    def notify_execute(self, goal_handle: ServerGoalHandle, execute_callback: Callable | None) -> None:
        """Overrides what `goal_handle.execute()` calls: the goal runs on another thread."""

    def conclude(self, handle: ServerGoalHandle, state: str, result: Any) -> None:
        """Ends a goal from any thread.

        Args:
            handle: handle of the goal.
            state: "succeed", "abort" or "canceled"; "canceled" becomes "abort" unless a client requested it.
            result: the result message.
        """

        def finish(goal: ServerGoalHandle) -> Any:
            if state == "canceled" and not goal.is_cancel_requested:
                goal.abort()
            else:
                getattr(goal, state)()
            # The path of the request can have megabytes, and rclpy keeps the handle as long as the result.
            goal._goal_request = None
            return result

        super().notify_execute(handle, finish)
