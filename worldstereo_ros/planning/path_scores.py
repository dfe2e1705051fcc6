"""Scores of several plans at once: collision, clearance, what is imagined of them, and what they would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.planning.reasons import why_first
from worldstereo_ros.planning.score_types import GOOD_CLEARANCE_M, PathScore, PathScores, ScoreWeights
from worldstereo_ros.planning.travel import footprint_maximum
from worldstereo_ros.planning.visibility import (
    OBSTACLE_LENGTH_M,
    Sensor,
    gain_of,
    opacity,
    seen_from,
    uncertainty,
    yaws_of,
)
from worldstereo_ros.utils.errors import InputError

MAX_PATHS, MAX_POSES = 1000, 100_000  # of all paths together
MAX_SAMPLES = 2_000_000  # along all paths, a cell apart
MAX_VIEWS = 64  # poses of a path from which visibility is computed


def score_paths(
    grid: OccupancyGrid,
    paths: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    *,
    sensor: Sensor | None = None,
    weights: ScoreWeights | None = None,
) -> PathScores:
    """Scores K paths on a grid.

    A path collides where a cell of the robot's footprint is occupied. Along `OBSTACLE_LENGTH_M` the highest probability
    counts, since cells of one obstacle are not independent; stretches are taken as independent within a hypothesis, and
    the probability of the path is the mean over the hypotheses.

    Args:
        grid: what is known, such as `planning.world_grid` makes of a world model.
        paths: name -> (N, 4, 4) world_from_camera of the robot's camera along the path, metres; or a sequence of
            those, named by their number.
        sensor: what the robot sees from each pose; None: 70 degrees, 4 m.
        weights: of the score; None: the default.

    Returns:
        A score for each path, and the winner.

    Raises:
        InputError: there is no path, one is empty or not finite, or lies outside the map as a whole; there are too
            many paths or poses; or lengths are no metres.
    """
    named = _checked(paths)
    if not grid.metric:
        raise InputError("The unit of the map is arbitrary, not metres; a robot's size means nothing in it.")
    if not np.isfinite(grid.occupied).all():
        raise InputError("The grid has probabilities that are not finite.")
    sensor, weights = sensor or Sensor(), weights or ScoreWeights()
    layers = _Layers(grid)
    scores = [_score(name, poses, layers, sensor) for name, poses in named.items()]
    values = _weighted(scores, weights)
    scores = [replace(score, score=float(value)) for score, value in zip(scores, values, strict=True)]
    best = int(np.argmax(values))
    return PathScores(scores, best, why_first(scores, best), len(grid.hypotheses))


def _checked(paths: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    items = paths.items() if isinstance(paths, Mapping) else enumerate(paths)
    named = {str(name): np.asarray(poses) for name, poses in items}
    if not named:
        raise InputError("There is no path to score; at least one was expected.")
    if len(named) > MAX_PATHS:
        raise InputError(f"There are {len(named)} paths; at most {MAX_PATHS} are scored at once.")
    total = sum(len(poses) for poses in named.values() if poses.ndim)
    if total > MAX_POSES:
        raise InputError(f"The paths have {total} poses; at most {MAX_POSES} are scored at once. Thin them out.")
    return {name: check_poses(poses, f"The path '{name}'") for name, poses in named.items()}


class _Layers:
    """What scoring a path looks up, computed once for all paths."""

    def __init__(self, grid: OccupancyGrid) -> None:
        self.grid = grid
        radius = grid.robot.radius / grid.resolution
        self.collision = footprint_maximum(grid.hypotheses, radius)
        likely = grid.called_occupied
        if likely.any():
            # The distance between the centres of two cells, less half of the occupied one.
            gap = ndimage.distance_transform_edt(~likely) * grid.resolution - 0.5 * grid.resolution
            self.clearance = np.maximum(gap - grid.robot.radius, 0).astype(np.float32)
        else:
            self.clearance = np.full(likely.shape, np.inf, np.float32)
        self.modelled = _mean_around(((grid.state > 0) & ~grid.observed).astype(np.float32), radius)
        self.unknown = _mean_around((grid.state == 0).astype(np.float32), radius)
        self.bits, self.opaque = uncertainty(grid), opacity(grid)
        self.prior = float(grid.hypotheses[:, grid.state == 0].mean()) if (grid.state == 0).any() else 0.5


def _mean_around(values: np.ndarray, radius: float) -> np.ndarray:
    size = 2 * int(radius) + 1
    return ndimage.uniform_filter(values, size, mode="nearest")


def _score(name: str, poses: np.ndarray, layers: _Layers, sensor: Sensor) -> PathScore:
    grid, count = layers.grid, len(poses)
    flat = poses[:, :3, 3] @ grid.grid_from_world.T
    rows, columns, inside = grid.cells_at(poses[:, :3, 3])
    if not inside.any():
        Y, X = grid.state.shape
        x, y = grid.origin
        raise InputError(
            f"The path '{name}' lies outside the map, which reaches from ({x:.2f}, {y:.2f}) to "
            f"({x + X * grid.resolution:.2f}, {y + Y * grid.resolution:.2f}) m; it starts at ({flat[0, 0]:.2f}, "
            f"{flat[0, 1]:.2f}). Is it given in the frame of the map?"
        )
    sampled, stretch = _samples(name, flat, grid.resolution)
    place = np.floor((sampled[:, :2] - np.array(grid.origin)) / grid.resolution).astype(np.int64)
    within = ((place >= 0) & (place < grid.state.shape[::-1])).all(axis=1)
    i, j = place[within].T[::-1]
    collision = np.full((len(grid.hypotheses), len(sampled)), layers.prior, np.float32)
    collision[:, within] = layers.collision[:, i, j]
    clear = np.full(len(sampled), np.inf, np.float32)
    clear[within] = layers.clearance[i, j]
    modelled, unknown = np.zeros(len(sampled), np.float32), np.ones(len(sampled), np.float32)
    modelled[within], unknown[within] = layers.modelled[i, j], layers.unknown[i, j]
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    at_pose = np.append(starts[1:], len(sampled)) - 1
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(sampled[:, :2], axis=0).T))])
    blocks = np.flatnonzero(np.diff(np.floor(along / OBSTACLE_LENGTH_M), prepend=-1))
    # Rays start where the cameras are, also beyond the border of the map: there they see nothing of it.
    looking = np.unique(np.linspace(0, count - 1, min(count, MAX_VIEWS)).round().astype(np.int64))
    looking = looking[inside[looking]]
    yaws = yaws_of(grid, poses)
    seen = np.zeros(grid.state.shape, np.float32)
    gain, area = np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32)
    for index in looking:
        alone = np.zeros_like(seen)
        one = slice(index, index + 1)
        seen_from(layers.opaque, grid.resolution, rows[one], columns[one], yaws[one], sensor, alone)
        gain[index], area[index] = gain_of(grid, alone, layers.bits)
        np.maximum(seen, alone, out=seen)
    total_gain, total_area = gain_of(grid, seen, layers.bits)
    return PathScore(
        name=name,
        length=float(along[-1]),
        collision_probability=float((1 - np.prod(1 - np.maximum.reduceat(collision, blocks, axis=1), axis=1)).mean()),
        clearance=float(clear.min()),
        imagined_share=float(modelled.mean()),
        unknown_share=float(unknown.mean()),
        information_gain=total_gain,
        new_area=total_area,
        score=0.0,
        outside=int((~inside).sum()),
        pose_collision=np.maximum.reduceat(collision, starts, axis=1).mean(axis=0),
        pose_clearance=np.minimum.reduceat(clear, starts),
        pose_imagined=modelled[at_pose],
        pose_unknown=unknown[at_pose],
        pose_gain=gain,
        pose_new_area=area,
    )


def _samples(name: str, flat: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (M, 3) along a path, at most half a cell apart, and the pose (M,) that each leads to."""
    steps = np.hypot(*np.diff(flat[:, :2], axis=0).T) if len(flat) > 1 else np.zeros(0)
    counts = np.maximum(1, np.ceil(2 * steps / resolution)).astype(np.int64)
    if counts.sum() > MAX_SAMPLES:
        raise InputError(
            f"The path '{name}' is {steps.sum():.0f} m long, too long for cells of {resolution:g} m. Is it in metres?"
        )
    pose = np.repeat(np.arange(1, len(flat)), counts)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]) if len(counts) else np.zeros(0, np.int64)
    share = (np.arange(len(pose)) - np.repeat(first, counts) + 1) / np.repeat(counts, counts)
    points = flat[pose - 1] + share[:, None] * (flat[pose] - flat[pose - 1])
    return np.concatenate([flat[:1], points]), np.concatenate([[0], pose])


def _weighted(scores: Sequence[PathScore], weights: ScoreWeights) -> np.ndarray:
    """(K,) weighted sums."""

    def relative(values: list[float]) -> np.ndarray:
        array = np.array(values)
        return array / max(float(array.max()), 1e-9)

    clearance = np.minimum([score.clearance for score in scores], GOOD_CLEARANCE_M) / GOOD_CLEARANCE_M
    return (
        -weights.collision * np.array([score.collision_probability for score in scores])
        + weights.clearance * clearance
        - weights.imagined * np.array([score.imagined_share + score.unknown_share for score in scores])
        + weights.gain * relative([score.information_gain for score in scores])
        - weights.length * relative([score.length for score in scores])
    )
