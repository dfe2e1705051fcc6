"""The HTTP interface, an ASGI application: token, routes, and sizes; what a request means is the service's matter.

| request | body | answer |
| --- | --- | --- |
| `POST /v1/robots/{id}/reset` | settings of the memories, or nothing | JSON: session, revision, points, views, model |
| `POST /v1/robots/{id}/observe` | a view | JSON as above |
| `POST /v1/robots/{id}/restore` | a saved map | JSON as above |
| `POST /v1/robots/{id}/imagine` | poses, camera, seed, ... | frames: progress, views, end or error |
| `POST /v1/robots/{id}/score_paths` | paths, robot, hypotheses, ... | scores |
| `GET /v1/health` | | JSON: model, robots, waiting requests |

Each needs `Authorization: Bearer TOKEN`; each POST but reset also `Worldstereo-Session`, the session that reset
answered. `Worldstereo-Revision` names what the robot believes its memories to be, so that no answer is about others. An
error is JSON: `error`, a code (`serving.errors`), `message`, a sentence, and `retry_after` in seconds. Who accepts
`application/x-worldstereo-frames` gets a frame each second while an answer is waited for, then one with the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from worldstereo_ros.serving.calls import FRAMES, OPERATIONS, Call, Part, as_serving_error, failure, frame
from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.limits import ServingLimits
from worldstereo_ros.serving.tokens import is_valid

SESSION, REVISION = "Worldstereo-Session", "Worldstereo-Revision"
BODY_TIMEOUT_S = 120.0  # in which a body must arrive
RETRY_S = 2.0


class Answers(Protocol):
    """What answers requests: a `RobotService`, or several of them in other processes."""

    async def health(self) -> dict[str, Any]:
        """What it does at the moment."""
        ...

    def answer(self, call: Call) -> AsyncGenerator[Part, None]:
        """The parts of an answer."""
        ...


def make_app(answers: Answers, token_digest: str, limits: ServingLimits | None = None) -> Starlette:
    """Makes the application.

    Args:
        answers: answers the requests.
        token_digest: `tokens.digest_of` the token that requests must show.
        limits: sizes of bodies, of one and of all that are held at once.
    """
    front = _Front(answers, token_digest, limits or ServingLimits())
    routes = [
        Route("/v1/health", front.health, methods=["GET"]),
        Route("/v1/robots/{robot}/{operation}", front.robot, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: front.on_http_error, Exception: front.on_error})


class _Front:
    """Takes requests apart and puts answers together."""

    def __init__(self, answers: Answers, token_digest: str, limits: ServingLimits) -> None:
        self._answers, self._digest, self._limits = answers, token_digest, limits
        self._held = 0  # bytes of the bodies that are read or answered

    async def health(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        try:
            return _json({"status": "ok", **await self._answers.health()})
        except Exception as error:
            return _response(failure(error))

    async def robot(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        size = 0
        try:
            size = self._reserve(request)
            call = await self._read(request, size)
        except Exception as error:
            self._held -= size
            return _response(failure(error))
        # From here on the parts give the bytes back, when they end.
        parts = self._parts(call, size)
        first = await _unless_gone(parts, request)
        if first is None or first.status != 200:
            await parts.aclose()
            return Response(status_code=499) if first is None else _response(first)
        return _response(first, parts)

    async def _parts(self, call: Call, size: int) -> AsyncGenerator[Part, None]:
        frames = False
        try:
            async with aclosing(self._answers.answer(call)) as parts:
                async for part in parts:
                    frames = frames or part.content_type == FRAMES
                    yield part
        except Exception as error:  # what answers is lost
            known = as_serving_error(error)
            yield Part(frame({"kind": "error", **known.as_fields()})) if frames else failure(known)
        finally:
            self._held -= size

    def _refusal(self, request: Request) -> Response | None:
        if is_valid(request.headers.get("authorization"), self._digest):
            return None
        message = "The token is missing or wrong; the header `Authorization: Bearer TOKEN` was expected."
        part = failure(ServingError("unauthorized", message))
        return _response(Part(part.body, part.status, part.content_type, {"WWW-Authenticate": "Bearer"}))

    def _reserve(self, request: Request) -> int:
        """Checks the size of a body before it is read, and that of all that are held. Raises ServingError."""
        operation = request.path_params["operation"]
        if operation not in OPERATIONS:
            raise ServingError(
                "not_found", f"There is no {operation[:40]}; one of {', '.join(OPERATIONS)} was expected."
            )
        length, limits = request.headers.get("content-length", ""), self._limits
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise ServingError("length_required", "The header Content-Length with the size of the body was expected.")
        size = int(length)
        if size > limits.max_body_bytes:
            raise ServingError("too_large", f"The body has {size} bytes; at most {limits.max_body_bytes} are accepted.")
        if self._held + size > limits.waiting_bytes:
            message = f"Requests of {self._held // 10**6} MB are being answered; try again in {RETRY_S:g} s."
            raise ServingError("busy", message, retry_after=RETRY_S)
        self._held += size
        return size

    async def _read(self, request: Request, size: int) -> Call:
        revision = request.headers.get(REVISION, "")
        if revision and not (revision.isascii() and revision.isdigit() and len(revision) < 16):
            raise ServingError("bad_request", f"The header {REVISION} is {revision[:40]!r}; a number was expected.")
        body = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                if len(body) + len(chunk) > size:
                    raise ServingError("bad_request", "The body is longer than its Content-Length.")
                body.extend(chunk)

        try:
            await asyncio.wait_for(read(), BODY_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise ServingError("timeout", f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None
        except ClientDisconnect:
            raise ServingError("bad_request", "The connection ended within the body.") from None
        if len(body) != size:
            raise ServingError("bad_request", f"The body has {len(body)} bytes; its Content-Length is {size}.")
        return Call(
            request.path_params["operation"],
            request.path_params["robot"],
            request.headers.get(SESSION, "")[:200],
            int(revision) if revision else None,
            bytes(body),
            FRAMES in request.headers.get("accept", ""),
        )

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Unknown paths and methods."""
        if (refusal := self._refusal(request)) is not None:
            return refusal
        status = getattr(error, "status_code", 404)
        code = "method_not_allowed" if status == 405 else "not_found"
        message = f"There is no {request.method} {request.url.path[:100]}. The guide on a fleet lists the requests."
        return _response(failure(ServingError(code, message)))

    async def on_error(self, request: Request, error: Exception) -> Response:
        """A bug."""
        return _response(failure(error))


async def _unless_gone(parts: AsyncIterator[Part], request: Request) -> Part | None:
    """The first part; None if the client goes away before there is one, so that nothing is computed in vain."""
    first = asyncio.ensure_future(anext(parts))
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({first, gone}, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            return first.result()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return None
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _response(first: Part, more: AsyncGenerator[Part, None] | None = None) -> Response:
    if more is None:
        return Response(first.body, first.status, first.headers, first.content_type)

    async def bodies() -> AsyncIterator[bytes]:
        async with aclosing(more) as parts:
            yield first.body
            async for part in parts:
                yield part.body

    return StreamingResponse(bodies(), first.status, first.headers, first.content_type)


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), media_type="application/json")
