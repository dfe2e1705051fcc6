"""The HTTP interface: tokens, sizes, bad requests, queues, and what does not come back as it went."""

from __future__ import annotations

import dataclasses
import json
import stat
import struct
import threading

import numpy as np
import pytest
from helpers.serving import CAMERA, LIMITS, TOKEN, differences, make_service, make_world, path, sights

pytest.importorskip("starlette")
pytest.importorskip("httpx2", reason="Starlette's TestClient needs it")

from starlette.testclient import TestClient

from worldstereo_ros.planning import RobotShape, imagine_hypotheses, score_paths, world_grid
from worldstereo_ros.planning.path_scores import PathScore, PathScores
from worldstereo_ros.planning.visibility import Sensor
from worldstereo_ros.serving.addresses import parse_url
from worldstereo_ros.serving.app import REVISION, SESSION, make_app
from worldstereo_ros.serving.calls import FRAMES, Part, frame
from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import MemorySettings
from worldstereo_ros.serving.messages import compress, decompress, pack, unpack
from worldstereo_ros.serving.tokens import digest_of, is_valid, read_token
from worldstereo_ros.serving.view_messages import (
    camera_fields,
    parse_imagined,
    parse_scores,
    parse_view,
    scores_message,
    view_message,
)
from worldstereo_ros.utils.errors import InputError, WorldStereoError

pytestmark = pytest.mark.usefixtures("one_thread")
BEARER = {"Authorization": f"Bearer {TOKEN}"}
OBSERVE, IMAGINE = "/v1/robots/r1/observe", "/v1/robots/r1/imagine"


@pytest.fixture(scope="module")
def service():
    service = make_service()
    yield service
    service.close()


@pytest.fixture(scope="module")
def http(service):
    with TestClient(make_app(service, digest_of(TOKEN), LIMITS)) as client:
        yield client


@pytest.fixture
def robot(http):
    """Headers of a robot that has observed one view, and the view."""
    answer = http.post("/v1/robots/r1/reset", headers=BEARER)
    assert answer.status_code == 200, answer.text
    headers = BEARER | {SESSION: answer.json()["session"]}
    view = sights(1)[0]
    answer = http.post(OBSERVE, content=pack(*view_message(view)), headers=headers)
    assert answer.status_code == 200, answer.text
    assert (answer.json()["revision"], answer.json()["views"]) == (1, 1)
    assert answer.json()["points"] > 100
    return headers, view


def imagine_body(poses=None, arrays=None, **fields) -> bytes:
    arrays = {"poses": path(2) if poses is None else poses} if arrays is None else arrays
    return pack({"camera": camera_fields(CAMERA), **fields}, arrays)


def frames_of(content: bytes) -> list:
    frames = []
    while content:
        size = struct.unpack_from("<Q", content)[0]
        frames.append(unpack(content[8 : 8 + size]))
        content = content[8 + size :]
    return frames


def refused(answer, status: int, code: str, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    fields = answer.json()
    assert fields["error"] == code
    assert sentence in fields["message"], fields["message"]
    assert len(fields["message"]) < 700


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": f"Bearer {TOKEN}x"},
     {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN[:-1]}"}],
)  # fmt: skip
def test_nothing_is_answered_without_the_token(http, headers):
    requests = [
        ("GET", "/v1/health"),
        ("POST", "/v1/robots/r1/reset"),
        ("POST", IMAGINE),
        ("GET", "/"),
        ("GET", IMAGINE),
    ]
    for method, url in requests:
        answer = http.request(method, url, headers=headers)
        refused(answer, 401, "unauthorized", "Authorization: Bearer TOKEN")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_health_and_unknown_requests(http):
    answer = http.get("/v1/health", headers=BEARER).json()
    assert answer["status"] == "ok"
    assert answer["model"] == "geometric"
    refused(http.post("/v1/robots/r1/fly", headers=BEARER), 404, "not_found", "There is no fly")
    refused(http.get("/docs", headers=BEARER), 404, "not_found", "There is no GET /docs")
    refused(http.get(IMAGINE, headers=BEARER), 405, "method_not_allowed", "There is no GET")


