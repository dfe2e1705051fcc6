"""Errors that a server answers with, as a code for programs, a sentence for people, and the status of HTTP."""

from __future__ import annotations

from typing import Any

from worldstereo_ros.utils.errors import WorldStereoError

# code -> status of HTTP
STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "method_not_allowed": 405,
    "no_observation": 409,
    "out_of_step": 409,
    "session_lost": 410,
    "length_required": 411,
    "too_large": 413,
    "busy": 429,
    "model_error": 500,
    "fault": 500,
    "full": 503,
    "unavailable": 503,
    "timeout": 504,
}
# The robot's memories are not those that it believes; it sends them again.
RESYNC_CODES = ("session_lost", "out_of_step")


class ServingError(WorldStereoError, RuntimeError):
    """A request that was not answered.

    Attributes:
        code: one of `STATUS`.
        retry_after: seconds after which it may succeed; 0 = not known.
    """

    def __init__(self, code: str, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, float(retry_after)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.code, str(self), self.retry_after)

    @property
    def status(self) -> int:
        """Status of HTTP."""
        return STATUS.get(self.code, 500)

    def as_fields(self) -> dict[str, Any]:
        """The body of the answer."""
        return {"error": self.code, "message": str(self), "retry_after": self.retry_after}


def _restore(code: str, message: str, retry_after: float) -> ServingError:
    return ServingError(code, message, retry_after=retry_after)
