"""Collision-free camera paths through scenes.

A path is a sequence of short random moves (straight, turn in place, curve, S-curve); moves that come too close to an
obstacle are rejected. World axes are x forward, y left, z up; poses are those of OpenCV cameras.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from worldstereo_ros.scenes.raytracing.motion import Times, check_times
from worldstereo_ros.scenes.raytracing.primitives import Primitives, Random
from worldstereo_ros.scenes.raytracing.scene import Scene
from worldstereo_ros.utils.errors import InputError

PATHS = ("ground", "drone", "orbit", "handheld")

CLEARANCE_M = {"ground": 0.25, "drone": 0.25, "orbit": 0.15, "handheld": 0.2}
"""Minimum distance of each kind of path to obstacles, metres."""


def camera_pose(position: np.ndarray, yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """(4, 4) float64 world_from_camera from a position, yaw (from x towards y), pitch (up) and roll, radians."""
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)])
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    down = np.cross(forward, level)
    c, s = math.cos(roll), math.sin(roll)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = c * level + s * down, c * down - s * level, forward
    pose[:3, 3] = position
    return pose


def clearance(scene: Scene, points: np.ndarray, times: Times | None = None) -> np.ndarray:
    """Distance from points to the nearest obstacle.

    Args:
        scene: the world.
        points: (N, 3) metres.
        times: (N,) seconds; with them moving objects count too, at their place at that time.

    Returns:
        (N,) float64 metres; 0 inside an obstacle. Spheres and cylinders count as their boxes, so the distance is never
        overestimated.
    """
    clear_distance = box_distance(scene.primitives.select(scene.primitives.solid), points)
    if times is None or not scene.moving_objects:
        return clear_distance
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    for mover in scene.moving_objects:
        # Move the points into the frame of the object at time 0.
        start_from_time = np.linalg.inv(mover.motion(check_times(times, len(points))).numpy())
        local = np.einsum("nij,nj->ni", start_from_time[:, :3, :3], points) + start_from_time[:, :3, 3]
        clear_distance = np.minimum(
            clear_distance, box_distance(scene.primitives.select(scene.primitives.body == mover.body), local)
        )
    return clear_distance


def box_distance(primitives: Primitives, points: np.ndarray) -> np.ndarray:
    """(N,) float64 distance in metres from points (N, 3) to the nearest primitive's box; 0 inside, inf without any."""
    if not len(primitives):
        return np.full(len(points), np.inf)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    centre, half, rotation = (getattr(primitives, name).numpy() for name in ("centre", "half", "rotation"))
    out = np.empty(len(points))
    for low in range(0, len(points), 4096):
        offset = points[low : low + 4096, None] - centre[None]
        local = np.einsum("npi,pij->npj", offset, rotation)
        out[low : low + 4096] = np.linalg.norm(np.maximum(np.abs(local) - half, 0.0), axis=-1).min(axis=1)
    return out


def make_path(scene: Scene, kind: str, count: int, seed: int, *, step: float = 0.12, turn: float = 0.14) -> np.ndarray:
    """Create a collision-free camera path inside the bounds of a scene.

    Args:
        scene: the world.
        kind: "ground" (wheeled robot: constant height of 0.2 to 1.2 m, straight runs, turns in place, S-curves),
            "drone" (moves in three dimensions and banks), "orbit" (around a point, looking at it) or "handheld" (a
            walking person: looks around, bobs, shakes).
        count: number of poses.
        seed: random seed; the same scene and seed give the same path.
        step: maximum distance between poses, metres.
        turn: maximum rotation between poses, radians.

    Returns:
        (count, 4, 4) float64 world_from_camera, OpenCV axes.

    Raises:
        InputError: the kind does not exist, `count` is below 1, or the scene has no free place to start.
    """
    if kind not in PATHS:
        raise InputError(f"There is no kind of path {kind!r}; choose one of {', '.join(PATHS)}.")
    if count < 1:
        raise InputError(f"The number of poses is {count}; expected at least 1.")
    random = Random(seed * 1_000_003 + scene.seed)
    if kind == "orbit":
        return _orbit(scene, count, random, step, turn)
    return _walk(scene, kind, count, random, step, turn)