def test_views_come_back_as_they_are_made_here(http, robot):
    headers, view = robot
    local = make_world()
    local.observe(view)
    answer = http.post(IMAGINE, content=imagine_body(path(3), seed=4), headers=headers | {REVISION: "1"})
    assert answer.status_code == 200
    frames = frames_of(answer.content)
    views = [parse_imagined(fields, arrays, 10**6) for fields, arrays in frames if fields["kind"] == "view"]
    expected = list(local.imagine(path(3), CAMERA, seed=4))
    assert [differences(a, b) for a, b in zip(views, expected, strict=True)] == [[], [], []]
    assert frames[-1][0] == {"kind": "end", "revision": 1}
    assert frames[0][0]["kind"] == "progress"


def test_paths_are_scored_as_they_are_here(http, robot):
    headers, view = robot
    local = make_world()
    local.observe(view)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 2, 3] = (0.0, 0.5, 1.0)
    aside = poses.copy()
    aside[:, 0, 3] = (0, 0.4, 0.8)
    paths, up = {"ahead": poses, "aside": aside}, np.array([0.0, -1.0, 0.0])
    arrays = {"path.0": poses, "path.1": aside, "up": up}
    fields = {"names": list(paths), "hypotheses": 1, "views": 2, "view_width": 32, "resolution": 0.2}
    answer = http.post("/v1/robots/r1/score_paths", content=pack(fields, arrays), headers=headers)
    assert answer.status_code == 200, answer.text
    scores = parse_scores(*unpack(answer.content))
    camera = view.camera
    small = camera.resized(32, 24)
    imagined = imagine_hypotheses(local, paths, small, seeds=range(1), views=2)
    robot_shape = RobotShape(0.2, 0.6, 0.1, 0.35)
    grid = world_grid(local, paths, hypotheses=imagined, robot=robot_shape, resolution=0.2, up=up)
    expected = score_paths(grid, paths, sensor=Sensor.of_camera(camera, 4.0))
    assert (scores.best, scores.reason, scores.hypotheses) == (expected.best, expected.reason, expected.hypotheses)
    for ours, theirs in zip(scores.scores, expected.scores, strict=True):
        assert differences(ours, theirs) == []


@pytest.mark.parametrize(
    ("body", "code", "sentence"),
    [
        (b"", "bad_request", "is no message (0 bytes)"),
        (b"\x80\x04pickled.", "bad_request", "is no message"),
        (struct.pack("<Q", 2**62) + b"{}", "bad_request", "is no message"),
        (struct.pack("<Q", 8) + b"notjson!", "bad_request", "is damaged"),
        (imagine_body()[:-9], "bad_request", "is damaged"),
        (imagine_body(arrays={}), "bad_request", "The array poses is missing"),
        (imagine_body(np.zeros((0, 4, 4))), "bad_request", "(0, 4, 4); at least one 4x4 pose was expected"),
        (imagine_body(np.zeros((2, 3, 4))), "bad_request", "at least one 4x4 pose was expected"),
        (imagine_body(np.full((1, 4, 4), np.nan)), "bad_request", "not finite"),
        (imagine_body(path(2).astype(np.float32)), "bad_request", "The array poses is float32"),
        (imagine_body(path(9)), "too_large", "9 views were asked for; at most 8"),
        (imagine_body(seed=-1), "bad_request", "The field seed is"),
        (imagine_body(seed=1.5), "bad_request", "a whole number from 0"),
        (imagine_body(remember="yes"), "bad_request", "true or false"),
        (imagine_body(clearance=float("nan")), "bad_request", "The field clearance"),
        (imagine_body(clearance=None), "bad_request", "The field clearance"),
        (imagine_body(prompt="a" * 4001), "bad_request", "The field prompt"),
        (imagine_body(camera=None), "bad_request", "The field camera is missing"),
        (imagine_body(camera=camera_fields(CAMERA) | {"width": 10**9}), "bad_request", "at most 100000 pixels"),
        (imagine_body(camera=camera_fields(CAMERA) | {"fx": 0}), "bad_request", "must be positive"),
        (imagine_body(camera=camera_fields(CAMERA) | {"fx": "1"}), "bad_request", "four numbers were expected"),
        (pack({}, {"fields2": np.zeros(1)}), "bad_request", "The array poses is missing"),
    ],
)  # fmt: skip
def test_bad_requests_to_imagine_are_a_sentence(http, robot, body, code, sentence):
    headers, _ = robot
    refused(http.post(IMAGINE, content=body, headers=headers), 413 if code == "too_large" else 400, code, sentence)


