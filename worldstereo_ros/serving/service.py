"""Answers messages of robots: what each request means, whatever brings it here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import tempfile
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.image_checks import ImageError
from worldstereo_ros.memory.archive import ArchiveError
from worldstereo_ros.memory.path_clearance import PATH_CLEARANCE_M
from worldstereo_ros.pipelines.base import Cancelled, ModelError
from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import MemorySettings, ServingLimits
from worldstereo_ros.serving.messages import array_of, number, pack, text, truth, unpack, whole
from worldstereo_ros.serving.sessions import Request, RobotSessions, Session
from worldstereo_ros.serving.view_messages import parse_camera, parse_view, scores_message, view_message
from worldstereo_ros.utils.errors import InputError, WorldStereoError, first_line
from worldstereo_ros.world import EmptyMemoryError, WorldModel

logger = logging.getLogger(__name__)

JSON, MESSAGE, FRAMES = "application/json", "application/x-safetensors", "application/x-worldstereo-frames"
HEARTBEAT_S = 1.0  # between two frames of a request that waits or computes, so that the robot sees that it is alive
OPERATIONS = ("reset", "restore", "observe", "imagine", "score_paths")
MAX_SEED = 2**63 - 1
MAX_HYPOTHESES = 32
MAX_CELL_M = 10.0


@dataclass(frozen=True)
class Call:
    """A request as it came.

    Attributes:
        operation: one of `OPERATIONS`, or health.
        robot: id of the robot. session: of its session; "" where none was named.
        revision: what the robot believes the memories to be; None = not said.
        body: a message of `serving.messages`; of restore a saved map.
    """

    operation: str
    robot: str = ""
    session: str = ""
    revision: int | None = None
    body: bytes = b""


@dataclass(frozen=True)
class Part:
    """A part of an answer. The first one has the status and the type of the content."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def frame(fields: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> bytes:
    """A message with its length before it, so that several follow each other."""
    body = pack(fields, arrays)
    return struct.pack("<Q", len(body)) + body


def failure(error: BaseException) -> Part:
    """The answer that says why there is no other."""
    from json import dumps

    known = as_serving_error(error)
    headers = {"Retry-After": f"{max(1, round(known.retry_after))}"} if known.retry_after else {}
    return Part(dumps(known.as_fields()).encode(), known.status, JSON, headers)


