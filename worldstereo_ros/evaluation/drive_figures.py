"""The figures of a drive: how fast the robot was where, what it knew, and how near it came to what is really there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from worldstereo_ros.scenes.kinds.corner import CornerWorld
from worldstereo_ros.scenes.paths import box_distance
from worldstereo_ros.visualization.drive_recording import DriveRecording, DriveSample

OBSTACLE_M = 0.35  # around the middle of the obstacle; an occupied cell there is it
OCCUPIED_FROM = 50  # percent
BODY_HEIGHTS_M = (0.15, 0.35, 0.55)  # of the robot at which it may touch something
MIN_SLOW_S = 0.5  # a shorter limit is not told of


def compute_drive_figures(recording: DriveRecording, world: CornerWorld) -> dict[str, Any]:
    """Computes the figures of drive.json.

    Args:
        recording: the drive, with at least one sample.
        world: the world that it was in.

    Returns:
        `full_speed`, `mean_speed`, `top_speed_before_corner` and `speed_at_corner` (m/s), `travel_m`, `seconds`,
        `slow` (each time that the mask limited the speed), `obstacle_seen` (when what stands behind the corner came
        into the map, and how fast and how far away the robot was), `closest_m` (from its circle to anything),
        `collisions`, `paths` (which it took when, and why), `messages` (how many of each topic), and `samples`.
    """
    samples = recording.samples
    places = np.array([[sample.x, sample.y] for sample in samples])
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    to_corner = np.linalg.norm(places - world.route[1], axis=1)
    at_corner = int(np.argmin(to_corner))
    gaps = _gaps(world, places, recording.radius)
    return {
        "full_speed": recording.full_speed,
        "mean_speed": round(float(steps.sum()) / max(samples[-1].seconds, 1e-9), 3),
        "top_speed_before_corner": round(max(sample.speed for sample in samples[: at_corner + 1]), 3),
        "speed_at_corner": round(samples[at_corner].speed, 3),
        "travel_m": round(float(steps.sum()), 2),
        "seconds": round(samples[-1].seconds, 1),
        "slow": _slow_stretches(samples, to_corner, at_corner),
        "obstacle_seen": _obstacle_seen(recording, world),
        "closest_m": round(float(gaps.min()), 3),
        "collisions": int(((gaps <= 0) & (np.roll(gaps, 1) > 0)).sum()),
        "imagined_views": len(recording.imagined),
        "paths": _paths(recording),
        "messages": dict(sorted(recording.messages.items())),
        "samples": [
            {
                "seconds": round(sample.seconds, 2), "x": round(sample.x, 3), "y": round(sample.y, 3),
                "yaw": round(sample.yaw, 3), "speed": round(sample.speed, 3), "limit": round(sample.limit, 3),
            }
            for sample in samples
        ],
    }  # fmt: skip


def _gaps(world: CornerWorld, places: np.ndarray, radius: float) -> np.ndarray:
    """(N,) metres from the robot's circle at places (N, 2) to the nearest object; 0 where it touches one."""
    points = np.concatenate([np.column_stack([places, np.full(len(places), height)]) for height in BODY_HEIGHTS_M])
    primitives = world.scene.primitives
    above_floor = primitives.select(primitives.solid & (primitives.centre[:, 2] > 0))
    return np.maximum(box_distance(above_floor, points).reshape(len(BODY_HEIGHTS_M), -1).min(axis=0) - radius, 0)


def _slow_stretches(samples: list[DriveSample], to_corner: np.ndarray, at_corner: int) -> list[dict[str, Any]]:
    """The times at which the mask limited the speed."""
    limited = np.array([sample.limit < 1 for sample in samples])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], limited, [False]]).astype(int)))
    out = []
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        last = min(int(end), len(samples) - 1)
        if samples[last].seconds - samples[start].seconds < MIN_SLOW_S:
            continue
        part = samples[start:end]
        out.append(
            {
                "from_s": round(samples[start].seconds, 1),
                "until_s": round(samples[last].seconds, 1),
                "limit": round(min(sample.limit for sample in part), 3),
                "speed_before": round(part[0].speed, 3),
                "lowest_speed": round(min(sample.speed for sample in part), 3),
                "before_corner_m": round(float(to_corner[start]), 2) if start <= at_corner else None,
            }
        )
    return out


def _obstacle_seen(recording: DriveRecording, world: CornerWorld) -> dict[str, float] | None:
    """When the map first had an observed, occupied cell where the obstacle stands; None if it never had."""
    for sample in recording.samples:
        if sample.map < 0:
            continue
        grid = recording.maps[sample.map]
        rows, columns = np.nonzero((grid.source == 0) & (grid.graded >= OCCUPIED_FROM))
        centres = grid.low + (np.stack([columns, rows], axis=1) + 0.5) * grid.resolution
        if (np.linalg.norm(centres - world.obstacle, axis=1) < OBSTACLE_M).any():
            away = math.hypot(sample.x - world.obstacle[0], sample.y - world.obstacle[1])
            return {
                "seconds": round(sample.seconds, 1),
                "distance_m": round(away, 2),
                "speed": round(sample.speed, 3),
            }
    return None


def _paths(recording: DriveRecording) -> list[dict[str, Any]]:
    """The paths that the robot took, one entry each time that it chose another."""
    out: list[dict[str, Any]] = []
    for choice in recording.choices:
        if not out or out[-1]["taken"] != choice.taken:
            chances = {name: round(chance, 3) for name, chance in choice.collision.items()}
            out.append(
                {
                    "seconds": round(choice.seconds, 1), "taken": choice.taken, "best": choice.winner,
                    "reason": choice.reason, "collision_probability": chances,
                }
            )  # fmt: skip
    return out
