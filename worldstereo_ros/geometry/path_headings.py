"""Headings of a path whose poses have none, such as the plans of grid planners: along the path."""

from __future__ import annotations

import numpy as np

MIN_STEP_M = 0.02  # horizontal distance that gives a heading; shorter steps are noise


def without_headings(quaternions_xyzw: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Tells which poses of a path have no heading because its planner sets none.

    Planners that search a grid (NavFn, Smac 2D) leave each orientation at exactly 0 0 0 1, but may give the first pose
    that of the robot and the last one that of the goal.

    Args:
        quaternions_xyzw: (N, 4) orientations as they came. (0, 0, 0, -1) is the same rotation, but is no
            planner's default.
        positions: (N, 3) metres.

    Returns:
        (N,) bool; all False if the path has headings, or does not move by `MIN_STEP_M`.
    """
    quaternions, positions = np.asarray(quaternions_xyzw), np.asarray(positions)
    default = (quaternions == (0, 0, 0, 1)).all(axis=1)
    between = default[1:-1]
    none_given = default.all() or (len(between) > 0 and between.all())
    moves = bool((np.linalg.norm(positions - positions[:1], axis=1) >= MIN_STEP_M).any())
    return default if none_given and moves else np.zeros(len(default), dtype=bool)


def headings_along(positions: np.ndarray) -> np.ndarray | None:
    """Returns the rotations of a body that moves along a path and stays level.

    Args:
        positions: (N, 3) metres, z up. Where the path goes straight up or down, or stands, the heading is that of the
            way after; at its end, that of the way before.

    Returns:
        (N, 3, 3) float64 world_from_body: x along the path, z up. None if the path nowhere moves horizontally.
    """
    xy = np.asarray(positions, dtype=np.float64)[:, :2]
    # Corners of the path at least a step apart, so that repeated and jittering poses get the heading of their part.
    corners = [0]
    part = np.zeros(len(xy), dtype=np.int64)
    for index in range(1, len(xy)):
        part[index] = len(corners) - 1
        if np.hypot(*(xy[index] - xy[corners[-1]])) >= MIN_STEP_M:
            corners.append(index)
            part[index] = len(corners) - 1
    if len(corners) == 1:
        return None
    ahead = np.diff(xy[corners], axis=0)
    ahead = (ahead / np.linalg.norm(ahead, axis=1, keepdims=True))[np.minimum(part, len(corners) - 2)]
    rotations = np.zeros((len(xy), 3, 3))
    rotations[:, :2, 0] = ahead
    rotations[:, 0, 1], rotations[:, 1, 1] = -ahead[:, 1], ahead[:, 0]
    rotations[:, 2, 2] = 1
    return rotations
