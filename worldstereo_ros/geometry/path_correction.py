"""The correction of a path after a loop was closed: a similarity for each of some times, and what lies between them.

A map that was made along a drifting path is moved with it: what was seen at a time moves as the camera of that time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.similarity import Similarity, mean_rotation
from worldstereo_ros.utils.errors import InputError


@dataclass(frozen=True)
class PathCorrection:
    """How a path, and what was seen along it, moves.

    Attributes:
        stamps_ns: (K,) int64 ascending times, K >= 1.
        changes: of each of these times a similarity from the old world to the new one. Between two times both are
            applied and the results blended; before the first and after the last the nearest one holds.
    """

    stamps_ns: np.ndarray
    changes: tuple[Similarity, ...]

    def __post_init__(self) -> None:
        if len(self.stamps_ns) != len(self.changes) or not self.changes:
            raise InputError(
                f"There are {len(self.stamps_ns)} times and {len(self.changes)} changes; as many, and one at least, "
                "were expected."
            )

    def points(self, points: np.ndarray, stamps_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves points (N, 3) that were seen at times (N,).

        Returns:
            (N, 3) float32 points, and (N,) float32 factors of lengths near them.
        """
        points = np.asarray(points, np.float64)
        low, high, share = self._between(np.asarray(stamps_ns))
        moved, scale = np.empty((len(points), 3)), np.empty(len(points))
        order = np.lexsort((high, low))
        edges = np.flatnonzero(np.diff(low[order]) | np.diff(high[order])) + 1
        for rows in np.split(order, edges):
            if not len(rows):
                continue
            one, two = self.changes[low[rows[0]]], self.changes[high[rows[0]]]
            weight = share[rows]
            first, second = one.points(points[rows]), two.points(points[rows])
            moved[rows] = first + weight[:, None] * (second - first)
            scale[rows] = one.scale ** (1 - weight) * two.scale**weight
        return moved.astype(np.float32), scale.astype(np.float32)

    def pose(self, world_from_camera: np.ndarray, stamp_ns: int) -> tuple[np.ndarray, float]:
        """Moves a pose (4, 4) of a time.

        Returns:
            The (4, 4) rigid pose, and the factor of depths along its axis.
        """
        low, high, share = (each[0] for each in self._between(np.array([stamp_ns])))
        one, two = self.changes[low], self.changes[high]
        first, second = one.poses(world_from_camera), two.poses(world_from_camera)
        out = np.eye(4)
        out[:3, 3] = first[:3, 3] + share * (second[:3, 3] - first[:3, 3])
        blended = (1 - share) * first[:3, :3] + share * second[:3, :3]
        out[:3, :3] = mean_rotation(blended[None])  # the nearest rotation; the two are close to each other
        return out, float(one.scale ** (1 - share) * two.scale**share)

    def _between(self, stamps_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the times before and after each time, and the share (0..1) of the latter."""
        at = self.stamps_ns
        low = np.clip(np.searchsorted(at, stamps_ns, side="right") - 1, 0, len(at) - 1)
        high = np.minimum(low + 1, len(at) - 1)
        gap = np.maximum(at[high] - at[low], 1)
        return low, high, np.clip((stamps_ns - at[low]) / gap, 0, 1)


def between(changes: Sequence[tuple[Similarity, Similarity]], stamps_ns: Sequence[int]) -> PathCorrection:
    """The correction that takes cameras (before, after) of some times, as similarities to the world, to each other."""
    return PathCorrection(
        np.asarray(stamps_ns, np.int64), tuple(after.after(before.inverse()) for before, after in changes)
    )
