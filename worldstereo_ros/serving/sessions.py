"""A world model for each robot, in one process: sessions, their queues, and the thread that computes.

One thread computes, since one model is loaded: more at once are more processes. It takes turns among the robots that
wait, so that a robot with many requests holds up none of the others for longer than one request; requests of one robot
are answered in the order in which they came. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.serving.addresses import check_robot
from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import MemorySettings, ServingLimits
from worldstereo_ros.world import WorldModel

logger = logging.getLogger(__name__)

MAX_ENDED = 256  # sessions of which it is remembered why they ended
MAX_RETRY_S = 60.0
SWEEP_PERIOD_S = 5.0  # between two looks for idle sessions
STOP_TIMEOUT_S = 5.0


@dataclass(eq=False)
class Session:
    """The memories of one robot.

    Attributes:
        robot: id of the robot. id: of the session, which the robot names with each request.
        settings: of the memories.
        revision: number of changes of the memories; equal for a robot that has made the same ones.
        world: the memories; None before the first request. Only the computing thread touches it.
    """

    robot: str
    id: str
    settings: MemorySettings
    revision: int = 0
    world: WorldModel | None = None
    queue: deque[Request] = field(default_factory=deque)
    running: bool = False
    used_at: float = 0.0


@dataclass(eq=False)
class Request:
    """A request that waits or runs.

    Attributes:
        future: its result.
        size: bytes of its body.
    """

    session: Session
    work: Callable[[Session, Request], Any]
    revision: int | None
    size: int
    deadline: float
    future: Future = field(default_factory=Future)
    cancelled: bool = False

    def cancel(self) -> None:
        """Ends it at its next step; its client no longer waits."""
        self.cancelled = True
        self.future.cancel()

    def check(self) -> None:
        """Raises Cancelled if its client no longer waits, and ServingError if its time is up."""
        if self.cancelled:
            raise Cancelled("The client went away.")
        if time.monotonic() > self.deadline:
            raise ServingError("timeout", "The request took longer than this server allows. Ask for fewer views.")


class RobotSessions:
    """Answers the requests of many robots, each with memories of its own.

    Args:
        make_world: makes a world model with empty memories of these settings; called on the computing thread.
        limits: numbers of sessions and of waiting requests, and times.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        make_world: Callable[[MemorySettings], WorldModel],
        limits: ServingLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_world, self.limits, self._clock = make_world, limits or ServingLimits(), clock
        self._sessions: dict[str, Session] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()  # session id -> why it ended
        self._turns: deque[Session] = deque()  # that have waiting requests and do not run
        self._waiting = self._waiting_bytes = 0
        self._seconds = 0.0  # of a request, a running mean
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="worldstereo_serving", daemon=True)
        self._thread.start()

    # --- requests, from any thread ---

    def begin(self, robot: str, settings: MemorySettings) -> Session:
        """Begins a session with empty memories, in place of the robot's earlier one, whose requests end.

        Raises:
            InputError: the id is invalid.
            ServingError: full.
        """
        check_robot(robot)
        with self._wake:
            self._end_idle()
            if robot in self._sessions:
                self._end(self._sessions[robot], "was replaced by a newer one of the same robot id")
            if len(self._sessions) >= self.limits.max_robots:
                raise ServingError(
                    "full",
                    f"{self.limits.max_robots} robots are served already, as many as this server allows; sessions end "
                    f"after {self.limits.idle_s:g} s without a request.",
                    retry_after=min(self.limits.idle_s, MAX_RETRY_S),
                )
            session = Session(robot, secrets.token_urlsafe(16), settings, used_at=self._clock())
            self._sessions[robot] = session
            return session

    def submit(
        self,
        robot: str,
        session_id: str,
        work: Callable[[Session, Request], Any],
        *,
        revision: int | None = None,
        size: int = 0,
    ) -> Request:
        """Puts a request behind those of the same robot.

        Args:
            robot: id of the robot.
            session_id: of its session.
            work: computes the result on the computing thread; calls `Request.check` between steps.
            revision: what the robot believes the memories to be; None: whatever they are.
            size: bytes that wait with it.

        Raises:
            InputError: the id is invalid.
            ServingError: session_lost, or busy if too many requests wait.
        """
        check_robot(robot)
        with self._wake:
            self._end_idle()
            session = self._find(robot, session_id)
            limits = self.limits
            if len(session.queue) >= limits.waiting_per_robot:
                raise self._busy(f"{len(session.queue)} requests of the robot '{robot}' wait already")
            if self._waiting >= limits.waiting or self._waiting_bytes + size > limits.waiting_bytes:
                raise self._busy(f"{self._waiting} requests of {self._waiting_bytes // 10**6} MB wait already")
            request = Request(session, work, revision, size, time.monotonic() + limits.request_s)
            session.queue.append(request)
            session.used_at = self._clock()
            self._waiting += 1
            self._waiting_bytes += size
            if not session.running and len(session.queue) == 1:
                self._turns.append(session)
            self._wake.notify()
            return request

    def _find(self, robot: str, session_id: str) -> Session:
        session = self._sessions.get(robot)
        if session is not None and secrets.compare_digest(session.id.encode(), session_id.encode()):
            return session
        why = self._ended.get(session_id, "is not known here: the server or a part of it was started again")
        raise ServingError(
            "session_lost",
            f"The session of the robot '{robot}' {why}. Begin a new one with reset, and send the observations again.",
        )

    def _busy(self, what: str) -> ServingError:
        seconds = min(MAX_RETRY_S, max(1.0, round(self._seconds * max(1, self._waiting))))
        return ServingError("busy", f"{what}; try again in {seconds:g} s.", retry_after=seconds)

    @property
    def status(self) -> dict[str, Any]:
        """Numbers of robots and of waiting requests, and the seconds that a request takes."""
        with self._wake:
            self._end_idle()
            return {
                "robots": len(self._sessions),
                "waiting": self._waiting,
                "seconds_per_request": round(self._seconds, 3),
            }

    def stop(self) -> bool:
        """Ends all sessions and the thread. Returns False if it hangs; it is a daemon thread."""
        with self._wake:
            self._stopping = True
            for session in list(self._sessions.values()):
                self._end(session, "ended with the server")
            self._wake.notify_all()
        self._thread.join(STOP_TIMEOUT_S)
        return not self._thread.is_alive()

    # --- sessions; the caller holds the lock ---

    def _end_idle(self) -> None:
        for session in list(self._sessions.values()):
            idle = self._clock() - session.used_at
            if idle > self.limits.idle_s and not session.queue and not session.running:
                self._end(session, f"ended after {self.limits.idle_s:g} s without a request")

    def _end(self, session: Session, why: str) -> None:
        del self._sessions[session.robot]
        self._ended[session.id] = why
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        if session in self._turns:
            self._turns.remove(session)
        waiting = list(session.queue)
        session.queue.clear()
        for request in waiting:
            self._waiting -= 1
            self._waiting_bytes -= request.size
            if request.future.set_running_or_notify_cancel():
                error = ServingError("session_lost", f"The session of the robot '{session.robot}' {why}.")
                request.future.set_exception(error)
        if not session.running:
            session.world = None

    # --- the computing thread ---

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._turns, SWEEP_PERIOD_S)
                if self._stopping:
                    return
                self._end_idle()
                if not self._turns:
                    continue
                session = self._turns.popleft()
                request = session.queue.popleft()
                self._waiting -= 1
                self._waiting_bytes -= request.size
                session.running = True
            started = time.monotonic()
            self._answer(session, request)
            # What the request holds must not live until the next one comes.
            del request
            with self._wake:
                self._seconds += 0.2 * (time.monotonic() - started - self._seconds)
                session.running = False
                session.used_at = self._clock()
                if self._sessions.get(session.robot) is not session:
                    session.world = None
                elif session.queue:
                    self._turns.append(session)  # behind the others
            del session

    def _answer(self, session: Session, request: Request) -> None:
        if not request.future.set_running_or_notify_cancel():
            return
        try:
            request.check()
            if request.revision is not None and request.revision != session.revision:
                raise ServingError(
                    "out_of_step",
                    f"The memories of the robot '{session.robot}' have changed {session.revision} times here, and the "
                    f"robot expects {request.revision}. Begin a new session with reset, and send the observations "
                    "again.",
                )
            if session.world is None:
                session.world = self._make_world(session.settings)
            request.future.set_result(request.work(session, request))
        except BaseException as error:
            request.future.set_exception(error)
