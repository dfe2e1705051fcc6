"""The parameter `backend`: a node's worker whose views a server imagines, or this computer; without a node."""

from __future__ import annotations

import threading

import pytest
from helpers.serving import CAMERA, LIMITS, TOKEN, http_server, make_service, path, sights

pytest.importorskip("uvicorn")

from worldstereo_ros.ros.node.backend import describe_backend
from worldstereo_ros.ros.node.jobs import ErrorCode, Job
from worldstereo_ros.ros.node.parameters import ConfigurationError, make_parameters
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.ros.node.worker_protocol import NoEvents
from worldstereo_ros.ros.node.world_factory import build_world
from worldstereo_ros.serving.app import make_app
from worldstereo_ros.serving.tokens import digest_of
from worldstereo_ros.world import WorldModel

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT_S = 60.0


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return str(file)


def values(token_file: str, port: int, **changes: object) -> dict[str, object]:
    return {
        "model": "geometric",
        "device": "cpu",
        "depth_source": "sensor",
        "max_points": 20_000,
        "max_bank_views": 16,
        "max_bank_memory": 64,
        "backend": "serve",
        "serve.url": f"http://127.0.0.1:{port}",
        "serve.token_file": token_file,
        **changes,
    }


def test_a_job_is_imagined_by_the_server_and_without_it_here(token_file):
    service = make_service()
    worker = Worker(NoEvents(), lambda world, job: CAMERA)

    def run() -> tuple[ErrorCode, int, str]:
        ended, results = threading.Event(), []
        job = Job(path(2), origin="test", timeout=LIMIT_S, on_end=lambda result: (results.append(result), ended.set()))
        worker.submit_path(job)
        assert ended.wait(LIMIT_S)
        return results[0].code, results[0].views_done, worker.call(lambda: describe_backend(world)).result(LIMIT_S)

    with http_server(make_app(service, digest_of(TOKEN), LIMITS)) as port:
        world = build_world(make_parameters(values(token_file, port)))
        worker.call(lambda: (worker.set_world(world), world.observe(sights(1)[0]))).result(LIMIT_S)
        assert run() == (ErrorCode.NONE, 2, f"serve http://127.0.0.1:{port}, model geometric")
        (session,) = service.sessions._sessions.values()
        assert session.revision == 1
    service.close()
    code, done, backend = run()
    assert (code, done) == (ErrorCode.NONE, 2)
    assert backend.startswith(f"local, model geometric: The server http://127.0.0.1:{port} cannot be reached")
    assert worker.stop(LIMIT_S)


def test_the_default_asks_no_server():
    parameters = make_parameters({"model": "geometric", "device": "cpu", "depth_source": "sensor", "max_points": 1000})
    world = build_world(parameters)
    assert type(world) is WorldModel
    assert describe_backend(world) == "local"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serve.url": ""}, "backend is 'serve', serve.url '' and serve.token_file"),
        ({"serve.token_file": ""}, "both are needed"),
        ({"serve.url": "gpu.local:8000"}, "http://HOST:PORT or https://HOST:PORT was expected"),
        ({"serve.robot": "a/b"}, "The robot id 'a/b' is invalid"),
        ({"serve.timeout": 0.0}, "'serve.timeout' is 0"),
        ({"backend": "cloud"}, "one of local, serve was expected"),
    ],
)
def test_parameters_of_the_server_are_checked(token_file, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        make_parameters(values(token_file, 8000, **changes))


def test_a_token_file_that_is_missing_fails_the_configuration(tmp_path):
    with pytest.raises(ConfigurationError, match="does not exist"):
        build_world(make_parameters(values(str(tmp_path / "no"), 8000)))