def as_serving_error(error: BaseException) -> ServingError:
    """The code and the sentence of an error; of an unexpected one its type alone, the log has the rest."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, EmptyMemoryError):
        return ServingError("no_observation", "Nothing was observed yet by this robot. Send observations first.")
    if isinstance(error, InputError | ImageError | ArchiveError):
        return ServingError("bad_request", str(error))
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        reason = first_line(error)
        return ServingError("model_error", f"The server ran out of memory ({reason}). Ask for fewer or smaller views.")
    if isinstance(error, ModelError):
        return ServingError("model_error", f"The model of the server failed: {error}")
    if isinstance(error, Cancelled | FutureCancelledError):
        return ServingError("timeout", "The request was given up.")
    if isinstance(error, WorldStereoError):
        return ServingError("bad_request", str(error))
    logger.error("Unexpected error in a request.", exc_info=error)
    return ServingError("fault", f"Unexpected error of the server: {type(error).__name__}. Its log has the rest.")


class RobotService:
    """Answers the requests of robots in this process.

    Args:
        make_world: makes a world model with empty memories of some settings; all share one model.
        limits: what is accepted.
        model: name of the model, and its `clip_length`, which answers tell.
    """

    def __init__(
        self,
        make_world: Callable[[MemorySettings], WorldModel],
        limits: ServingLimits | None = None,
        *,
        model: str = "",
        clip_length: int = 1,
    ) -> None:
        self.limits, self.model, self.clip_length = limits or ServingLimits(), model, clip_length
        self.sessions = RobotSessions(make_world, self.limits)

    def close(self) -> None:
        """Ends all sessions."""
        self.sessions.stop()

    async def health(self) -> dict[str, Any]:
        """What the service does at the moment."""
        return {"model": self.model, **self.sessions.status}

    async def answer(self, call: Call) -> AsyncGenerator[Part, None]:
        """Answers a request with one part, or with frames as they are made. Never raises but on cancellation."""
        try:
            if call.operation == "imagine":
                work = self._imagining(call)
            else:
                handlers = {
                    "reset": self._reset,
                    "restore": self._restoring,
                    "observe": self._observing,
                    "score_paths": self._scoring,
                }
                if call.operation not in handlers:
                    raise ServingError("not_found", f"The operation '{call.operation[:40]}' is unknown.")
                yield await handlers[call.operation](call)
                return
        except Exception as error:
            yield failure(error)
            return
        async with contextlib.aclosing(self._stream(call, work)) as parts:
            async for part in parts:
                yield part

    # --- operations with one answer ---

    async def _reset(self, call: Call) -> Part:
        fields = unpack(call.body)[0] if call.body else {}
        settings = fields.get("settings", {})
        if not isinstance(settings, dict):
            raise InputError("The field settings is no object of names and numbers.")
        session = self.sessions.begin(call.robot, MemorySettings.parse(settings, self.limits))
        return self._state(session)

    async def _observing(self, call: Call) -> Part:
        def work(session: Session, request: Request) -> Part:
            assert session.world is not None
            fields, arrays = unpack(call.body)
            view: View = parse_view(fields, arrays, self.limits.max_image_pixels)
            # The revision changes first: a fault in the middle must not look like memories in step.
            session.revision += 1
            try:
                session.world.observe(view)
            except InputError:  # the memories are as they were
                session.revision -= 1
                raise
            return self._state(session)

        return await self._once(call, work)

    async def _restoring(self, call: Call) -> Part:
        def work(session: Session, request: Request) -> Part:
            world = session.world
            assert world is not None
            with tempfile.TemporaryDirectory(prefix="worldstereo_") as folder:
                path = Path(folder) / "memories.wsmap"
                path.write_bytes(call.body)
                try:
                    world.load(path)
                except ArchiveError as error:
                    raise InputError(str(error).replace(str(path), "of the request")) from None
            session.revision += 1
            return self._state(session)

        return await self._once(call, work)

    async def _scoring(self, call: Call) -> Part:
        work = self._score_work(call)
        return await self._once(call, work)

    def _score_work(self, call: Call) -> Callable[[Session, Request], Part]:
        from worldstereo_ros.planning import RobotShape, imagine_hypotheses, score_paths, world_grid
        from worldstereo_ros.planning.visibility import Sensor

        fields, arrays = unpack(call.body)
        paths = self._paths(fields, arrays)
        hypotheses = whole(fields, "hypotheses", 0, 0, MAX_HYPOTHESES)
        views, width = whole(fields, "views", 8, 1, 1000), whole(fields, "view_width", 160, 16, 4096)
        self._check_count(hypotheses * views * len(paths))
        prompt = text(fields, "prompt")
        robot = RobotShape(
            number(fields, "robot_radius", 0.2, 0.01, 10),
            number(fields, "robot_height", 0.6, 0.05, 10),
            number(fields, "max_step", 0.1, 0.001, 2),
            number(fields, "max_slope", 0.35, 0.01, 1.5),
        )
        sensor_range = number(fields, "sensor_range", 4, 0.1, 100)
        grid_settings: dict[str, Any] = {
            "resolution": number(fields, "resolution", 0.1, 0.02, MAX_CELL_M),
            "max_range": number(fields, "max_range", 8, 0.5, 100),
            "floor": None if fields.get("floor") is None else number(fields, "floor", None, -1e6, 1e6),
            "up": array_of(arrays, "up", np.float64, 1) if "up" in arrays else None,
        }

        def work(session: Session, request: Request) -> Part:
            world = session.world
            assert world is not None
            newest = world.newest_observation
            if newest is None:
                raise EmptyMemoryError("Nothing was observed yet.")
            camera = newest.camera
            across = min(width, camera.width)
            small = camera.resized(across, max(1, round(camera.height * across / camera.width)))
            seeds = range(hypotheses)
            on_step = _checking(request)
            imagined = (
                imagine_hypotheses(world, paths, small, seeds=seeds, views=views, prompt=prompt, on_step=on_step)
                if hypotheses
                else []
            )
            request.check()
            grid = world_grid(world, paths, hypotheses=imagined, robot=robot, **grid_settings)
            request.check()
            scores = score_paths(grid, paths, sensor=Sensor.of_camera(camera, sensor_range))
            fields, arrays = scores_message(scores)
            return Part(pack({**fields, "revision": session.revision}, arrays), content_type=MESSAGE)

        return work

    def _paths(self, fields: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = fields.get("names")
        if not isinstance(names, list) or not 1 <= len(names) <= 1000 or not all(isinstance(n, str) for n in names):
            raise InputError("The field names is no list of 1 to 1000 names of paths.")
        if len(set(names)) != len(names) or max(map(len, names)) > 200:
            raise InputError("The names of the paths are not all different, or longer than 200 characters.")
        paths = {name: array_of(arrays, f"path.{i}", np.float64, 3) for i, name in enumerate(names)}
        self._check_poses(sum(len(path) for path in paths.values()))
        return paths

    async def _once(self, call: Call, work: Callable[[Session, Request], Part]) -> Part:
        request = self._submit(call, work)
        try:
            return await asyncio.wrap_future(request.future)
        finally:
            request.cancel()  # of a client that went away; one that is done stays so

    def _submit(self, call: Call, work: Callable[[Session, Request], Any]) -> Request:
        if not call.session:
            raise InputError("The request names no session; begin one with reset, and send its id with each request.")
        return self.sessions.submit(call.robot, call.session, work, revision=call.revision, size=len(call.body))

    def _state(self, session: Session) -> Part:
        from json import dumps

        world = session.world
        return Part(
            dumps({
                "session": session.id,
                "revision": session.revision,
                "points": 0 if world is None else len(world.cloud),
                "views": 0 if world is None else len(world.bank.views),
                "model": self.model,
                "clip_length": self.clip_length,
            }).encode()
        )  # fmt: skip

    def _check_poses(self, count: int) -> None:
        if count > self.limits.max_poses:
            raise ServingError("too_large", f"There are {count} poses; at most {self.limits.max_poses} are accepted.")

    def _check_count(self, views: int) -> None:
        if views > self.limits.max_views:
            raise ServingError(
                "too_large", f"{views} views were asked for; at most {self.limits.max_views} are accepted at once."
            )

    # --- imagining: frames as they are made ---

    def _imagining(self, call: Call) -> Callable[[Session, Request, Callable[[bytes], None]], None]:
        fields, arrays = unpack(call.body)
        poses = array_of(arrays, "poses", np.float64, 3)
        self._check_poses(len(poses))
        self._check_count(len(poses))
        camera = parse_camera(fields, self.limits.max_image_pixels)
        if camera.width * camera.height * len(poses) > self.limits.max_job_pixels:
            raise ServingError(
                "too_large",
                f"{len(poses)} views of {camera.width}x{camera.height} were asked for; at most "
                f"{self.limits.max_job_pixels} pixels are accepted at once.",
            )
        remember, prompt = truth(fields, "remember", False), text(fields, "prompt")
        seed = whole(fields, "seed", 0, 0, MAX_SEED)
        clearance = number(fields, "clearance", PATH_CLEARANCE_M, 0.0, 1e6)

        def work(session: Session, request: Request, send: Callable[[bytes], None]) -> None:
            world = session.world
            assert world is not None
            check = _checking(request)

            def on_step(stage: str, step: int, steps: int) -> None:
                check(stage, step, steps)
                send(frame({"kind": "progress", "stage": stage, "step": step, "steps": steps}))

            views = world.imagine(
                poses, camera, prompt=prompt, seed=seed, remember=remember, on_step=on_step, clearance=clearance
            )
            # A robot that does not hear the end of this request must not believe that it is in step.
            session.revision += remember
            for view in views:
                request.check()
                fields, arrays = view_message(view)
                send(frame({"kind": "view", **fields}, arrays))
            send(frame({"kind": "end", "revision": session.revision}))

        return work

    async def _stream(
        self, call: Call, work: Callable[[Session, Request, Callable[[bytes], None]], None]
    ) -> AsyncGenerator[Part, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[bytes | None] = asyncio.Queue()

        def send(data: bytes | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
                loop.call_soon_threadsafe(events.put_nowait, data)

        def run(session: Session, request: Request) -> None:
            work(session, request, send)

        try:
            request = self._submit(call, run)
        except Exception as error:
            yield failure(error)
            return
        request.future.add_done_callback(lambda _: send(None))
        began = False
        try:
            while True:
                try:
                    data = await asyncio.wait_for(events.get(), HEARTBEAT_S)
                except asyncio.TimeoutError:
                    data = frame({"kind": "progress", "stage": "waiting", "step": 0, "steps": 1})
                if data is not None:
                    yield Part(data, content_type=FRAMES)
                    began = True
                    continue
                cancelled = request.future.cancelled()
                problem = FutureCancelledError() if cancelled else request.future.exception()
                if problem is not None:
                    known = as_serving_error(problem)
                    yield Part(frame({"kind": "error", **known.as_fields()})) if began else failure(known)
                return
        finally:
            request.cancel()


def _checking(request: Request) -> Callable[[str, int, int], None]:
    """An `on_step` that ends the request where nobody waits for it, or its time is up."""
    return lambda stage, step, steps: request.check()
