"""Sessions of robots without a network: order, turns, limits, and how sessions end."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import MemorySettings, ServingLimits
from worldstereo_ros.serving.sessions import MAX_ENDED, RobotSessions
from worldstereo_ros.utils.errors import InputError

LIMIT_S = 30.0
LIMITS = ServingLimits(max_robots=3, waiting_per_robot=3, waiting=5, waiting_bytes=1000, idle_s=100, request_s=20)
SETTINGS = MemorySettings()


class Memory(list):
    """In place of a world model: what was done to it."""


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def sessions(clock):
    sessions = RobotSessions(lambda settings: Memory(), LIMITS, clock=lambda: clock[0])
    yield sessions
    assert sessions.stop()


class Gate:
    """Work that runs until it is opened."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, session, request):
        self.entered.set()
        assert self.open.wait(LIMIT_S)
        return len(session.world)


def append(value, log=None):
    def work(session, request):
        session.world.append(value)
        if log is not None:
            log.append((session.robot, value))
        return list(session.world)

    return work


def test_robots_take_turns_and_each_is_served_in_order(sessions):
    a, b, c = (sessions.begin(name, SETTINGS) for name in "abc")
    gate, log = Gate(), []
    first = sessions.submit("a", a.id, gate)
    assert gate.entered.wait(LIMIT_S)
    requests = [sessions.submit("a", a.id, append(i, log)) for i in (1, 2)]
    requests += [sessions.submit(s.robot, s.id, append(3, log)) for s in (b, c)]
    gate.open.set()
    results = [request.future.result(LIMIT_S) for request in requests]
    assert first.future.result(0) == 0
    assert log == [("b", 3), ("c", 3), ("a", 1), ("a", 2)]  # a had its turn already
    assert results == [[1], [1, 2], [3], [3]]  # and no memory has anything of another


def test_what_is_too_much_is_refused_with_a_time_and_loses_nothing(sessions):
    a, b = (sessions.begin(name, SETTINGS) for name in "ab")
    gate = Gate()
    sessions.submit("a", a.id, gate)
    assert gate.entered.wait(LIMIT_S)
    waiting = [sessions.submit("a", a.id, append(i)) for i in range(3)]
    with pytest.raises(ServingError, match=r"^3 requests of the robot 'a' wait already; try again in 1 s\.$") as busy:
        sessions.submit("a", a.id, append(9))
    assert (busy.value.status, busy.value.code, busy.value.retry_after) == (429, "busy", 1.0)
    with pytest.raises(ServingError, match="wait already"):  # all bodies together
        sessions.submit("b", b.id, append(9), size=1001)
    waiting += [sessions.submit("b", b.id, append(i), size=500) for i in range(2)]
    with pytest.raises(ServingError, match="5 requests of 0 MB wait already"):
        sessions.submit("b", b.id, append(9))
    assert sessions.status["waiting"] == 5
    gate.open.set()
    assert [request.future.result(LIMIT_S) for request in waiting][2::2] == [[0, 1, 2], [0, 1]]
    assert sessions.submit("b", b.id, append(5), size=1000).future.result(LIMIT_S) == [0, 1, 5]


def test_a_session_belongs_to_one_robot_and_one_beginning(sessions):
    a, b = (sessions.begin(name, SETTINGS) for name in "ab")
    sessions.submit("a", a.id, append(1)).future.result(LIMIT_S)
    for robot, session in (("b", a.id), ("a", b.id), ("a", ""), ("a", "guessed"), ("unknown", a.id)):
        with pytest.raises(ServingError, match="Begin a new one with reset") as lost:
            sessions.submit(robot, session, append(2))
        assert (lost.value.code, lost.value.status) == ("session_lost", 410)
    again = sessions.begin("a", SETTINGS)
    with pytest.raises(ServingError, match="was replaced by a newer one of the same robot id"):
        sessions.submit("a", a.id, append(2))
    assert sessions.submit("a", again.id, append(3)).future.result(LIMIT_S) == [3]


def test_a_new_beginning_ends_what_waits_and_frees_what_runs(sessions):
    a = sessions.begin("a", SETTINGS)
    gate = Gate()
    running = sessions.submit("a", a.id, gate)
    assert gate.entered.wait(LIMIT_S)
    waiting = sessions.submit("a", a.id, append(1), size=700)
    memory = weakref.ref(a.world)
    again = sessions.begin("a", SETTINGS)
    with pytest.raises(ServingError, match="was replaced"):
        waiting.future.result(LIMIT_S)
    assert sessions.status["waiting"] == 0
    gate.open.set()
    running.future.result(LIMIT_S)
    assert sessions.submit("a", again.id, append(2), size=900).future.result(LIMIT_S) == [2]
    del running
    gc.collect()
    assert memory() is None


