"""Camera paths made from captures: smoothly between them, and around what they look at."""

from __future__ import annotations

import itertools

import numpy as np

from worldstereo_ros.geometry.poses import check_poses, interpolate_poses
from worldstereo_ros.geometry.trajectories import look_at
from worldstereo_ros.utils.errors import InputError

CAPTURE_PATHS = ("between", "around", "spiral-around", "dolly")
DENSE_STEPS = 24  # between two captures, before poses are spread evenly
DOLLY_SHARE = 0.4  # of the distance to the point that is looked at, in and out
SPIRAL_HEIGHT = 0.25  # of the orbit's radius, up and down
MARGIN = 1.15  # of the captures' arc, that a path around them covers
MAX_PARALLEL = 0.05  # smallest curvature of the sum of optical axes that fixes a point along them
MAX_STARTS = 24  # of the search for a short way through the captures
RADIAN_SHARE = 0.5  # length of a radian of rotation, in the captures' median distance from their middle


def capture_path(
    name: str, world_from_camera: np.ndarray, count: int, *, up: np.ndarray, angle: float | None = None
) -> np.ndarray:
    """Builds a camera path from the poses of captures.

    Args:
        name: one of `CAPTURE_PATHS`. between: through all captures, in the order that makes the way short; around: an
            arc around the point that the captures look at; spiral-around: the same, going up and down; dolly: from
            before the middle capture's place to behind it, towards that point.
        world_from_camera: (N, 4, 4) poses of the captures in any order; N >= 2 for between.
        count: number of poses.
        up: (3,) up direction of the world.
        angle: of the arc, radians; None = what the captures span, and a little more.

    Returns:
        (count, 4, 4) float64 world_from_camera.

    Raises:
        InputError: the name is unknown, there are too few captures, or they look at no common point.
    """
    poses = check_poses(world_from_camera, "The captures")
    if count < 1:
        raise InputError(f"The number of poses is {count}; at least 1 was expected.")
    if name == "between":
        if len(poses) < 2:
            raise InputError("A path between captures needs at least two of them; one came.")
        return path_between(poses[walk_order(poses)], count)
    if name not in CAPTURE_PATHS:
        raise InputError(f"The path '{name}' is unknown; one of {', '.join(CAPTURE_PATHS)} was expected.")
    target = common_target(poses)
    if name == "dolly":
        return _dolly(poses, target, count)
    height = SPIRAL_HEIGHT if name == "spiral-around" else 0.0
    return _orbit(poses, target, count, np.asarray(up, np.float64), angle, height)


def path_between(world_from_camera: np.ndarray, count: int) -> np.ndarray:
    """Interpolates ordered poses smoothly and returns evenly spaced ones.

    Positions follow a centripetal Catmull-Rom spline, which has no loops or cusps (Yuksel et al. 2011), rotations a
    spline of continuous angular velocity; both pass through every pose.

    Args:
        world_from_camera: (N, 4, 4), N >= 1; repeated poses are allowed.
        count: number of poses; both ends are included.

    Returns:
        (count, 4, 4) float64.

    Raises:
        InputError: see `check_poses`, or the count is less than 1.
    """
    from scipy.spatial.transform import Rotation, RotationSpline

    poses = check_poses(world_from_camera, "The captures")
    rotations = Rotation.from_matrix(poses[:, :3, :3])
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    turns = (rotations[:-1].inv() * rotations[1:]).magnitude() if len(poses) > 1 else np.zeros(0)
    unit = _radian_length(poses[:, :3, 3])
    keep = np.concatenate([[True], steps + unit * turns > 1e-9])
    poses, steps, turns = poses[keep], steps[keep[1:]], turns[keep[1:]]
    if len(poses) < 3:
        return interpolate_poses(poses, count, metres_per_radian=unit)
    times = np.concatenate([[0.0], np.cumsum(np.sqrt(steps + unit * turns))])  # centripetal: the root of the length
    samples = np.concatenate(
        [np.linspace(a, b, DENSE_STEPS, endpoint=False) for a, b in itertools.pairwise(times)] + [times[-1:]]
    )
    dense = np.tile(np.eye(4), (len(samples), 1, 1))
    dense[:, :3, 3] = _catmull_rom(times, poses[:, :3, 3], samples)
    dense[:, :3, :3] = RotationSpline(times, Rotation.from_matrix(poses[:, :3, :3]))(samples).as_matrix()
    return interpolate_poses(dense, count, metres_per_radian=unit)


