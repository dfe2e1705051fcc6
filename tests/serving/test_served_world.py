"""A robot whose views a server imagines gets the same views bit for bit, and imagines by itself without one."""

from __future__ import annotations

import dataclasses
import gc
import logging
import socket
import threading
import time
import weakref

import numpy as np
import pytest
from helpers.serving import (
    CAMERA,
    LIMITS,
    SETTINGS,
    TOKEN,
    differences,
    http_server,
    make_service,
    make_world,
    memories,
    path,
    sights,
)

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.pipelines.base import Cancelled
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.serving.app import make_app
from worldstereo_ros.serving.client import ServeClient
from worldstereo_ros.serving.served_world import ServedWorld
from worldstereo_ros.serving.tokens import digest_of
from worldstereo_ros.world import EmptyMemoryError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def served():
    """(service, port)."""
    service = make_service()
    with http_server(make_app(service, digest_of(TOKEN), LIMITS)) as port:
        yield service, port
    service.close()


def robot_at(port: int, *, robot: str = "r1", token: str = TOKEN, estimator: DepthEstimator | None = None, **options):
    client = ServeClient(f"http://127.0.0.1:{port}", token, robot, timeout=5.0)
    return ServedWorld(GeometricPipeline(), *memories(), client=client, depth_estimator=estimator, **options)


def assert_same(world: ServedWorld, local, poses=None, **options) -> None:
    poses = path(3) if poses is None else poses
    ours = list(world.imagine(poses, CAMERA, **options))
    theirs = list(local.imagine(poses, CAMERA, **options))
    assert len(ours) == len(theirs) == len(poses)
    assert [differences(a, b) for a, b in zip(ours, theirs, strict=True)] == [[]] * len(poses)


def assert_same_memories(one, other) -> None:
    for a, b in ((one.cloud.state(), other.cloud.state()), (one.bank.state(), other.bank.state())):
        assert a.keys() == b.keys()
        assert [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()] == []


def test_views_are_those_of_this_computer_bit_for_bit(served):
    service, port = served
    world, local = robot_at(port), make_world()
    for view in sights(3):
        world.observe(view)
        local.observe(view)
    assert_same(world, local, seed=3)
    assert world.backend.startswith(f"serve http://127.0.0.1:{port}, model ")
    # More is observed, imagined views are remembered, and the memories stay equal.
    for view in sights(2, start=-60):
        world.observe(view)
        local.observe(view)
    assert_same(world, local, path(4, 120), remember=True, clearance=0.3)
    assert_same_memories(world, local)
    assert_same(world, local, path(2, 180))
    there = service.sessions._sessions["r1"].world
    assert_same_memories(world, there)


def test_depth_that_was_estimated_here_is_estimated_there(served):
    """The server has no depth estimator: it gets the depth with the view."""
    service, port = served
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.9, 1.1, (CAMERA.height, CAMERA.width)).astype(np.float32)

    def estimate(image, camera):
        return 2 * noise

    world = robot_at(port, estimator=estimate)
    views = sights(3)
    world.observe(views[0])
    for view in views[1:]:
        world.observe(dataclasses.replace(view, depth=None))
    list(world.imagine(path(2), CAMERA))
    assert world.backend.startswith("serve ")
    there = service.sessions._sessions["r1"].world
    assert there.cloud.estimated_count > 0
    assert_same_memories(world, there)


def test_without_a_server_the_views_are_imagined_here_and_it_is_said_once(caplog):
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        clock = [0.0]
        world, local = robot_at(port, clock=lambda: clock[0]), make_world()
        with caplog.at_level(logging.INFO, "worldstereo_ros.serving"):
            for view in sights(2):
                world.observe(view)
                local.observe(view)
            for _ in range(3):
                assert_same(world, local, seed=1)
                clock[0] += 20
    assert world.backend.startswith(
        f"local, model {GeometricPipeline().name}: The server http://127.0.0.1:{port} cannot"
    )
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].endswith("imagined on this computer, by 'geometric'; the server is asked again in 10 s.")