def test_idle_sessions_end_and_busy_ones_do_not(sessions, clock):
    a, b = (sessions.begin(name, SETTINGS) for name in "ab")
    gate = Gate()
    sessions.submit("a", a.id, append(1)).future.result(LIMIT_S)
    sessions.submit("b", b.id, gate)
    assert gate.entered.wait(LIMIT_S)
    memory = weakref.ref(a.world)
    clock[0] = 101
    assert sessions.status["robots"] == 1
    gc.collect()
    assert memory() is None
    with pytest.raises(ServingError, match="ended after 100 s without a request"):
        sessions.submit("a", a.id, append(2))
    gate.open.set()
    assert sessions.submit("b", b.id, append(2)).future.result(LIMIT_S) == [2]


def test_there_are_at_most_as_many_robots_as_allowed(sessions, clock):
    first, *_ = (sessions.begin(name, SETTINGS) for name in "abc")
    with pytest.raises(ServingError, match="3 robots are served already") as full:
        sessions.begin("d", SETTINGS)
    assert (full.value.status, full.value.retry_after) == (503, 60.0)
    sessions.begin("a", SETTINGS)  # in place of its own
    clock[0] = 50
    with pytest.raises(ServingError, match="was replaced"):
        sessions.submit("a", first.id, append(1))
    clock[0] = 101
    sessions.begin("d", SETTINGS)
    assert sessions.status["robots"] == 1
    for _ in range(MAX_ENDED + 10):  # what is remembered of ended ones is bounded
        sessions.begin("d", SETTINGS)
    assert len(sessions._ended) == MAX_ENDED


def test_requests_on_other_memories_than_the_robot_believes_are_refused(sessions):
    a = sessions.begin("a", SETTINGS)

    def change(session, request):
        session.revision += 1

    sessions.submit("a", a.id, change, revision=0).future.result(LIMIT_S)
    with pytest.raises(ServingError, match="have changed 1 times here, and the robot expects 0") as error:
        sessions.submit("a", a.id, change, revision=0).future.result(LIMIT_S)
    assert error.value.code == "out_of_step"
    sessions.submit("a", a.id, change, revision=1).future.result(LIMIT_S)
    sessions.submit("a", a.id, change).future.result(LIMIT_S)
    assert a.revision == 3


def test_errors_and_requests_that_are_given_up_do_not_stop_the_others(sessions):
    a = sessions.begin("a", SETTINGS)

    def fail(session, request):
        raise InputError("not usable")

    gate = Gate()
    sessions.submit("a", a.id, gate)
    assert gate.entered.wait(LIMIT_S)
    failing, given_up = sessions.submit("a", a.id, fail), sessions.submit("a", a.id, append(1))
    given_up.cancel()
    gate.open.set()
    with pytest.raises(InputError, match="not usable"):
        failing.future.result(LIMIT_S)
    assert sessions.submit("a", a.id, append(2)).future.result(LIMIT_S) == [2]
    assert given_up.future.cancelled()


def test_a_request_ends_at_its_time(clock):
    sessions = RobotSessions(lambda settings: Memory(), ServingLimits(request_s=0.01))
    a = sessions.begin("a", SETTINGS)

    def slow(session, request):
        while True:
            request.check()
            time.sleep(0.001)

    with pytest.raises(ServingError, match="took longer than this server allows"):
        sessions.submit("a", a.id, slow).future.result(LIMIT_S)
    assert sessions.stop()


@pytest.mark.parametrize("robot", ["", "a/b", "..", "a" * 65, "a b", "ä", "-a"])
def test_robot_ids_are_checked(sessions, robot):
    with pytest.raises(InputError, match="The robot id"):
        sessions.begin(robot, SETTINGS)
    with pytest.raises(InputError, match="The robot id"):
        sessions.submit(robot, "x", append(1))
    assert sessions.status["robots"] == 0


def test_settings_of_memories_are_checked():
    limits = ServingLimits(max_points=10_000, max_bank_views=8)
    assert MemorySettings.parse({}, limits) == MemorySettings(max_points=10_000, max_bank_views=8)
    given = {"voxel_size": 0.1, "max_radius": 3.0, "max_age": None, "max_points": 500}
    assert MemorySettings.parse(given, limits) == MemorySettings(0.1, 500, 3.0, None, 8)
    for fields, message in (
        ({"max_points": 10_001}, "max_points 10001; at most 10000 are allowed"),
        ({"max_points": 5.5}, "a positive whole number"),
        ({"max_points": True}, "a positive whole number"),
        ({"voxel_size": float("nan")}, "a positive number"),
        ({"voxel_size": -1}, "a positive number"),
        ({"voxel_size": "fine"}, "a positive number"),
        ({"voxel_size": None}, "a positive number"),
        ({"colour": 1}, "The settings colour are unknown"),
    ):
        with pytest.raises(InputError, match=message):
            MemorySettings.parse(fields, limits)
    with pytest.raises(InputError, match="The limit idle_s of the server is 0"):
        ServingLimits(idle_s=0)