def walk_order(world_from_camera: np.ndarray) -> np.ndarray:
    """Orders poses so that the way through all of them is short: nearest next, then turned round where shorter (2-opt).

    Args:
        world_from_camera: (N, 4, 4) in any order.

    Returns:
        (N,) int64 indices. The result does not depend on the order of the input, up to its direction, unless ways are
        equally long.
    """
    poses = check_poses(world_from_camera, "The captures")
    centres = poses[:, :3, 3]
    cosine = np.clip(np.einsum("ix,jx->ij", poses[:, :3, 2], poses[:, :3, 2]), -1, 1)
    cost = np.linalg.norm(centres[:, None] - centres[None], axis=2) + _radian_length(centres) * np.arccos(cosine)
    farthest_first = np.argsort(-cost.sum(axis=1), kind="stable")[:MAX_STARTS]
    ways = [_improve(_nearest_next(cost, int(start)), cost) for start in farthest_first]
    lengths = [cost[way[:-1], way[1:]].sum() for way in ways]
    return ways[int(np.argmin(lengths))]


def common_target(world_from_camera: np.ndarray) -> np.ndarray:
    """Finds the point that cameras look at: nearest to all optical axes, in the sense of least squares.

    Args:
        world_from_camera: (N, 4, 4).

    Returns:
        (3,) float64 in the world.

    Raises:
        InputError: the optical axes are parallel, or the point lies behind most of the cameras, as for one camera or
            cameras that look outwards.
    """
    poses = check_poses(world_from_camera, "The captures")
    axes, centres = poses[:, :3, 2], poses[:, :3, 3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    curvature = across.mean(axis=0)
    if np.linalg.eigvalsh(curvature)[0] < MAX_PARALLEL**2:
        raise InputError(
            "The captures look in the same direction, so there is no point that all of them look at. Use the preset "
            "orbit, whose point lies ahead of the last view, or a path of your own."
        )
    target = np.linalg.solve(curvature, np.einsum("nij,nj->i", across, centres) / len(poses))
    ahead = ((target - centres) * axes).sum(axis=1) > 0
    if ahead.mean() < 0.75:
        raise InputError(
            f"{int((~ahead).sum())} of {len(ahead)} captures look away from the point that is nearest to all their "
            "optical axes, so there is nothing to go around. Use the path between them, or one of your own."
        )
    return target


def _orbit(poses, target, count: int, up: np.ndarray, angle: float | None, height: float) -> np.ndarray:
    """An arc at the captures' median distance and height, centred on their middle direction."""
    if np.linalg.norm(up) < 1e-9:
        raise InputError("The up direction has no length.")
    up = up / np.linalg.norm(up)
    offsets = poses[:, :3, 3] - target
    level = offsets @ up
    flat = offsets - level[:, None] * up
    radius = float(np.median(np.linalg.norm(flat, axis=1)))
    if radius < 1e-9:
        raise InputError("The captures are straight above what they look at; there is no arc around it.")
    middle = flat.sum(axis=0)
    if np.linalg.norm(middle) < 1e-6 * radius * len(poses):  # all around: start anywhere
        middle = flat[0]
    ahead = middle / np.linalg.norm(middle)
    side = np.cross(up, ahead)
    bearings = np.arctan2(flat @ side, flat @ ahead)
    low, high = float(bearings.min()), float(bearings.max())
    if angle is not None:
        low, high = 0.5 * (low + high - angle), 0.5 * (low + high + angle)
    else:
        extra = 0.5 * (MARGIN - 1) * (high - low)
        low, high = low - extra, high + extra
        if high - low < 1e-6:
            raise InputError("All captures have the same bearing; give the angle of the arc around what they look at.")
    swing = np.linspace(0, 1, count)
    path = []
    for share in swing:
        bearing = low + share * (high - low)
        lift = float(np.median(level)) + height * radius * np.sin(4 * np.pi * share)
        position = target + radius * (np.cos(bearing) * ahead + np.sin(bearing) * side) + lift * up
        path.append(look_at(position, target, up=up))
    return np.stack(path)


def _dolly(poses, target, count: int) -> np.ndarray:
    """Along the optical axis of the capture in the middle: from farther away to nearer than it."""
    centre = np.median(poses[:, :3, 3], axis=0)
    middle = poses[int(np.linalg.norm(poses[:, :3, 3] - centre, axis=1).argmin())]
    distance = float((target - middle[:3, 3]) @ middle[:3, 2])
    if distance <= 0:
        raise InputError("The capture in the middle looks away from the others' common point; it cannot near it.")
    path = np.tile(middle, (count, 1, 1))
    path[:, :3, 3] += np.linspace(-DOLLY_SHARE, DOLLY_SHARE, count)[:, None] * distance * middle[:3, 2]
    return path


def _radian_length(centres: np.ndarray) -> float:
    """Length that a radian of rotation counts as; 1 where all positions are the same."""
    spread = float(np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)))
    return RADIAN_SHARE * spread if spread > 1e-9 else 1.0


