"""Answers messages of robots: what each request means, whatever brings it here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import CancelledError as FutureCancelledError
from pathlib import Path
from typing import Any

import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.archive import ArchiveError
from worldstereo_ros.memory.path_clearance import PATH_CLEARANCE_M
from worldstereo_ros.serving.calls import FRAMES, MESSAGE, Call, Part, as_serving_error, failure, frame
from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import MemorySettings, ServingLimits
from worldstereo_ros.serving.messages import array_of, check_known, number, pack, text, truth, unpack, whole
from worldstereo_ros.serving.sessions import Request, RobotSessions, Session
from worldstereo_ros.serving.view_messages import parse_camera, parse_view, scores_message, view_message
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0  # between two frames of a request that waits or computes, so that the robot sees that it is alive
MAX_SEED = 2**63 - 1
_WAITING = frame({"kind": "progress", "stage": "waiting", "step": 0, "steps": 1})


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
                async with contextlib.aclosing(self._one(handlers[call.operation](call), call.frames)) as parts:
                    async for part in parts:
                        yield part
                return
        except Exception as error:
            yield failure(error)
            return
        async with contextlib.aclosing(self._stream(call, work)) as parts:
            async for part in parts:
                yield part

    async def _one(self, answer: Coroutine[Any, Any, Part], frames: bool) -> AsyncGenerator[Part, None]:
        """One answer; as frames with a sign of life each second until it is there, if it takes longer than that."""
        task = asyncio.ensure_future(answer)
        began = False
        try:
            while frames and not (await asyncio.wait({task}, timeout=HEARTBEAT_S))[0]:
                began = True
                yield Part(_WAITING, content_type=FRAMES)
            if not began:
                yield await task
                return
            try:
                part = await task
            except Exception as error:
                yield Part(frame({"kind": "error", **as_serving_error(error).as_fields()}))
                return
            yield Part(frame({"kind": "answer"}, {"body": np.frombuffer(part.body, np.uint8)}))
        finally:
            task.cancel()

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
        from worldstereo_ros.serving.scoring import parse_scoring

        scoring = parse_scoring(call.body, self.limits)

        def work(session: Session, request: Request) -> Part:
            assert session.world is not None
            fields, arrays = scores_message(scoring(session.world, _checking(request)))
            return Part(pack({**fields, "revision": session.revision}, arrays), content_type=MESSAGE)

        return await self._once(call, work)

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

    # --- imagining: frames as they are made ---

    def _imagining(self, call: Call) -> Callable[[Session, Request, Callable[[bytes], None]], None]:
        fields, arrays = unpack(call.body)
        check_known(fields, ("camera", "prompt", "seed", "remember", "clearance"))
        poses = array_of(arrays, "poses", np.float64, 3)
        self.limits.check_poses(len(poses))
        self.limits.check_views(len(poses))
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
            with contextlib.suppress(RuntimeError):  # the loop was closed; no client listens
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
                    data = _WAITING
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
    """An `on_step` that ends the request if its client no longer waits, or its time is up."""
    return lambda stage, step, steps: request.check()
