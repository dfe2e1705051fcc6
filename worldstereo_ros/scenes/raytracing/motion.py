"""Analytic motion of rigid objects.

A track is a closed-form function of time: poses at any time are computed on demand, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo_ros.utils.errors import InputError

Times = Sequence[float] | np.ndarray | torch.Tensor | float
"""Seconds: one number, or one for each frame or point."""

HEADINGS = ("along", "fixed", "roll", "spin")


@dataclass(frozen=True)
class Track:
    """A smooth periodic track: centre + a cos(angle) + b sin(turns * angle), with height + lift sin(2 angle).

    Attributes:
        centre, a, b: metres, world axes. With b = 0 the track is a line; else `turns` = 1 is an ellipse and 2 a figure
            eight.
        period: seconds.
        phase: radians, the angle at time 0.
        turns: 1 or 2.
        lift: amplitude of the vertical motion, metres.
        heading: "along" faces the direction of motion, "fixed" faces along a, "spin" rotates at `rate`, "roll" is a
            ball of radius `rate` that rolls on a line without slipping.
        rate: radians per second for "spin", metres for "roll".
    """

    centre: tuple[float, float, float]
    a: tuple[float, float]
    b: tuple[float, float]
    period: float
    phase: float = 0.0
    turns: int = 1
    lift: float = 0.0
    heading: str = "along"
    rate: float = 0.0

    def angle(self, times: torch.Tensor) -> torch.Tensor:
        """(N,) radians at times (N,)."""
        return times.double() * (2 * math.pi / self.period) + self.phase

    def position(self, times: torch.Tensor) -> torch.Tensor:
        """(N, 3) float64 metres at times (N,) seconds."""
        angle = self.angle(times)
        along, across = torch.cos(angle), torch.sin(self.turns * angle)
        return torch.stack(
            [
                self.centre[0] + self.a[0] * along + self.b[0] * across,
                self.centre[1] + self.a[1] * along + self.b[1] * across,
                self.centre[2] + self.lift * torch.sin(2 * angle),
            ],
            dim=1,
        )

    def poses(self, times: torch.Tensor) -> torch.Tensor:
        """(N, 4, 4) float64 world_from_body at times (N,) seconds."""
        angle = self.angle(times)
        if self.heading == "along":
            ahead, side = -torch.sin(angle), self.turns * torch.cos(self.turns * angle)
            yaw = torch.atan2(self.a[1] * ahead + self.b[1] * side, self.a[0] * ahead + self.b[0] * side)
        elif self.heading == "spin":
            yaw = self.rate * times.double()
        else:
            yaw = torch.full_like(angle, math.atan2(self.a[1], self.a[0]))
        poses = torch.eye(4, dtype=torch.float64).repeat(len(angle), 1, 1)
        poses[:, 0, 0], poses[:, 0, 1] = torch.cos(yaw), -torch.sin(yaw)
        poses[:, 1, 0], poses[:, 1, 1] = torch.sin(yaw), torch.cos(yaw)
        if self.heading == "roll":
            # About the horizontal axis across the line, by the distance covered divided by the radius.
            turn = math.hypot(*self.a) * torch.cos(angle) / self.rate
            rolled = torch.eye(3, dtype=torch.float64).repeat(len(angle), 1, 1)
            rolled[:, 0, 0], rolled[:, 0, 2] = torch.cos(turn), torch.sin(turn)
            rolled[:, 2, 0], rolled[:, 2, 2] = -torch.sin(turn), torch.cos(turn)
            poses[:, :3, :3] = poses[:, :3, :3] @ rolled
        poses[:, :3, 3] = self.position(times)
        return poses


@dataclass(frozen=True)
class MovingObject:
    """A rigid object that moves.

    Attributes:
        instance: object id, as in `SceneFrames.instance`.
        body: index in `Primitives.body`.
        kind: name of the object, as in `Scene.names`.
        track: its motion.
    """

    instance: int
    body: int
    kind: str
    track: Track

    def motion(self, times: torch.Tensor) -> torch.Tensor:
        """(N, 4, 4) float64 rigid motions in world axes from time 0 to times (N,) seconds."""
        start = self.track.poses(torch.zeros(1, dtype=torch.float64))
        return self.track.poses(times) @ torch.linalg.inv(start)


def body_motions(
    moving_objects: Sequence[Sequence[MovingObject]], table: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """Motions of all bodies for F frames.

    Args:
        moving_objects: the moving objects of each scene.
        table: (F,) int64 index of the scene of each frame.
        times: (F,) seconds.

    Returns:
        (F, bodies, 4, 4) float64 motions since time 0; body 0 is static.
    """
    count = 1 + max((mover.body for each in moving_objects for mover in each), default=0)
    motions = torch.eye(4, dtype=torch.float64).repeat(len(table), count, 1, 1)
    for index, each in enumerate(moving_objects):
        rows = (table == index).nonzero()[:, 0]
        for mover in each:
            motions[rows, mover.body] = mover.motion(times[rows])
    return motions


def check_times(times: Times, count: int) -> torch.Tensor:
    """Validate times and expand them to one per frame, (count,) float64 seconds.

    Raises:
        InputError: the number of times does not match, or a time is not finite.
    """
    seconds = torch.as_tensor(times, dtype=torch.float64).cpu()
    if seconds.ndim > 1 or (seconds.ndim == 1 and len(seconds) != count) or not bool(torch.isfinite(seconds).all()):
        raise InputError(
            f"The times have shape {tuple(seconds.shape)}; expected finite seconds, one number or one for each of the "
            f"{count} frames."
        )
    return seconds.expand(count)