def _free_start(scene: Scene, random: Random, radius: float, low: float, high: float, column: np.ndarray) -> np.ndarray:
    """A random free point with a height from `low` to `high`, free at the heights in `column` above it too."""
    (x0, y0, _), (x1, y1, top) = scene.bounds
    for attempt in range(40):
        points = np.array(
            [
                (
                    random.uniform(x0 + radius, x1 - radius),
                    random.uniform(y0 + radius, y1 - radius),
                    random.uniform(low, max(low, min(high, top - 0.3))),
                )
                for _ in range(24)
            ]
        )
        checked = points[:, None] * [1, 1, float(len(column) == 1 and column[0] == 0)] + column[:, None] * [[0, 0, 1]]
        free = clearance(scene, checked).reshape(len(points), -1).min(axis=1)
        # Prefer a place with some room to move; after many attempts accept any free place.
        good = np.flatnonzero(free > radius * (1.5 if attempt < 20 else 1.02))
        if len(good):
            return points[good[0]]
    raise InputError(f"Found no free place in the {scene.kind} with seed {scene.seed}; choose another seed.")


def _free_steps(at: np.ndarray, angle: float, free: Callable[[np.ndarray], np.ndarray]) -> int:
    """Number of free steps of 0.25 m in a direction, at most 14."""
    ahead = at + np.arange(1, 15)[:, None] * 0.25 * np.array([math.cos(angle), math.sin(angle), 0.0])
    return int(np.argmin(np.append(free(ahead), False)))


def _inside(scene: Scene, points: np.ndarray, margin: float) -> np.ndarray:
    """(N,) bool: inside the bounds of the scene, with a margin in metres."""
    low, high = (np.array(corner) for corner in scene.bounds)
    return ((points > low + np.array([margin, margin, 0.05])) & (points < high - margin)).all(axis=1)