def bad_views():
    view = sights(1)[0]
    fields, arrays = view_message(view)
    png = arrays["image"]
    small = view_message(view.resized(24, 18))[1]
    imagined = view_message(dataclasses.replace(view, observed=np.zeros(view.depth.shape, bool)))
    negative = np.where(np.arange(48) == 5, 1, -1) * np.ones((36, 1))
    bomb = compress(np.zeros((2000, 2000), np.float32))
    plain = {name: array for name, array in arrays.items() if name != "depth_png"}
    return [
        (fields, arrays | {"image": png[:40]}, "is not a readable image"),
        (fields, arrays | {"image": png[:-30]}, "is damaged"),
        (fields, arrays | {"image": np.frombuffer(b"%!PS-Adobe-3.0 EPSF", np.uint8)}, "is not a readable image"),
        (fields, arrays | {"image": small["image"]}, "for a camera of 48x36"),
        (fields, arrays | {"image": png.astype(np.uint16)}, "The array image is uint16"),
        (fields, arrays | {"depth_png": small["depth_png"]}, "The depth has shape"),
        (fields, arrays | {"depth_png": png}, "pixel mode"),
        (fields, plain | {"depth": bomb}, "The depth has another size than its image"),
        (fields, plain | {"depth": np.zeros(5, np.uint8)}, "The depth is damaged"),
        (fields, plain | {"depth": compress(negative.astype(np.float32))}, "negative"),
        (fields, arrays | {"pose": np.full((4, 4), np.inf)}, "not a finite 4x4 matrix"),
        (fields, arrays | {"pose": np.eye(3)}, "not a finite 4x4 matrix"),
        (fields | {"stamp_ns": 2**63}, arrays, "The field stamp_ns"),
        (fields | {"metric": False}, arrays, "arbitrary"),
        (*imagined, "an image of a sensor was expected"),
        (fields, plain, "depth"),  # and this server has no depth estimator
    ]


@pytest.mark.parametrize("index", range(16))
def test_bad_observations_are_a_sentence_and_lose_nothing(http, robot, index):
    headers, view = robot
    fields, arrays, sentence = bad_views()[index]
    refused(http.post(OBSERVE, content=pack(fields, arrays), headers=headers), 400, "bad_request", sentence)
    # The memories are what they were: the same revision, and the next observation is remembered.
    answer = http.post(OBSERVE, content=pack(*view_message(view)), headers=headers | {REVISION: "1"})
    assert answer.status_code == 200
    assert answer.json()["revision"] == 2


def test_sessions_and_revisions_over_http(http, robot):
    headers, _ = robot
    refused(http.post(IMAGINE, content=imagine_body(), headers=BEARER), 400, "bad_request", "names no session")
    other = headers | {SESSION: "another"}
    refused(http.post(IMAGINE, content=imagine_body(), headers=other), 410, "session_lost", "Begin a new one")
    behind = headers | {REVISION: "7"}
    refused(http.post(IMAGINE, content=imagine_body(), headers=behind), 409, "out_of_step", "expects 7")
    wrong = headers | {REVISION: "-1"}
    refused(http.post(IMAGINE, content=imagine_body(), headers=wrong), 400, "bad_request", "a number was expected")
    refused(http.post("/v1/robots/..x/observe", headers=headers), 400, "bad_request", "The robot id")
    restore = "/v1/robots/r1/restore"
    refused(http.post(restore, content=b"no map", headers=headers), 400, "bad_request", "The map of the request is")
    body = pack({"settings": {"max_points": 10**9}})
    refused(http.post("/v1/robots/r2/reset", content=body, headers=BEARER), 400, "bad_request", "at most 50000")
    empty = http.post("/v1/robots/r3/reset", headers=BEARER).json()["session"]
    answer = http.post("/v1/robots/r3/imagine", content=imagine_body(), headers=BEARER | {SESSION: empty})
    refused(answer, 409, "no_observation", "Nothing was observed yet")
    body = pack({"names": ["a"]}, {"path.0": path(2)})
    answer = http.post("/v1/robots/r3/score_paths", content=body, headers=BEARER | {SESSION: empty})
    refused(answer, 409, "no_observation", "Nothing was observed yet")


