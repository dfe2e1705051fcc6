"""Room closing: assumed floor, ceiling and walls where no view saw any, so that a view turned away shows a room.

The room is a box (Manhattan world, Coughlan and Yuille 1999): its axes are the direction of gravity and the direction
in which most vertical surfaces face. A side is where a seen surface closes the box; otherwise it is assumed behind
what was seen.

Where lengths have an arbitrary unit, nothing is assumed that was not seen: its distances are in metres.

Outdoors only the ground continues. A place is outdoors if no view saw a ceiling and views that look above the horizon
measured nothing in a large part of it, beside things that are higher than those of a room: indoors, too, a depth camera
measures nothing that is far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worldstereo_ros.pipelines.geometric.plane_detection import PlaneSamples, PlaneTexture, SampledView

MIN_LEVEL_COSINE = 0.95  # between up and the normal of a floor or ceiling
MAX_TILT_COSINE = 0.5  # between the mean up direction of the cameras and that of a floor: 60 degrees
NEAR_AXIS_COSINE = 0.996  # between the normal of a floor and an axis of the world: 5 degrees
MAX_WALL_SINE = 0.15  # between a wall and up
# Of what is above the horizon nothing was measured in at least this fraction, and the highest surfaces are at least so
# many metres above the cameras: one of the pairs holds outdoors.
OUTDOORS = ((0.9, -np.inf), (0.25, 1.5), (0.08, 4.0))
UNSCALED_OPEN_FRACTION = 0.35  # the same where lengths have an arbitrary unit
HORIZON_SINE = 0.09  # of the elevation above which a line of sight counts: 5 degrees
CAMERA_CLEARANCE_M = 0.3  # between a camera and a wall
FACING_QUANTILE, FARTHEST_QUANTILE = 0.9, 0.98  # of the samples along an axis
FACING_TOLERANCE_M = 0.15
BEHIND_HEIGHTS = 0.65  # distance of an assumed wall behind the last surface that was seen, in heights of the room
DEFAULT_HEIGHT_M, HEADROOM_M = 2.7, 0.05
MIN_CAMERA_HEIGHT_M = 0.3
SEEN_PROBABILITY = 0.75  # that a surface that was seen in part closes the room on its side
ASSUMED_PROBABILITY = 0.6  # of a surface that was not seen
MIN_ALIGNMENT = 0.5  # of the directions of vertical surfaces, 1 = all are parallel or perpendicular
WALL, FLOOR, CEILING = "wall", "floor", "ceiling"


class AssumedPlane(NamedTuple):
    """A side of the room; it extends without limit.

    Attributes:
        kind: wall, floor or ceiling.
        normal: (3,) unit normal into the room.
        offset: metres, normal . x = offset.
        probability: that the side is there.
        source: index of the detected plane that it continues; -1 = none.
    """

    kind: str
    normal: np.ndarray
    offset: float
    probability: float
    source: int = -1


class Room(NamedTuple):
    """What is assumed about a place.

    Attributes:
        up: (3,) unit vector against gravity.
        axis: (3,) horizontal unit vector, in which most walls face.
        outdoors: whether there is a sky.
        sides: the assumed planes.
        kinds: kind of each detected plane, "" = none of the three.
    """

    up: np.ndarray
    axis: np.ndarray
    outdoors: bool
    sides: list[AssumedPlane]
    kinds: list[str]


def close_room(
    planes: Sequence[PlaneTexture], samples: PlaneSamples, views: Sequence[SampledView], *, metric: bool = True
) -> Room:
    """Closes a room around the observations.

    Args:
        planes: the detected planes.
        samples: samples of all views, at least one.
        views: the observations.
        metric: whether lengths are metres; else nothing is known of the size of a room, and no side is assumed that was
            not seen.
    """
    positions = np.stack([view.position for view in views])
    normals, offsets = _geometry(planes)
    areas = np.array([plane.area for plane in planes])
    up = _up_direction(normals, areas, views)
    heights, camera_heights = samples.points @ up, positions @ up
    level = normals @ up
    is_floor = (level > MIN_LEVEL_COSINE) & (offsets < camera_heights.min())
    is_ceiling = (level < -MIN_LEVEL_COSINE) & (-offsets > camera_heights.max())
    is_wall = np.abs(level) < MAX_WALL_SINE
    lowest, highest = np.quantile(heights, [1 - FARTHEST_QUANTILE, FARTHEST_QUANTILE])
    sides: list[AssumedPlane] = []
    outdoors = not is_ceiling.any() and _is_outdoors(_open_fraction(views, up), highest - camera_heights.mean(), metric)
    floor = _largest_near(areas, offsets, is_floor, lowest)
    if floor is not None:
        low = float(offsets[floor])
        sides.append(AssumedPlane(FLOOR, normals[floor], low, SEEN_PROBABILITY, floor))
    else:
        low = float(min(lowest, camera_heights.min() - MIN_CAMERA_HEIGHT_M))
        sides.append(AssumedPlane(FLOOR, up, low, ASSUMED_PROBABILITY))
    axis = _along_largest_wall(_main_axis(samples, up, views), up, normals[is_wall], areas[is_wall])
    kinds = np.select([is_floor, is_ceiling, is_wall], [FLOOR, CEILING, WALL], "").tolist()
    if outdoors:
        return Room(up, axis, True, sides if metric else [side for side in sides if side.source >= 0], kinds)
    ceiling = _largest_near(areas, -offsets, is_ceiling, highest)
    if ceiling is not None:
        high = float(-offsets[ceiling])
        sides.append(AssumedPlane(CEILING, normals[ceiling], -high, SEEN_PROBABILITY, ceiling))
    else:
        high = max(low + DEFAULT_HEIGHT_M, float(highest) + HEADROOM_M)
        sides.append(AssumedPlane(CEILING, -up, -high, ASSUMED_PROBABILITY))
    other = np.cross(up, axis)
    for outwards in (axis, -axis, other, -other):
        along = samples.points @ outwards
        near, far = np.quantile(along, [FACING_QUANTILE, FARTHEST_QUANTILE])
        far = max(float(far), float((positions @ outwards).max()) + CAMERA_CLEARANCE_M)
        # Distance of each wall that faces the room on this side.
        facing = is_wall & (normals @ outwards < -MIN_LEVEL_COSINE)
        closing = facing & (-offsets > max(near - FACING_TOLERANCE_M, float((positions @ outwards).max())))
        if closing.any():
            wall = int(np.argmax(np.where(closing, areas, -1)))
            sides.append(AssumedPlane(WALL, normals[wall], float(offsets[wall]), SEEN_PROBABILITY, wall))
        else:
            distance = far + BEHIND_HEIGHTS * (high - low)
            sides.append(AssumedPlane(WALL, -outwards, -distance, ASSUMED_PROBABILITY))
    return Room(up, axis, False, sides if metric else [side for side in sides if side.source >= 0], kinds)


def _geometry(planes: Sequence[PlaneTexture]) -> tuple[np.ndarray, np.ndarray]:
    """Normals (K, 3) and offsets (K,)."""
    if not planes:
        return np.zeros((0, 3)), np.zeros(0)
    parameters = np.stack([plane.parameters for plane in planes]).astype(np.float64)
    return parameters[:, :3], parameters[:, 3]


def _up_direction(normals: np.ndarray, areas: np.ndarray, views: Sequence[SampledView]) -> np.ndarray:
    """(3,) normal of the largest plane that is roughly level to the cameras; else the mean up direction of the cameras.

    A camera that looks down sees the floor at an angle to its own up direction, so that the direction of the cameras
    is not enough. In most worlds an axis points up, which counts in favour of a plane.
    """
    mean = np.mean([view.up for view in views], axis=0)
    mean /= max(float(np.linalg.norm(mean)), 1e-9)
    level = normals @ mean
    axis = np.zeros(3)
    axis[int(np.argmax(np.abs(mean)))] = np.sign(mean[int(np.argmax(np.abs(mean)))])
    facing = np.abs(level) > MAX_TILT_COSINE  # floors and ceilings
    if not facing.any():
        return mean
    scores = areas * (np.abs(level) + (np.abs(normals @ axis) > NEAR_AXIS_COSINE))
    best = int(np.argmax(np.where(facing, scores, -1)))
    return normals[best] * np.sign(level[best])


def _largest_near(areas: np.ndarray, heights: np.ndarray, chosen: np.ndarray, extreme: float) -> int | None:
    """The largest of the chosen planes, unless samples lie well beyond it: a table is no floor."""
    candidates = chosen & (np.abs(heights - extreme) < 2 * FACING_TOLERANCE_M)
    return int(np.argmax(np.where(candidates, areas, -1))) if candidates.any() else None


def _is_outdoors(open_fraction: float, height: float, metric: bool) -> bool:
    """Whether there is a sky.

    Args:
        open_fraction: of what is above the horizon, in which nothing was measured.
        height: of the highest surfaces above the cameras.
        metric: whether that is in metres.
    """
    if not metric:
        return open_fraction > UNSCALED_OPEN_FRACTION
    return any(open_fraction > least and height > metres for least, metres in OUTDOORS)


def _open_fraction(views: Sequence[SampledView], up: np.ndarray) -> float:
    """Fraction of the lines of sight above the horizon on which nothing was measured; 0 if there are none."""
    unmeasured = count = 0
    for view in views:
        above = view.directions @ up > HORIZON_SINE
        unmeasured += int((above & (view.depth <= 0)).sum())
        count += int(above.sum())
    return unmeasured / count if count else 0.0


def _main_axis(samples: PlaneSamples, up: np.ndarray, views: Sequence[SampledView]) -> np.ndarray:
    """(3,) horizontal direction that most vertical surfaces face, up to quarter turns."""
    first = np.cross(up, views[0].directions[0, 0])
    first /= max(float(np.linalg.norm(first)), 1e-9)
    second = np.cross(up, first)
    vertical = np.abs(samples.normals @ up) < MAX_WALL_SINE
    angles = np.arctan2(samples.normals[vertical] @ second, samples.normals[vertical] @ first)
    weights = samples.weights[vertical]
    mean = (weights * np.exp(4j * angles)).sum() / max(float(weights.sum()), 1e-9)
    if abs(mean) < MIN_ALIGNMENT:  # no direction prevails: that of the cameras
        rows, columns = views[0].depth.shape
        ahead = views[0].directions[rows // 2, columns // 2]
        angle = float(np.arctan2(ahead @ second, ahead @ first))
    else:
        angle = float(np.angle(mean)) / 4
    return np.cos(angle) * first + np.sin(angle) * second


def _along_largest_wall(axis: np.ndarray, up: np.ndarray, walls: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The axis turned to the normal of the largest wall that is nearly along or across it, which is more exact."""
    other = np.cross(up, axis)
    along, across = walls @ axis, walls @ other
    near = np.maximum(np.abs(along), np.abs(across)) > MIN_LEVEL_COSINE
    if not near.any():
        return axis
    wall = int(np.argmax(np.where(near, areas, -1)))
    normal = walls[wall] - (walls[wall] @ up) * up
    normal /= np.linalg.norm(normal)
    if abs(along[wall]) > abs(across[wall]):
        return normal * np.sign(along[wall])
    return np.cross(normal, up) * np.sign(across[wall])
