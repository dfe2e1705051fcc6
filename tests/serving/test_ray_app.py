"""The server on a real Ray Serve: a robot's requests reach the process with its memories, which may die."""

from __future__ import annotations

import socket
import time

import pytest
from helpers.serving import CAMERA, LIMITS, TOKEN, differences, make_world, memories, path, sights

pytest.importorskip("ray.serve")

from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.serving.client import ServeClient
from worldstereo_ros.serving.loading import ModelSettings
from worldstereo_ros.serving.ray_app import APP, build_application, holder_of, start_ray
from worldstereo_ros.serving.served_world import ServedWorld
from worldstereo_ros.serving.tokens import digest_of
from worldstereo_ros.utils.errors import InputError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow, pytest.mark.timeout(600)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def port():
    import ray
    from ray import serve

    number = free_port()
    for attempts_left in (2, 1, 0):
        try:
            start_ray(None, needed_cpus=0.02)
            break
        except InputError:  # Ray gives up after 30 s, which a busy machine may need
            if not attempts_left:
                raise
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": number})
    chosen = ModelSettings("geometric", depth_model="none")
    app = build_application(chosen, LIMITS, digest_of(TOKEN), replicas=2, cpus_per_replica=0.01)
    serve.run(app, name=APP, route_prefix="/")
    yield number
    serve.shutdown()
    ray.shutdown()


def names_of_two_holders() -> tuple[str, str]:
    first = "robot-0"
    second = next(f"robot-{i}" for i in range(1, 100) if holder_of(f"robot-{i}", 2) != holder_of(first, 2))
    return first, second


def test_robots_are_kept_apart_and_outlive_the_death_of_a_replica(port, caplog):
    import ray

    names = names_of_two_holders()
    worlds, locals_ = [], []
    for name, start in zip(names, (0, 150), strict=True):
        client = ServeClient(f"http://127.0.0.1:{port}", TOKEN, name, timeout=30)
        world, local = ServedWorld(GeometricPipeline(), *memories(), client=client), make_world()
        for view in sights(2, start=start):
            world.observe(view)
            local.observe(view)
        worlds.append(world)
        locals_.append(local)

    def check(index: int) -> None:
        ours = list(worlds[index].imagine(path(2), CAMERA, seed=5))
        theirs = list(locals_[index].imagine(path(2), CAMERA, seed=5))
        assert [differences(a, b) for a, b in zip(ours, theirs, strict=True)] == [[], []]
        assert worlds[index].backend.startswith("serve "), worlds[index].backend

    check(0)
    check(1)
    health = worlds[0].client.health()
    assert (health["robots"], health["replicas_alive"]) == (2, 2)
    sessions = [world.client.session for world in worlds]

    holder = next(name for name in ray_actor_names(ray) if f"memories-{holder_of(names[0], 2)}#" in name)
    ray.kill(ray.get_actor(holder, namespace="serve"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        worlds[0]._retry_at = 0.0
        list(worlds[0].imagine(path(1), CAMERA))
        if worlds[0].backend.startswith("serve") and worlds[0].client.session != sessions[0]:
            break
        time.sleep(0.2)
    check(0)
    check(1)
    assert worlds[1].client.session == sessions[1]  # the other noticed nothing
    assert (
        "is not known here: the server or a part of it was started again. The memories are sent again." in caplog.text
    )


def ray_actor_names(ray) -> list[str]:
    return [one["name"] for one in ray.util.list_named_actors(all_namespaces=True) if one["namespace"] == "serve"]
