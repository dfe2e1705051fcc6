"""A copy of what a world model remembers, so that planning does not hold up the thread that owns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.geometry.views import View

if TYPE_CHECKING:
    from worldstereo_ros.world import WorldModel


@dataclass(frozen=True)
class RememberedPoints:
    """Points of a cloud memory.

    Attributes:
        points: (N, 3) float32 world coordinates.
        provenance: (N,) uint8 values of `Provenance`.
        depth_confidence: (N,) float32 in 0..1.
    """

    points: np.ndarray
    provenance: np.ndarray
    depth_confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class RememberedViews:
    """Views of a view bank, oldest first. They do not change."""

    views: Sequence[View]


@dataclass(frozen=True)
class RememberedWorld:
    """What `OccupancyMap.from_world` reads of a world model.

    Attributes:
        cloud: the points. bank: the views.
        metric: lengths are in metres.
    """

    cloud: RememberedPoints
    bank: RememberedViews
    metric: bool

    @classmethod
    def of(cls, world: WorldModel) -> RememberedWorld:
        """Copies what a world model remembers; called by the thread that owns it, in some tens of milliseconds."""
        cloud = world.cloud
        points = RememberedPoints(cloud.points.copy(), cloud.provenance.copy(), cloud.depth_confidence)
        return cls(points, RememberedViews(tuple(world.bank.views)), bool(world.metric))

    @property
    def newest_observation(self) -> View | None:
        """The observation that was added last; None before the first."""
        return next((view for view in reversed(self.bank.views) if view.is_observation), None)
