"""Registration errors: how far the poses of remembered observations are off, measured where they see the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.view_overlap import distinct_viewpoints
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.overlap import Overlap, measure_overlap

ASSUMED_ERROR_RAD = np.radians(1.0)  # if no view can be checked against others
# Two views are two witnesses of a point if their camera centres are farther apart than this, relative to the distance
# of the point. The errors of closer ones are the same: they share the pose error, the line of sight and the sensor's.
MIN_BASELINE = 0.05
# The neighbour of a view that it is checked against: the nearest that is farther away than this.
MIN_NEIGHBOUR_M, METRES_PER_RADIAN = 0.1, 1.0
MAX_CHECKED_VIEWS = 64  # the newest ones


@dataclass(frozen=True)
class Registration:
    """Registration errors of R views.

    Attributes:
        errors: (R,) float64 radians; of a view that cannot be checked the median of all views of memory, or
            `ASSUMED_ERROR_RAD` if none can be.
        checked: (R,) bool, whether the error of the view was measured.
        known: whether the error of any view of memory was measured.
    """

    errors: np.ndarray
    checked: np.ndarray
    known: bool

    @staticmethod
    def unknown(count: int) -> Registration:
        """Of views of which none can be checked."""
        return Registration(np.full(count, ASSUMED_ERROR_RAD), np.zeros(count, bool), False)


class NeighbourOverlaps:
    """Overlap of each observation of memory with its nearest neighbour, cached.

    A view that is the only reference of a camera can be checked against views that the camera does not see.
    """

    def __init__(self) -> None:
        self._views: list[View] = []  # kept alive, so that their identities are safe keys
        self._overlaps: dict[tuple[int, int], Overlap | None] = {}

    def __call__(self, views: Sequence[View]) -> dict[tuple[int, int], Overlap]:
        """(id of a view, id of its neighbour) -> their overlap, for the distinct observations with depth in `views`."""
        observations = [view for view in views if view.is_observation and view.depth is not None][-MAX_CHECKED_VIEWS:]
        if len(observations) == len(self._views) and all(
            a is b for a, b in zip(observations, self._views, strict=True)
        ):
            return {key: shared for key, shared in self._overlaps.items() if shared is not None}
        overlaps = {}
        distinct = distinct_viewpoints(observations[::-1])
        for index, other in _nearest_neighbours(distinct):
            one, two = distinct[index], distinct[other]
            key = (id(one), id(two))
            overlaps[key] = self._overlaps[key] if key in self._overlaps else measure_overlap(one, two)
        self._views, self._overlaps = observations, overlaps
        return {key: shared for key, shared in overlaps.items() if shared is not None}


def _nearest_neighbours(views: list[View]) -> list[tuple[int, int]]:
    """(index, index of its nearest neighbour) of all views that have one."""
    if len(views) < 2:
        return []
    poses = np.stack([view.world_from_camera for view in views])
    metres = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=2)
    radians = np.arccos(np.clip(poses[:, :3, 2] @ poses[:, :3, 2].T, -1, 1))
    distance = np.where(metres >= MIN_NEIGHBOUR_M, metres + METRES_PER_RADIAN * radians, np.inf)
    nearest = distance.argmin(axis=1)
    return [(i, int(j)) for i, j in enumerate(nearest) if np.isfinite(distance[i, j])]


def measure_registration(
    views: Sequence[View],
    overlaps: dict[tuple[int, int], Overlap],
    neighbours: dict[tuple[int, int], Overlap] | None = None,
) -> Registration:
    """Median misalignment of each view with others.

    Overlaps of views from the same place are left out, since a view agrees with its copy whatever its pose is; so are
    those with imagined views, which agree with what they were made from.

    Args:
        views: R views.
        overlaps: (i, j) -> overlap of views i and j.
        neighbours: result of `NeighbourOverlaps` for all views of memory.
    """
    errors: dict[int, list[float]] = {}
    pairs = {(id(views[i]), id(views[j])): shared for (i, j), shared in overlaps.items()
             if views[i].is_observation and views[j].is_observation}  # fmt: skip
    for (one, other), shared in {**(neighbours or {}), **pairs}.items():
        if np.isfinite(shared.misalignment) and shared.baseline >= MIN_BASELINE:
            errors.setdefault(one, []).append(shared.misalignment)
            errors.setdefault(other, []).append(shared.misalignment)
    if not errors:
        return Registration.unknown(len(views))
    medians = {key: float(np.median(values)) for key, values in errors.items()}
    typical = float(np.median(list(medians.values())))
    checked = np.array([id(view) in medians for view in views], bool)
    return Registration(np.array([medians.get(id(view), typical) for view in views]), checked, True)
