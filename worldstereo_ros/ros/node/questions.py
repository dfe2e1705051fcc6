"""Requests that are answered one after the other on a thread of their own. Imports no rclpy."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError

MAX_WAITING = 16  # requests; further ones are refused
STOP_TIMEOUT_S = 3.0


class Question:
    """One request. It is answered exactly once, with a value or an error.

    Args:
        work: computes the answer; calls `check` between steps.
        on_answer: takes (value, None) or (None, error), on the planner's thread or the one that ends the request.
        timeout: seconds from now until it ends with TIMEOUT.
    """

    def __init__(
        self, work: Callable[[Question], Any], on_answer: Callable[[Any, Exception | None], None], timeout: float
    ) -> None:
        self.work, self._on_answer = work, on_answer
        self.accepted_at = time.monotonic()
        self._timeout = timeout
        self._reason: JobRejectedError | None = None
        self._answered = False
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Seconds since it was accepted."""
        return time.monotonic() - self.accepted_at

    def stop(self, code: ErrorCode, message: str) -> None:
        """Ends it at its next step. Of several reasons the first one is told."""
        with self._lock:
            self._reason = self._reason or JobRejectedError(code, message)

    def check(self) -> None:
        """Raises JobRejectedError if it was told to end, or its time is up."""
        if self.seconds > self._timeout:
            self.stop(
                ErrorCode.TIMEOUT,
                f"The request exceeded its timeout of {self._timeout:g} s (parameter `job_timeout`). Send fewer paths, "
                "or imagine fewer hypotheses and views.",
            )
        if self._reason is not None:
            raise self._reason

    def answer(self, value: Any, error: Exception | None = None) -> None:
        """Answers it, unless it was answered."""
        with self._lock:
            if self._answered:
                return
            self._answered = True
        self._on_answer(value, error)


class QuestionThread:
    """Answers questions, one at a time, on its own thread, which starts with the first one.

    Args:
        on_fault: gets unexpected exceptions.
    """

    def __init__(self, on_fault: Callable[[str, Exception], None]) -> None:
        self._on_fault = on_fault
        self._waiting: deque[Question] = deque()
        self._running: Question | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, question: Question) -> None:
        """Puts a question behind those that wait. Raises JobRejectedError TOO_LARGE if too many do."""
        with self._wake:
            if len(self._waiting) >= MAX_WAITING:
                raise JobRejectedError(
                    ErrorCode.TOO_LARGE, f"{MAX_WAITING} requests of planners wait already; ask again later."
                )
            self._waiting.append(question)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="worldstereo_planner", daemon=True)
                self._thread.start()
            self._wake.notify()

    def end_all(self, code: ErrorCode, message: str) -> None:
        """Ends the running question at its next step, and those that wait."""
        with self._wake:
            waiting, running = list(self._waiting), self._running
            self._waiting.clear()
        if running is not None:
            running.stop(code, message)
        for question in waiting:
            question.answer(None, JobRejectedError(code, message))

    def close(self) -> None:
        """Ends the thread."""
        self.end_all(ErrorCode.INACTIVE, "The node is shutting down.")
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._running = None
                self._wake.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                question = self._running = self._waiting.popleft()
            try:
                question.check()
                question.answer(question.work(question))
            except Exception as error:
                try:
                    question.answer(None, error)
                except Exception as fault:
                    self._on_fault("planning", fault)
