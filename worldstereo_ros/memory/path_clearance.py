"""Paths against observed surfaces: which poses of a path a camera cannot reach without passing through one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

MAX_CLEARANCE_M = 100.0
PATH_CLEARANCE_M = 0.05  # about the radius of a camera
# Observed surface near the path that blocks it: part of its cross-section, at most an area. Single points in the air,
# as depth sensors make them, block nothing; a pole of 2 cm blocks a robot.
MIN_BLOCKED_FRACTION, MIN_BLOCKED_M2 = 0.15, 0.0012
# A line through a surface passes its nearest point at less than this, in units of the distance between its points.
MAX_GAP = 0.75
MAX_SPACING_M = 0.5  # of points that are farther apart, the gaps count as open
MAX_CELLS = 4_000_000  # of the grid that selects the points near the path
MAX_SAMPLES = 200_000  # along the path; the cells of a longer one are larger


def blocked_poses(cloud: CloudMemory, world_from_camera: np.ndarray, clearance: float = PATH_CLEARANCE_M) -> np.ndarray:
    """Finds the poses of a path that lie in, or are reached only through, an observed surface.

    Only observed points count: where a wall was estimated or imagined, it need not be.

    Args:
        cloud: the memory.
        world_from_camera: (F, 4, 4) poses of the path, in order.
        clearance: distance that the path keeps from observed surfaces, metres; the radius of a robot, or of a camera.

    Returns:
        (F,) bool, True = an observed surface is within `clearance` of the pose, or of the straight line to it from the
        pose before. A pose behind a wall that an earlier line passed through is not blocked by itself.

    Raises:
        InputError: the poses are not finite rigid transforms, or the clearance is out of range.
    """
    if not 0 < clearance <= MAX_CLEARANCE_M:
        raise InputError(f"The clearance is {clearance:g} m; more than 0 and at most {MAX_CLEARANCE_M:g} was expected.")
    positions = check_poses(world_from_camera)[:, :3, 3]
    blocked = np.zeros(len(positions), dtype=bool)
    points, spacing = _points_near(cloud, positions, clearance)
    if not len(points):
        return blocked
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    reach = np.maximum(clearance, MAX_GAP * np.minimum(spacing, MAX_SPACING_M))
    for index, corners in _segments(positions):
        blocked[index] = any(
            _is_blocked(points[near], spacing[near], reach[near], corners[piece], corners[piece + 1], clearance)
            for piece, near in _pieces_near(tree, corners, float(reach.max()))
        )
    return blocked


def describe_blocked(blocked: Sequence[bool] | np.ndarray, clearance: float = PATH_CLEARANCE_M) -> str:
    """A sentence that names the blocked poses of a path, counted from 0; empty if there are none."""
    index = np.flatnonzero(blocked)
    if not len(index):
        return ""
    runs = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
    names = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:8])
    return (
        f"The path passes through observed surfaces: {len(index)} of {len(blocked)} poses are blocked (closer than "
        f"{clearance:g} m): {names}{', ...' if len(runs) > 8 else ''}."
    )


def _points_near(cloud: CloudMemory, positions: np.ndarray, clearance: float) -> tuple[np.ndarray, np.ndarray]:
    """Observed points (N, 3) float64 and their spacing (N,), all that are near the path and few others.

    One pass over the cloud with a coarse grid, since a search tree of millions of points takes seconds to build.
    """
    if not len(cloud.points):
        return np.zeros((0, 3)), np.zeros(0, np.float32)
    reach = max(clearance, MAX_GAP * min(float(cloud.spacing.max()), MAX_SPACING_M))
    low, high = positions.min(axis=0) - reach, positions.max(axis=0) + reach
    selected = np.arange(len(cloud.points))
    for axis in range(3):  # one after the other: the first leaves few for the others
        coordinate = cloud.points[:, axis] if axis == 0 else cloud.points[selected, axis]
        selected = selected[(coordinate >= low[axis]) & (coordinate <= high[axis])]
    selected = selected[cloud.provenance[selected] == Provenance.OBSERVED]
    points = cloud.points[selected].astype(np.float64)
    if len(selected):
        length = float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())
        cell = max(reach, float(np.prod(high - low) / MAX_CELLS) ** (1 / 3), length / MAX_SAMPLES)
        shape = np.floor((high - low) / cell).astype(int) + 3  # one more cell on every side
        grid = np.zeros(shape, dtype=bool)
        cells = np.floor((_samples(positions, cell) - low) / cell).astype(int) + 1
        for offset in np.ndindex(3, 3, 3):
            grid[tuple((cells + np.array(offset) - 1).T)] = True
        near = grid[tuple((np.floor((points - low) / cell).astype(int) + 1).T)]
        selected, points = selected[near], points[near]
    return points, cloud.spacing[selected]


def _segments(positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of the pose, corners (K + 1, 3) of the K short pieces of its line from the pose before).

    The first pose is a piece of no length.
    """
    yield 0, np.stack([positions[0], positions[0]])
    for index, (start, end) in enumerate(itertools.pairwise(positions), start=1):
        pieces = max(1, min(1000, int(np.ceil(np.linalg.norm(end - start) / 0.5))))  # half a metre each
        yield index, start + np.linspace(0, 1, pieces + 1)[:, None] * (end - start)


def _pieces_near(tree: cKDTree, corners: np.ndarray, reach: float) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number of the piece, indices of the points in a ball around it) of the pieces with points near them.

    The nearest point of all pieces is found at once: far from the surfaces, where most of a long line is, a search for
    each piece would take all the time.
    """
    centres = 0.5 * (corners[:-1] + corners[1:])
    radius = reach + 0.5 * float(np.linalg.norm(corners[1] - corners[0]))
    nearest, _ = tree.query(centres, distance_upper_bound=1.001 * radius)
    for piece in np.flatnonzero(np.isfinite(nearest)):
        yield int(piece), np.array(tree.query_ball_point(centres[piece], radius), dtype=np.intp)


def _is_blocked(
    points: np.ndarray, spacing: np.ndarray, reach: np.ndarray, start: np.ndarray, end: np.ndarray, clearance: float
) -> bool:
    """Whether enough surface is within `reach` (N,) of a piece of the path."""
    near = _distance_to_segment(points, start, end) <= reach
    area = float((spacing[near].astype(np.float64) ** 2).sum())
    return area > min(MIN_BLOCKED_FRACTION * np.pi * clearance**2, MIN_BLOCKED_M2)


def _samples(positions: np.ndarray, step: float) -> np.ndarray:
    """(K, 3) points on the path, at most `step` apart."""
    lengths = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    parts = [positions]
    for start, end, length in zip(positions[:-1], positions[1:], lengths, strict=True):
        count = int(np.ceil(length / step))
        parts.append(start + np.linspace(0, 1, count + 1)[1:-1, None] * (end - start))
    return np.concatenate(parts)


def _distance_to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(N,) distance of points (N, 3) to a line segment."""
    direction = end - start
    squared = float(direction @ direction)
    along = np.zeros(len(points)) if squared == 0 else np.clip((points - start) @ direction / squared, 0, 1)
    return np.linalg.norm(points - start - along[:, None] * direction, axis=1)
