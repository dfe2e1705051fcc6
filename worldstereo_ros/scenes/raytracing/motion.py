"""Motion that is known exactly: where things that move are at any time, and where a point on them was or will be.

A mover is one rigid object. Its track is a closed formula of time, so that no time is special and none is stored:
poses are worked out when asked for, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from worldstereo_ros.utils.errors import InputError

Times = Sequence[float] | np.ndarray | torch.Tensor | float
"""Seconds: one number, or one for each of several frames or points."""

HEADINGS = ("along", "fixed", "roll", "spin")


@dataclass(frozen=True)
class Track:
    """A smooth periodic way: centre + a cos(angle) + b sin(turns * angle) + lift sin(2 angle) up.

    Attributes:
        centre, a, b: metres, world axes. b = 0 goes to and fro on a line, `turns` 1 is an ellipse, 2 an eight.
        period: seconds; phase: radians, the angle at time 0.
        turns: 1 or 2.
        lift: metres up and down, of what flies.
        heading: "along" looks where it goes, "fixed" along a, "spin" turns evenly (`rate`, radians a second), "roll" is
            a ball of radius `rate` that rolls on a line without slipping.
        rate: see `heading`.
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
            # On a line along a: about the level axis across it, by the way covered over the radius.
            turn = math.hypot(*self.a) * torch.cos(angle) / self.rate
            rolled = torch.eye(3, dtype=torch.float64).repeat(len(angle), 1, 1)
            rolled[:, 0, 0], rolled[:, 0, 2] = torch.cos(turn), torch.sin(turn)
            rolled[:, 2, 0], rolled[:, 2, 2] = -torch.sin(turn), torch.cos(turn)
            poses[:, :3, :3] = poses[:, :3, :3] @ rolled
        poses[:, :3, 3] = self.position(times)
        return poses


@dataclass(frozen=True)
class Mover:
    """A rigid object that moves.

    Attributes:
        instance: its id, as in `SceneFrames.instance`; body: the one of its primitives, `Primitives.body`.
        kind: what it is, as in `Scene.names`.
        track: its way.
    """

    instance: int
    body: int
    kind: str
    track: Track

    def motion(self, times: torch.Tensor) -> torch.Tensor:
        """(N, 4, 4) float64 rigid motions that carry its points from where they are at time 0 to times (N,)."""
        start = self.track.poses(torch.zeros(1, dtype=torch.float64))
        return self.track.poses(times) @ torch.linalg.inv(start)


def body_motions(movers: Sequence[Sequence[Mover]], table: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Motions of all bodies of F frames.

    Args:
        movers: of each table.
        table: (F,) int64 which table a frame sees; times: (F,) seconds.

    Returns:
        (F, bodies, 4, 4) float64; body 0 is the world, which stays where it is.
    """
    most = 1 + max((mover.body for each in movers for mover in each), default=0)
    motions = torch.eye(4, dtype=torch.float64).repeat(len(table), most, 1, 1)
    for index, each in enumerate(movers):
        rows = (table == index).nonzero()[:, 0]
        for mover in each:
            motions[rows, mover.body] = mover.motion(times[rows])
    return motions


def as_times(times: Times, count: int) -> torch.Tensor:
    """(count,) float64 seconds, from one number or one a frame.

    Raises:
        ValueError: another number of times, or times that are not finite.
    """
    given = torch.as_tensor(times, dtype=torch.float64).cpu()
    if given.ndim > 1 or (given.ndim == 1 and len(given) != count) or not bool(torch.isfinite(given).all()):
        raise InputError(
            f"The times have shape {tuple(given.shape)}; one finite number of seconds for each of the {count} frames "
            "was expected, or one for all."
        )
    return given.expand(count)