def _draw_move(random: Random, kind: str, step: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """A random move: forward steps (n,) in metres and turns (n,) in radians."""
    style = random.integer(0, 5)
    if kind == "ground" and style == 0:
        n = random.integer(4, 12)
        return np.zeros(n), np.full(n, random.choice([-1, 1]) * turn * random.uniform(0.6, 1.0))
    n = random.integer(6, 16)
    ahead = np.full(n, step * random.uniform(0.6, 1.0))
    if style <= 2:
        return ahead, np.full(n, random.normal(0.1 * turn) if style == 1 else 0.0)
    bend = turn * random.uniform(0.2, 0.7) * random.choice([-1, 1])
    if style == 3:
        return ahead, np.full(n, bend)
    # S-curve.
    return ahead, bend * np.sin(2 * math.pi * (np.arange(n) + 0.5) / n)


def _walk(scene: Scene, kind: str, count: int, random: Random, step: float, turn: float) -> np.ndarray:
    radius = CLEARANCE_M[kind]
    low, high = {"ground": (0.2, 1.2), "drone": (0.6, 2.2), "handheld": (1.35, 1.7)}[kind]
    column = np.zeros((1, 3))
    if kind == "ground":
        # The robot's body below the camera must be free too, down to just above the floor.
        height = random.uniform(low, high)
        foot = radius + 0.05
        column = np.zeros((max(1, math.ceil((height - foot) / 0.3) + 1), 3))
        column[:, 2] = np.linspace(foot, max(height, foot), len(column))
        at = _free_start(scene, random, radius, foot, foot, column[:, 2])
        at[2] = 0.0
    else:
        at = _free_start(scene, random, radius, low, high, column[:, 2])

    def free(points: np.ndarray) -> np.ndarray:
        checked = points[:, None] + column[None]
        # Handheld cameras sway by a few centimetres.
        room = clearance(scene, checked.reshape(-1, 3)).reshape(len(points), -1).min(1) > radius + 0.03
        return room & _inside(scene, checked[:, -1], radius)

    start = max((random.uniform(-math.pi, math.pi) for _ in range(6)), key=lambda angle: _free_steps(at, angle, free))
    positions, yaws = [at], [start]
    while len(positions) < count:
        position, ahead = positions[-1], yaws[-1]
        choices: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(12):
            forward, turns = _draw_move(random, kind, step, turn)
            slope = random.normal(0.25) if kind == "drone" else 0.0
            angles = ahead + np.cumsum(turns)
            moves = np.stack([forward * np.cos(angles), forward * np.sin(angles), slope * forward], axis=1)
            points = position + np.cumsum(moves, axis=0)
            if free(points).all():
                choices.append((points, angles))
            if len(choices) == 3:
                break
        if not choices:
            # No move is free: turn in place.
            for way in (-1, 1):
                n = random.integer(6, 14)
                choices.append((np.repeat(position[None], n, axis=0), ahead + way * turn * np.arange(1, n + 1)))
        # Choose the move with the most free space ahead.
        points, angles = max(choices, key=lambda move: _free_steps(move[0][-1], float(move[1][-1]), free))
        positions.extend(points)
        yaws.extend(angles)
    at, yaw = np.array(positions[:count]), np.array(yaws[:count])
    if kind == "ground":
        at[:, 2] = height
        pitch, roll = np.full(count, random.uniform(-0.2, 0.05)), np.zeros(count)
    else:
        time = np.arange(count)
        sway = [_smooth_noise(random, time, 24.0), _smooth_noise(random, time, 20.0), _smooth_noise(random, time, 17.0)]
        amount = 0.1 if kind == "drone" else 0.16
        pitch, roll = -0.08 + amount * sway[0], 0.35 * amount * sway[1]
        if kind == "drone":
            bank = np.gradient(yaw) if count > 1 else np.zeros(1)
            roll = roll + 0.6 * bank
        else:
            yaw = yaw + 0.25 * sway[2]
            bob = 0.02 * np.sin(2 * math.pi * time * step / 0.7)
            at = at + np.stack([0.01 * sway[1], 0.01 * sway[0], bob], axis=1)
            shake = np.array([[random.normal(0.004) for _ in range(3)] for _ in range(count)])
            yaw, pitch, roll = yaw + shake[:, 0], pitch + shake[:, 1], roll + shake[:, 2]
    return np.stack([camera_pose(*pose) for pose in zip(at, yaw, pitch, roll, strict=True)])


def _smooth_noise(random: Random, time: np.ndarray, period: float) -> np.ndarray:
    """(N,) smooth periodic noise between -1 and 1."""
    a, b = random.uniform(0, 6.28), random.uniform(0, 6.28)
    return 0.6 * np.sin(2 * math.pi * time / period + a) + 0.4 * np.sin(2 * math.pi * time / (0.43 * period) + b)


def _orbit(scene: Scene, count: int, random: Random, step: float, turn: float) -> np.ndarray:
    """Part of a circle around a random point, as far as it is free."""
    radius = CLEARANCE_M["orbit"]
    best: np.ndarray | None = None
    for _ in range(60):
        (x0, y0, _), (x1, y1, top) = scene.bounds
        centre = np.array(
            [random.uniform(0.6 * x0, 0.6 * x1), random.uniform(0.6 * y0, 0.6 * y1), random.uniform(0.3, 0.9)]
        )
        distance = random.uniform(0.8, min(2.8, 0.8 * max(x1 - x0, y1 - y0)))
        height = random.uniform(0.6, min(1.8, top - 0.4))
        angle_step = random.choice([-1, 1]) * min(turn, step / distance)
        angles = random.uniform(-math.pi, math.pi) + angle_step * np.arange(count)
        rise = 0.15 * np.sin(np.arange(count) * random.uniform(0.02, 0.08))
        points = centre + np.stack(
            [distance * np.cos(angles), distance * np.sin(angles), height - centre[2] + rise], axis=1
        )
        free = _inside(scene, points, radius) & (clearance(scene, points) > radius)
        length = int(np.argmin(np.append(free, False)))
        views = (
            np.stack(
                [
                    camera_pose(
                        p, math.atan2(*(centre - p)[1::-1]), math.atan2(centre[2] - p[2], math.hypot(*(centre - p)[:2]))
                    )
                    for p in points[: max(length, 1)]
                ]
            )
            if length
            else None
        )
        if views is not None and (best is None or len(views) > len(best)):
            best = views
        if best is not None and len(best) == count:
            return best
    if best is None or len(best) < 2:
        return _walk(scene, "handheld", count, random, step, turn)
    # Reverse direction where the circle is blocked.
    index = np.abs((np.arange(count) + len(best) - 1) % (2 * len(best) - 2) - (len(best) - 1))
    return best[index]
