"""The robot's side: requests over HTTP with the standard library, one connection that is kept open."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import struct
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.planning.path_scores import PathScores
from worldstereo_ros.serving.addresses import check_robot, parse_url
from worldstereo_ros.serving.errors import STATUS, ServingError
from worldstereo_ros.serving.limits import MemorySettings
from worldstereo_ros.serving.messages import array_of, pack, unpack
from worldstereo_ros.serving.view_messages import camera_fields, parse_imagined, parse_scores, view_message
from worldstereo_ros.utils.errors import InputError, WorldStereoError, first_line

SESSION, REVISION, FRAMES = "Worldstereo-Session", "Worldstereo-Revision", "application/x-worldstereo-frames"
MAX_ANSWER_BYTES = 64 * 10**6  # of an answer, and of a frame
MAX_PIXELS = 64_000_000
BYTES_A_PIXEL = 24  # of a view, when nothing in it can be compressed
DEFAULT_TIMEOUT_S = 10.0

OnWait = Callable[[], None]


class UnreachableError(WorldStereoError, ConnectionError):
    """The server cannot be reached, was lost within a request, or does not speak this protocol."""


@dataclass(frozen=True)
class Step:
    """Progress of a request to imagine.

    Attributes:
        stage, step, steps: as of `pipelines.base.OnStep`; the stage is "waiting" while others are served.
    """

    stage: str
    step: int
    steps: int


class ServeClient:
    """Requests of one robot.

    Not thread-safe: use it from one thread at a time.

    Args:
        url: of the server, such as http://gpu.local:8000.
        token: that it expects.
        robot: id of this robot, see `serving.addresses.check_robot`.
        timeout: seconds without any byte from the server after which it counts as unreachable. The server gives a sign
            of life each second.

    Attributes:
        session: id of the session; "" before `reset`.
        revision: number of changes of the memories on the server.
        model, clip_length: name of the model of the server, and views of one of its clips; "" and 1 before `reset`.

    Raises:
        InputError: the URL, the token or the id is invalid.
    """

    def __init__(self, url: str, token: str, robot: str, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        self.url, self._token, self.robot, self.timeout = url, token.strip(), check_robot(robot), timeout
        if not self._token.isascii() or not self._token.isprintable():
            raise InputError(
                "The token has a character that is no printable ASCII; the first line of its file was expected."
            )
        self._secure, self._host, self._port, self._prefix = parse_url(url)
        self._connection: http.client.HTTPConnection | None = None
        self.session, self.revision, self.model, self.clip_length = "", 0, "", 1

    # --- requests; each raises ServingError for an answer that is an error, and UnreachableError ---

    def health(self) -> dict[str, Any]:
        """What the server does at the moment."""
        return _as_json(self._request("GET", "/v1/health"))

    def reset(self, settings: MemorySettings | None = None) -> None:
        """Begins a session with empty memories of these settings."""
        body = pack({"settings": settings.as_fields()} if settings else {})
        answer = _as_json(self._request("POST", self._path("reset"), body))
        session, model, length = (answer.get(name) for name in ("session", "model", "clip_length"))
        if not isinstance(session, str) or not isinstance(model, str) or not isinstance(length, int) or length < 1:
            raise UnreachableError(f"The server {self.url} answered a reset without a session.")
        self.session, self.model, self.clip_length = session, model, length
        self._keep_revision(answer)

    def observe(self, view: View, *, on_wait: OnWait | None = None) -> None:
        """Remembers a view.

        Args:
            view: an observation.
            on_wait: called each second while other robots are served; what it raises ends the request.
        """
        body = pack(*view_message(view))
        self._keep_revision(_as_json(self._request("POST", self._path("observe"), body, on_wait)))

    def restore(self, archive: bytes, *, on_wait: OnWait | None = None) -> None:
        """Replaces the memories by those of a saved map; `on_wait` as of `observe`."""
        self._keep_revision(_as_json(self._request("POST", self._path("restore"), archive, on_wait)))

    def score_paths(self, paths: dict[str, np.ndarray], *, up: np.ndarray | None = None, **options: Any) -> PathScores:
        """Scores paths (N, 4, 4) by name.

        Args:
            paths: world_from_camera of the robot's camera along each path.
            up: (3,) direction up in the world.
            options: hypotheses, views, view_width, prompt, robot_radius, robot_height, max_step, max_slope,
                sensor_range, resolution, max_range, floor; see `worldstereo score`.
        """
        arrays = {f"path.{i}": np.asarray(path, np.float64) for i, path in enumerate(paths.values())}
        if up is not None:
            arrays["up"] = np.asarray(up, np.float64)
        body = pack({"names": list(paths), **options}, arrays)
        return parse_scores(*unpack(self._request("POST", self._path("score_paths"), body), "The answer"))

    def imagine(
        self,
        poses: np.ndarray,
        camera: Camera,
        *,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        clearance: float | None = None,
    ) -> Iterator[Step | ImaginedView]:
        """Imagines views; yields steps and views as they come. See `WorldModel.imagine`.

        Closing the iterator ends the work on the server.
        """
        fields: dict[str, Any] = {
            "camera": camera_fields(camera),
            "prompt": prompt,
            "seed": seed,
            "remember": remember,
        }
        if clearance is not None:
            fields["clearance"] = clearance
        body = pack(fields, {"poses": np.asarray(poses, np.float64)})
        most = MAX_ANSWER_BYTES + BYTES_A_PIXEL * camera.width * camera.height
        response = self._open("POST", self._path("imagine"), body)
        ended = False
        try:
            while not ended:
                fields, arrays = unpack(self._read_frame(response, most), "The answer")
                kind = fields.get("kind")
                if kind == "view":
                    yield parse_imagined(fields, arrays, MAX_PIXELS)
                elif kind == "progress":
                    yield Step(str(fields.get("stage")), int(fields.get("step", 0)), int(fields.get("steps", 1)))
                elif kind == "error":
                    raise _error_of(fields)
                elif kind == "end":
                    self._keep_revision(fields)
                    ended = True
                else:
                    raise UnreachableError(f"The server {self.url} sent an unknown frame {str(kind)[:40]!r}.")
            _take_all(response)
        except (OSError, http.client.HTTPException, InputError) as error:
            if isinstance(error, UnreachableError):
                raise
            raise UnreachableError(f"{self._lost()} ({_reason(error)}).") from None
        finally:
            if not ended:
                self.close()

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- HTTP ---

    def _path(self, operation: str) -> str:
        return f"/v1/robots/{urllib.parse.quote(self.robot, safe='')}/{operation}"

    def _request(self, method: str, path: str, body: bytes = b"", on_wait: OnWait | None = None) -> bytes:
        response = self._open(method, path, body)
        complete = False
        try:
            if response.headers.get_content_type() == FRAMES:
                answer = self._wait_for_answer(response, on_wait)
            else:
                answer = _read_answer(response)
            complete = True
            return answer
        except (OSError, http.client.HTTPException, InputError) as error:
            if isinstance(error, UnreachableError):
                raise
            raise UnreachableError(f"{self._lost()} ({_reason(error)}).") from None
        finally:
            if not complete:
                self.close()

    def _wait_for_answer(self, response: http.client.HTTPResponse, on_wait: OnWait | None) -> bytes:
        """The answer after signs of life."""
        while True:
            fields, arrays = unpack(self._read_frame(response, MAX_ANSWER_BYTES), "The answer")
            if fields.get("kind") == "answer":
                _take_all(response)
                return array_of(arrays, "body", np.uint8, 1).tobytes()
            if fields.get("kind") == "error":
                raise _error_of(fields)
            if on_wait is not None:
                on_wait()

    def _open(self, method: str, path: str, body: bytes) -> http.client.HTTPResponse:
        """Sends a request; the response has status 200, and a body to be read."""
        headers = {"Authorization": f"Bearer {self._token}", "Accept": f"{FRAMES}, */*"}
        if self.session and not path.endswith("/reset"):
            headers |= {SESSION: self.session, REVISION: str(self.revision)}
        for attempt in (0, 1):
            kept = self._connection is not None
            try:
                connection = self._connect()
                with contextlib.suppress(BrokenPipeError):  # a server may refuse a body before it has read it
                    connection.request(method, self._prefix + path, body or None, headers)
                response = connection.getresponse()
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A server closes connections that were idle; a request that it never saw may be sent again, and one
                # that it did see it refuses, as the revision has changed.
                stale = isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError)
                if kept and stale and attempt == 0:
                    continue
                raise UnreachableError(f"The server {self.url} cannot be reached ({_reason(error)}).") from None
        if response.status == 200:
            return response
        try:
            fields = json.loads(_read_answer(response))
        except (OSError, http.client.HTTPException, ValueError):
            self.close()
            fields = None
        if not isinstance(fields, dict) or "error" not in fields:
            raise UnreachableError(f"{self.url} answered with status {response.status}; is it a worldstereo server?")
        raise _error_of(fields)

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._secure:
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self.timeout, context=context
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=self.timeout)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._connection

    def _read_frame(self, response: http.client.HTTPResponse, most: int) -> bytes:
        size = struct.unpack("<Q", _read_exactly(response, 8))[0]
        if size > most:
            raise UnreachableError(f"The server {self.url} announced {size} bytes; at most {most} were expected.")
        return _read_exactly(response, size)

    def _keep_revision(self, fields: dict[str, Any]) -> None:
        revision = fields.get("revision")
        if not isinstance(revision, int):
            raise UnreachableError(f"The server {self.url} answered without a revision of the memories.")
        self.revision = revision

    def _lost(self) -> str:
        return f"The connection to the server {self.url} was lost"


def _read_exactly(response: http.client.HTTPResponse, count: int) -> bytes:
    chunks: list[bytes] = []
    missing = count
    while missing:
        chunk = response.read(min(missing, 1 << 20))
        if not chunk:
            raise http.client.IncompleteRead(b"".join(chunks), missing)
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)


def _read_answer(response: http.client.HTTPResponse) -> bytes:
    body = response.read(MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise http.client.HTTPException(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    _take_all(response)
    return body


def _take_all(response: http.client.HTTPResponse) -> None:
    """Reads the end of an answer, so that the connection can be used again."""
    if response.read(1):
        raise http.client.HTTPException("the answer has bytes after its end")


def _as_json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UnreachableError("The server answered with what is no JSON object.")
    return fields


def _error_of(fields: dict[str, Any]) -> ServingError:
    code, retry = fields.get("error"), fields.get("retry_after", 0)
    number = float(retry) if isinstance(retry, int | float) and 0 <= retry < 1e6 else 0.0
    return ServingError(code if code in STATUS else "fault", str(fields.get("message", ""))[:1000], retry_after=number)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or first_line(error)