@pytest.mark.parametrize(
    ("fields", "arrays", "sentence"),
    [
        ({}, {}, "no list of 1 to 1000 names"),
        ({"names": ["a", "a"]}, {}, "not all different"),
        ({"names": ["a"]}, {}, "The array path.0 is missing"),
        ({"names": ["a"]}, {"path.0": np.full((1, 4, 4), np.nan)}, "not finite"),
        ({"names": ["a"], "hypotheses": 99}, {"path.0": path(2)}, "The field hypotheses"),
        ({"names": ["a"], "resolution": 0}, {"path.0": path(2)}, "The field resolution"),
        (
            {"names": ["a"], "radius": 0.5},
            {"path.0": path(2)},
            "The field 'radius' is unknown; names, hypotheses, views",
        ),
        ({"names": ["a"], "max_step": 1.0}, {"path.0": path(2)}, "drives over 1 m, but is 0.6 m"),
    ],
)
def test_bad_paths_are_a_sentence(http, robot, fields, arrays, sentence):
    headers, _ = robot
    answer = http.post("/v1/robots/r1/score_paths", content=pack(fields, arrays), headers=headers)
    refused(answer, 400, "bad_request", sentence)


def test_sizes_are_checked_before_a_body_is_read(service, robot):
    limits = dataclasses.replace(LIMITS, max_body_bytes=1000, waiting_bytes=1500)
    app = make_app(service, digest_of(TOKEN), limits)
    read = []

    def body(count):
        for _ in range(count):
            read.append(1)
            yield bytes(100)

    with TestClient(app) as http:
        big = BEARER | {"Content-Length": "1001"}
        refused(http.post(OBSERVE, content=bytes(1001), headers=BEARER), 413, "too_large", "at most 1000 are accepted")
        refused(http.post(OBSERVE, content=body(11), headers=BEARER), 411, "length_required", "Content-Length")
        refused(http.post(OBSERVE, content=b"", headers=big), 413, "too_large", "The body has 1001 bytes")
        for _ in range(3):  # what was held is given back, also after an error
            refused(http.post(OBSERVE, content=bytes(999), headers=BEARER), 400, "bad_request", "names no session")


def test_a_full_queue_answers_429_with_a_time(service, http, robot, monkeypatch):
    headers, _ = robot
    monkeypatch.setattr(service.sessions, "_waiting", LIMITS.waiting)
    answer = http.post(IMAGINE, content=imagine_body(), headers=headers)
    refused(answer, 429, "busy", "wait already; try again in")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert json.loads(answer.content)["retry_after"] >= 1


def test_an_unexpected_error_tells_its_type_alone(service, http, robot, monkeypatch):
    headers, _ = robot

    def broken(*_):
        raise KeyError("/secret/path")

    monkeypatch.setattr("worldstereo_ros.serving.service.parse_camera", broken)
    answer = http.post(IMAGINE, content=imagine_body(), headers=headers)
    refused(answer, 500, "fault", "Unexpected error of the server: KeyError.")
    assert "secret" not in answer.text


# --- messages and tokens ---


def test_views_are_the_same_after_a_message():
    view = sights(1)[0]
    rng = np.random.default_rng(0)
    shape = view.depth.shape
    variants = [
        view,
        dataclasses.replace(view, depth=None, stamp_ns=-(2**62), metric=False),
        dataclasses.replace(view, depth=rng.normal(3, 1, shape).astype(np.float32)),
        dataclasses.replace(view, depth=np.where(rng.random(shape) < 0.5, np.nan, 70.0).astype(np.float32)),
        dataclasses.replace(
            view,
            observed=rng.random(shape) < 0.5,
            estimated=rng.random(shape) < 0.5,
            confidence=rng.random(shape).astype(np.float32),
            depth_confidence=rng.random(shape).astype(np.float32),
        ),
    ]
    for variant in variants:
        assert differences(parse_view(*unpack(pack(*view_message(variant))), 10**6), variant) == []
    assert len(pack(*view_message(view))) < view.image.nbytes + view.depth.nbytes


def test_scores_keep_what_json_has_not():
    names = ("pose_collision", "pose_clearance", "pose_imagined", "pose_unknown", "pose_gain", "pose_new_area")
    rows = {name: np.array([np.nan, 1], np.float32) for name in names}
    score = PathScore("a", 1.0, 0.5, np.inf, 0.0, 0.0, 3.0, 0.25, -1.0, 2, **rows)
    scores = PathScores([score, dataclasses.replace(score, name="b")], 1, "why", 3)
    back = parse_scores(*unpack(pack(*scores_message(scores))))
    assert [differences(a, b) for a, b in zip(back.scores, scores.scores, strict=True)] == [[], []]
    assert (back.best, back.reason, back.hypotheses) == (1, "why", 3)