def test_a_server_that_comes_back_gets_all_memories_and_imagines_again(caplog):
    clock = [0.0]
    service = make_service()
    with http_server(make_app(service, digest_of(TOKEN), LIMITS)) as port:
        world, local = robot_at(port, clock=lambda: clock[0]), make_world()
        for view in sights(2):
            world.observe(view)
            local.observe(view)
        assert_same(world, local)
    service.close()
    for view in sights(1, start=100):
        world.observe(view)
        local.observe(view)
    assert_same(world, local, path(3), remember=True)
    assert world.backend.startswith("local")
    clock[0] += 100
    again = make_service()
    with http_server(make_app(again, digest_of(TOKEN), LIMITS), port=port):
        with caplog.at_level(logging.INFO, "worldstereo_ros.serving"):
            assert_same(world, local)
        assert world.backend.startswith("serve")
        assert "imagines, with the model 'geometric'" in caplog.text
        assert_same_memories(world, again.sessions._sessions["r1"].world)
    again.close()


def test_a_session_that_was_lost_is_said_and_made_again(served, caplog):
    service, port = served
    world, local = robot_at(port), make_world()
    for view in sights(2):
        world.observe(view)
        local.observe(view)
    assert_same(world, local)
    with service.sessions._wake:
        service.sessions._end(service.sessions._sessions["r1"], "ended after 9 s without a request")
    with caplog.at_level(logging.WARNING, "worldstereo_ros.serving"):
        assert_same(world, local)
    assert "ended after 9 s without a request" in caplog.text
    assert "The memories are sent again." in caplog.text
    assert world.backend.startswith("serve")


def test_two_robots_of_one_id_never_see_the_memories_of_the_other(served):
    _, port = served
    one, other = robot_at(port), robot_at(port)
    locals_ = make_world(), make_world()
    for world, local, start in ((one, locals_[0], 0), (other, locals_[1], 150)):
        for view in sights(2, start=start):
            world.observe(view)
            local.observe(view)
    for _ in range(2):
        assert_same(one, locals_[0])
        assert_same(other, locals_[1])


def test_memories_that_change_otherwise_are_sent_as_a_whole(served, tmp_path):
    service, port = served
    world, local = robot_at(port), make_world()
    for view in sights(2):
        world.observe(view)
        local.observe(view)
    local.save(tmp_path / "a.wsmap")
    for one in (world, local):
        one.load(tmp_path / "a.wsmap")
    assert_same(world, local)
    for one in (world, local):
        one.reset()
    with pytest.raises(EmptyMemoryError):
        world.imagine(path(2), CAMERA)
    for view in sights(1, start=200):
        world.observe(view)
        local.observe(view)
    assert_same(world, local)
    assert_same_memories(world, service.sessions._sessions["r1"].world)


def test_a_wrong_token_is_one_sentence_and_the_views_come_anyway(served, caplog):
    _, port = served
    world, local = robot_at(port, token="another-token-of-tests"), make_world()
    view = sights(1)[0]
    world.observe(view)
    local.observe(view)
    assert_same(world, local)
    assert world.backend.startswith("local, model geometric: The token is missing or wrong")
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) == 1


def test_a_request_that_the_server_refuses_is_answered_here(served):
    _, port = served
    world, local = robot_at(port), make_world()
    view = sights(1)[0]
    world.observe(view)
    local.observe(view)
    assert_same(world, local, path(LIMITS.max_views + 1, 10))
    assert "were asked for; at most 8 are accepted" in world.backend
    assert_same(world, local)
    assert world.backend.startswith("serve")


def test_a_server_that_is_busy_is_asked_again_when_it_says(served, monkeypatch, caplog):
    service, port = served
    clock = [0.0]
    world, local = robot_at(port, clock=lambda: clock[0]), make_world()
    first, second = sights(2)
    world.observe(first)
    local.observe(first)
    assert_same(world, local)
    session = world.client.session
    with monkeypatch.context() as patch:
        patch.setattr(service.sessions, "_waiting", LIMITS.waiting)
        world.observe(second)
        local.observe(second)
        assert_same(world, local)
        assert "wait already; try again in" in world.backend
        assert "; the server is asked again in" in caplog.text
    assert_same(world, local)
    assert world.backend.startswith("local")
    clock[0] += 60
    assert_same(world, local)
    assert world.backend.startswith("serve")
    assert world.client.session == session  # what waited was sent, and nothing again
    assert world.client.revision == 2