def _catmull_rom(times: np.ndarray, points: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(M, 3) points of a Catmull-Rom spline with the knots `times`, by the pyramid of Barry and Goldman (1988)."""
    before, after = 2 * times[0] - times[1], 2 * times[-1] - times[-2]
    t = np.concatenate([[before], times, [after]])
    p = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    at = np.clip(np.searchsorted(times, samples, side="right") - 1, 0, len(times) - 2)
    s = samples[:, None]

    def mix(a, b, first, second):
        ta, tb = t[at + first][:, None], t[at + second][:, None]
        return ((tb - s) * a + (s - ta) * b) / (tb - ta)

    a1, a2, a3 = (mix(p[at + k], p[at + k + 1], k, k + 1) for k in range(3))
    return mix(mix(a1, a2, 0, 2), mix(a2, a3, 1, 3), 1, 2)


def _nearest_next(cost: np.ndarray, start: int) -> np.ndarray:
    left = np.ones(len(cost), bool)
    way = [start]
    left[start] = False
    while left.any():
        way.append(int(np.where(left, cost[way[-1]], np.inf).argmin()))
        left[way[-1]] = False
    return np.array(way, np.int64)


def _improve(way: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Reverses parts of an open way while that shortens it."""
    count, improved = len(way), True
    while improved:
        improved = False
        for i in range(-1, count - 2):
            # Reversing i+1 .. j replaces the edges (i, i+1) and (j, j+1); at the ends there is only one of them.
            j = np.arange(i + 2, count)
            first_old = cost[way[i], way[i + 1]] if i >= 0 else 0.0
            first_new = cost[way[i], way[j]] if i >= 0 else np.zeros(len(j))
            after = np.minimum(j + 1, count - 1)
            last_old = np.where(j + 1 < count, cost[way[j], way[after]], 0.0)
            last_new = np.where(j + 1 < count, cost[way[i + 1], way[after]], 0.0)
            gain = first_old + last_old - first_new - last_new
            best = int(gain.argmax())
            if gain[best] > 1e-9:
                way[i + 1 : j[best] + 1] = way[i + 1 : j[best] + 1][::-1].copy()
                improved = True
    return way