@pytest.mark.parametrize("dtype", [np.bool_, np.float32])
@pytest.mark.parametrize("shape", [(7, 9), (1, 1)])
def test_numbers_of_pixels_are_compressed_without_loss(dtype, shape):
    array = (np.random.default_rng(1).normal(size=shape) > 0).astype(dtype)
    data = compress(array)
    back = decompress(data, dtype, shape, "It")
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable  # compiled loops take no other
    for other in ((7, 10), (6, 8), (200, 9)):
        with pytest.raises(InputError, match="has another size"):
            decompress(data, dtype, other, "It")


def test_token_files_are_checked(tmp_path, caplog):
    file = tmp_path / "token"
    with pytest.raises(InputError, match=r"does not exist\. Make one with"):
        read_token(file)
    for content in ("", "short", "a b" * 20, "ü" * 30, "x" * 5000):
        file.write_text(content)
        with pytest.raises(InputError, match="16 to 4096 printable ones of ASCII"):
            read_token(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_token(tmp_path)
    file.write_text(f"{TOKEN}\nmore\n")
    file.chmod(stat.S_IRUSR | stat.S_IRGRP)
    assert read_token(file) == TOKEN
    assert "chmod 600" in caplog.text
    assert is_valid(f"bearer {TOKEN}", digest_of(TOKEN))
    assert not is_valid(None, digest_of(TOKEN))


def test_urls_are_checked():
    assert parse_url("http://gpu.local:8000") == (False, "gpu.local", 8000, "")
    assert parse_url("https://[::1]/a/") == (True, "::1", 443, "/a")
    for url in ("", "gpu:8000", "ftp://a", "http://", "http://a:b", "http://a:99999", "http://u:p@a", "http://a?x=1"):
        with pytest.raises(WorldStereoError, match="HOST:PORT"):
            parse_url(url)


def test_who_waits_gets_a_sign_of_life(service, http, robot, monkeypatch):
    """A robot whose observation waits behind another robot's views knows that the server is there."""
    headers, view = robot
    monkeypatch.setattr("worldstereo_ros.serving.service.HEARTBEAT_S", 0.02)
    other = service.sessions.begin("other", MemorySettings(max_points=1000))
    release = threading.Event()
    running = service.sessions.submit("other", other.id, lambda session, request: release.wait(30))
    threading.Timer(0.3, release.set).start()
    accepting = headers | {"Accept": FRAMES}
    answer = http.post(OBSERVE, content=pack(*view_message(view)), headers=accepting)
    assert running.future.result(30)
    frames = frames_of(answer.content)
    assert [fields["kind"] for fields, _ in frames[:-1]] == ["progress"] * (len(frames) - 1)
    assert len(frames) > 2
    assert json.loads(frames[-1][1]["body"].tobytes())["revision"] == 2
    release.clear()
    running = service.sessions.submit("other", other.id, lambda session, request: release.wait(30))
    threading.Timer(0.3, release.set).start()
    answer = http.post(OBSERVE, content=pack({}), headers=accepting)  # an error that comes after signs of life
    assert frames_of(answer.content)[-1][0]["error"] == "bad_request"
    assert running.future.result(30)


class Lost:
    """What answers, lost before or after a first frame, as a process that was killed."""

    def __init__(self) -> None:
        self.frames, self.ended = 0, 0

    async def health(self):
        raise ServingError("unavailable", "It was lost.", retry_after=5)

    async def answer(self, call):
        try:
            for _ in range(self.frames):
                yield Part(frame({"kind": "progress", "stage": "waiting", "step": 0, "steps": 1}), content_type=FRAMES)
            raise ServingError("unavailable", "It was lost.", retry_after=5)
        finally:
            self.ended += 1


def test_what_answers_may_be_lost_at_any_time():
    lost = Lost()
    app = make_app(lost, digest_of(TOKEN), dataclasses.replace(LIMITS, waiting_bytes=1500))
    with TestClient(app) as http:
        refused(http.get("/v1/health", headers=BEARER), 503, "unavailable", "It was lost.")
        for index, lost.frames in enumerate((0, 0, 2, 1)):  # the bytes of the bodies are given back each time
            answer = http.post(IMAGINE, content=bytes(1000), headers=BEARER)
            assert lost.ended == index + 1
            if lost.frames:
                assert answer.status_code == 200
                *before, (last, _) = frames_of(answer.content)
                assert len(before) == lost.frames
                assert last == {"kind": "error", "error": "unavailable", "message": "It was lost.", "retry_after": 5.0}
            else:
                refused(answer, 503, "unavailable", "It was lost.")
                assert answer.headers["retry-after"] == "5"
