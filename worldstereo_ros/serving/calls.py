"""Requests and answers as they pass between the HTTP interface and what answers. Imports nothing slow."""

from __future__ import annotations

import json
import logging
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.serving.messages import pack
from worldstereo_ros.utils.errors import InputError, WorldStereoError, first_line

logger = logging.getLogger(__name__)

JSON, MESSAGE, FRAMES = "application/json", "application/x-safetensors", "application/x-worldstereo-frames"
OPERATIONS = ("reset", "restore", "observe", "imagine", "score_paths")


@dataclass(frozen=True)
class Call:
    """A request as it came.

    Attributes:
        operation: one of `OPERATIONS`, or health.
        robot: id of the robot. session: of its session; "" where none was named.
        revision: what the robot believes the memories to be; None = not said.
        body: a message of `serving.messages`; of restore a saved map.
        frames: the robot takes frames, with a sign of life each second, also of operations with one answer.
    """

    operation: str
    robot: str = ""
    session: str = ""
    revision: int | None = None
    body: bytes = b""
    frames: bool = False


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
    known = as_serving_error(error)
    headers = {"Retry-After": f"{max(1, round(known.retry_after))}"} if known.retry_after else {}
    return Part(json.dumps(known.as_fields()).encode(), known.status, JSON, headers)


def as_serving_error(error: BaseException) -> ServingError:
    """The code and the sentence of an error; of an unexpected one its type alone, the log has the rest."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, InputError):
        return ServingError("bad_request", str(error))
    from concurrent.futures import CancelledError as FutureCancelledError

    from worldstereo_ros.pipelines.base import Cancelled, ModelError
    from worldstereo_ros.world import EmptyMemoryError

    if isinstance(error, EmptyMemoryError):
        return ServingError("no_observation", "Nothing was observed yet by this robot. Send observations first.")
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