class Breaking(GeometricPipeline):
    """Stops the server on the way."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.done = at, 0

    def __call__(self, *arguments, **options):
        for item in super().__call__(*arguments, **options):
            if self.done == self.at:
                raise RuntimeError("a kernel failed")
            self.done += 1
            yield item


@pytest.mark.parametrize("remember", [False, True])
def test_a_server_that_fails_on_the_way_leaves_the_rest_to_this_computer(served, caplog, remember):
    service, port = served
    world, local = robot_at(port), make_world()
    for view in sights(2):
        world.observe(view)
        local.observe(view)
    list(world.imagine(path(1), CAMERA))
    session = service.sessions._sessions["r1"]
    session.world.pipeline = Breaking(at=2)
    views = list(world.imagine(path(5), CAMERA, remember=remember))
    plain = list(local.imagine(path(5), CAMERA, remember=remember))
    assert [(view.index, view.count) for view in views] == [(i, 5) for i in range(5)]
    assert [differences(a, b) for a, b in zip(views[:2], plain[:2], strict=True)] == [[], []]
    assert "The last 3 of 5 views are imagined on this computer" in caplog.text
    assert "a kernel failed" not in world.backend  # of the server's inside, the type alone is told
    session.world.pipeline = GeometricPipeline()
    list(world.imagine(path(1), CAMERA))
    assert world.backend.startswith("serve")
    assert_same_memories(world, service.sessions._sessions["r1"].world)


def test_what_the_robot_gives_up_ends_on_the_server(served):
    service, port = served
    world, local = robot_at(port), make_world()
    view = sights(1)[0]
    world.observe(view)
    local.observe(view)
    list(world.imagine(path(1), CAMERA))
    pipeline = Breaking(at=100)
    service.sessions._sessions["r1"].world.pipeline = pipeline
    steps = []

    def on_step(stage, step, count):
        steps.append(stage)
        if pipeline.done:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        list(world.imagine(path(8), CAMERA, on_step=on_step))
    given = world.imagine(path(8), CAMERA)
    next(given)
    given.close()
    assert_same(world, local)
    assert world.backend.startswith("serve")
    assert pipeline.done < 16
    assert "imagining" in steps or "rendering" in steps


def test_observations_are_sent_while_the_robot_does_other_things(served):
    service, port = served
    world = robot_at(port)
    for view in sights(3):
        world.observe(view)
    deadline = time.monotonic() + 20
    while world._unsent and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not world._unsent
    with world._line:
        assert service.sessions._sessions["r1"].revision == 3
    gone, threads = weakref.ref(world), threading.active_count()
    world._wake.set()
    del world
    gc.collect()
    deadline = time.monotonic() + 20
    while (gone() is not None or threading.active_count() >= threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone() is None  # the thread that sends does not keep it


def test_a_robot_waits_while_others_are_served_and_may_give_up(served, monkeypatch):
    """The server computes for another robot for longer than the robot's timeout."""
    service, port = served
    monkeypatch.setattr("worldstereo_ros.serving.service.HEARTBEAT_S", 0.05)
    world = robot_at(port)
    world.client.timeout = 0.5
    other = service.sessions.begin("other", SETTINGS)
    release, entered = threading.Event(), threading.Event()
    service.sessions.submit("other", other.id, lambda session, request: (entered.set(), release.wait(30)))
    assert entered.wait(30)
    world.observe(sights(1)[0])
    steps = []

    def on_step(stage, step, count):
        steps.append(stage)
        if len(steps) == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        list(world.imagine(path(1), CAMERA, on_step=on_step))
    threading.Timer(1.0, release.set).start()
    assert len(list(world.imagine(path(1), CAMERA, on_step=lambda stage, *_: steps.append(stage)))) == 1
    assert world.backend.startswith("serve")
    assert steps.count("waiting") > 2


def test_settings_beyond_those_of_the_server_are_said(served):
    _, port = served
    client = ServeClient(f"http://127.0.0.1:{port}", TOKEN, "r1")
    cloud, bank = memories(dataclasses.replace(SETTINGS, max_points=LIMITS.max_points + 1))
    world = ServedWorld(GeometricPipeline(), cloud, bank, client=client)
    world.observe(sights(1)[0])
    assert len(list(world.imagine(path(1), CAMERA))) == 1
    assert "max_points 50001; at most 50000 are allowed on this server" in world.backend
