"""Colours of the sides of a room that no view saw: those of the walls of the most usual colour, by height."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from worldstereo_ros.pipelines.geometric.plane_detection import TEXTURE_CELLS, PlaneSamples
from worldstereo_ros.pipelines.geometric.room_closing import WALL, AssumedPlane, Room
from worldstereo_ros.pipelines.geometric.usual_colours import MIN_USUAL, nearness, usual_colour

MIN_EXTENT_M = 1e-3  # distance at which the probability of a plane that is bounded all around is 1 / e
UNOBSERVED_M = 1e4  # distance from the observed part, of a plane that was not observed
# Colours of assumed walls by height
PROFILE_CELLS = 3.0  # standard deviation of the filter
PROFILE_PRIOR = 0.2  # weight of the usual colour, in that of the most common height
# Distances of colours in grey levels, beyond which two walls have nothing in common, and within which they are alike.
MAX_COLOUR_DISTANCE, LIKE_COLOUR_DISTANCE = 60.0, 25.0


def typical_walls(samples: PlaneSamples, inliers: Sequence[np.ndarray], kinds: Sequence[str]) -> list[int]:
    """Indices of the detected walls of the most usual colour, which unseen ones get: a mean is the colour of none.

    Args:
        samples: samples of all views.
        inliers: samples of each detected plane.
        kinds: of each detected plane, see `Room`.
    """
    walls = [index for index, kind in enumerate(kinds) if kind == WALL and inliers[index].any()]
    if not walls:
        return []
    weights = np.array([samples.weights[inliers[wall]].sum() for wall in walls])
    colours = np.stack(
        [np.average(samples.colours[inliers[wall]], axis=0, weights=samples.weights[inliers[wall]]) for wall in walls]
    )
    distances = np.linalg.norm(colours[:, None] - colours, axis=-1)
    typical = int(np.argmin(np.minimum(distances, MAX_COLOUR_DISTANCE) @ weights))
    return [wall for wall, distance in zip(walls, distances[typical], strict=True) if distance < LIKE_COLOUR_DISTANCE]


def wall_profile(samples: PlaneSamples, inliers: list[np.ndarray], room: Room) -> np.ndarray:
    """(TEXTURE_CELLS, 3) float32 usual colour of seen walls by height, from the floor to the ceiling."""
    low, high = _height_range(room)
    on_wall = np.zeros(len(samples.points), bool)
    for chosen in inliers:
        on_wall |= chosen
    if not on_wall.any():
        on_wall[:] = True
    heights = samples.points[on_wall] @ room.up
    rows = np.clip((heights - low) / (high - low) * TEXTURE_CELLS, 0, TEXTURE_CELLS - 1).astype(int)
    # Near the usual colour of the walls, or of the height: doors and furniture are no wall.
    colours, weights = samples.colours[on_wall], samples.weights[on_wall].astype(np.float64)
    usual = usual_colour(colours, weights)
    near = weights * nearness(colours, usual)
    for row in range(TEXTURE_CELLS):
        of_row = rows == row
        if of_row.any() and near[of_row].sum() < MIN_USUAL * weights[of_row].sum():
            near[of_row] = weights[of_row] * nearness(colours[of_row], usual_colour(colours[of_row], weights[of_row]))
    total = np.bincount(rows, near, TEXTURE_CELLS)
    sums = np.stack([np.bincount(rows, near * channel, TEXTURE_CELLS) for channel in colours.T], axis=-1)
    # Smooth: bands of single heights are things on the walls.
    sums, total = (scipy.ndimage.gaussian_filter1d(a, PROFILE_CELLS, axis=0, mode="nearest") for a in (sums, total))
    prior = PROFILE_PRIOR * float(total.max())
    return ((sums + prior * usual) / (total + prior)[:, None]).astype(np.float32)


def _height_range(room: Room) -> tuple[float, float]:
    levels = [side for side in room.sides if side.kind != WALL]
    heights = [float(side.offset * np.sign(side.normal @ room.up)) for side in levels]
    return min(heights), max(max(heights), min(heights) + 1.0)


def assumed_texture(
    side: AssumedPlane, room: Room, samples: PlaneSamples, profile: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, colours and distances of a side that was not seen."""
    low, high = _height_range(room)
    cells = (TEXTURE_CELLS, TEXTURE_CELLS)
    if side.kind == WALL:
        axes = np.stack([np.cross(room.up, side.normal), room.up])
        cell, corner = (high - low) / TEXTURE_CELLS, np.array([0.0, low])
        colours = np.repeat(profile[:, None], TEXTURE_CELLS, axis=1)
    else:
        axes = np.stack([room.axis, np.cross(side.normal, room.axis)])
        cell, corner = 0.1, np.zeros(2)
        colours = np.broadcast_to(profile.mean(axis=0), (*cells, 3))
    parameters = np.concatenate(
        [side.normal, [side.offset], *axes, corner, [cell, MIN_EXTENT_M, side.probability]]
    ).astype(np.float32)
    return parameters, np.ascontiguousarray(colours, np.float32), np.full(cells, UNOBSERVED_M, np.float32)
