"""What a server accepts, and the settings of the memories that it keeps for a robot."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from worldstereo_ros.serving.errors import ServingError
from worldstereo_ros.utils.errors import InputError

MB = 10**6


@dataclass(frozen=True)
class ServingLimits:
    """Limits of one process that serves robots.

    Attributes:
        max_robots: sessions at once, each with memories of its own.
        max_points, max_bank_views, max_bank_bytes: of the memories of one robot; a robot may ask for less.
        idle_s: seconds without a request after which a session ends and its memory is freed.
        waiting_per_robot, waiting: requests that wait, of one robot and of all; further ones are refused.
        waiting_bytes: bodies of waiting requests, bytes.
        max_body_bytes: of one request.
        max_image_pixels: of one image, observed or imagined.
        max_views, max_job_pixels: of one request to imagine.
        max_poses: of one request.
        request_s: seconds from acceptance after which a request ends.
    """

    max_robots: int = 16
    max_points: int = 2_000_000
    max_bank_views: int = 64
    max_bank_bytes: int = 512 * MB
    idle_s: float = 900.0
    waiting_per_robot: int = 8
    waiting: int = 64
    waiting_bytes: int = 1024 * MB
    max_body_bytes: int = 768 * MB
    max_image_pixels: int = 8_300_000
    max_views: int = 512
    max_job_pixels: int = 500_000_000
    max_poses: int = 20_000
    request_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"The limit {name} of the server is {value}; a positive number was expected.")

    def check_poses(self, count: int) -> None:
        """Raises ServingError for too many poses."""
        if count > self.max_poses:
            raise ServingError("too_large", f"There are {count} poses; at most {self.max_poses} are accepted.")

    def check_views(self, count: int) -> None:
        """Raises ServingError for too many views to imagine."""
        if count > self.max_views:
            message = f"{count} views were asked for; at most {self.max_views} are accepted at once."
            raise ServingError("too_large", message)


@dataclass(frozen=True)
class MemorySettings:
    """Settings of the memories of one robot; those of `CloudMemory` and `ViewBank`.

    Equal settings and equal requests give equal memories, on the robot and on the server.
    """

    voxel_size: float = 0.01
    max_points: int = 2_000_000
    max_radius: float | None = None
    max_age: float | None = None
    max_bank_views: int = 64
    max_bank_bytes: int = 512 * MB

    @classmethod
    def of(cls, cloud: Any, bank: Any) -> MemorySettings:
        """The settings of a `CloudMemory` and a `ViewBank`."""
        return cls(cloud.voxel_size, cloud.max_points, cloud.max_radius, cloud.max_age, bank.max_views, bank.max_bytes)

    @classmethod
    def parse(cls, fields: dict[str, Any], limits: ServingLimits) -> MemorySettings:
        """Checks the settings of a request; those that it does not name have their defaults, up to the limits.

        Raises:
            InputError: an unknown name, a wrong type, or more than the limits allow.
        """
        allowed = {
            "max_points": limits.max_points,
            "max_bank_views": limits.max_bank_views,
            "max_bank_bytes": limits.max_bank_bytes,
        }
        known = asdict(cls())
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise InputError(f"The settings {', '.join(unknown)[:200]} are unknown; {', '.join(known)} were expected.")
        values = {name: min(value, allowed.get(name, value)) for name, value in known.items() if value is not None}
        for name, value in fields.items():
            optional = known[name] is None
            if value is None and optional:
                continue
            whole = isinstance(known[name], int)
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                kind = "a positive whole number" if whole else "a positive number"
                raise InputError(f"The setting {name} is {str(value)[:40]!r}; {kind} was expected.")
            if value > allowed.get(name, value):
                raise InputError(
                    f"The robot asks for {name} {value}; at most {allowed[name]} are allowed on this server. Lower the "
                    "robot's own limit, or start the server with a higher one."
                )
            values[name] = value
        return cls(**values)  # type: ignore[arg-type]  # checked above

    def as_fields(self) -> dict[str, Any]:
        """The fields of a request."""
        return asdict(self)
