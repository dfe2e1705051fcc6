"""Whether the cells of a grid are what they say: calibration and completion against ground truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from worldstereo_ros.depth.estimators import DepthEstimator
from worldstereo_ros.evaluation.calibration_metrics import expected_calibration_error
from worldstereo_ros.evaluation.exploration import world_to_explore
from worldstereo_ros.evaluation.exploration_robot import (
    ROBOT,
    SENSOR,
    ExploringRobot,
    coarse,
    outside_cells,
    true_occupancy,
)
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.base import Pipeline
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.columns import find_columns, make_grid
from worldstereo_ros.planning.completion import complete, completion_chances
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.planning.occupancy_map import OccupancyMap
from worldstereo_ros.scenes import Scene, make_path, render_scene
from worldstereo_ros.world import WorldModel

VISIBLE = 0.55  # share of the cells to see at which completions are evaluated
SEEDS = 11
WALK = 80  # poses of a path of which a world model observes a few of the first half and imagines a few of the second
VIEW_CAMERA = Camera.from_fov(160, 120, math.radians(70))


@dataclass(frozen=True)
class CompletionScores:
    """Completed cells of some worlds against the truth.

    Attributes:
        cells: number of completed cells.
        visible: mean share of the cells to see that were seen.
        ece: expected calibration error of P(occupied) of completed cells; None if there are none.
        iou_free, iou_occupied: intersection over union of all cells called free, and called occupied, observed or
            completed, with the truth inside the worlds.
        iou_free_seen, iou_occupied_seen: the same of what was observed alone.
        iou_occupied_near, iou_occupied_seen_near: of occupied cells, where those count as one that lie side by side.
        false_free: share of cells called observed free in which there is an object.
        observed_occupied: share of cells called observed occupied in which there is an object.
    """

    cells: int
    visible: float
    ece: float | None
    iou_free: float
    iou_occupied: float
    iou_free_seen: float
    iou_occupied_seen: float
    iou_occupied_near: float
    iou_occupied_seen_near: float
    false_free: float
    observed_occupied: float


def half_seen(worlds: Sequence[tuple[str, int]], visible: float = VISIBLE) -> Iterator[ExploringRobot]:
    """Robots that saw about a share of their world, along a path that follows from the world alone."""
    for split, index in worlds:
        yield half_seen_scene(world_to_explore(split, index), visible)


def half_seen_scene(scene: Scene, visible: float = VISIBLE) -> ExploringRobot:
    """A robot that saw about a share of a world, along a path that follows from the world alone."""
    robot = ExploringRobot(scene)
    for pose in make_path(scene, "ground", 400, 0)[::3]:
        if robot.coverage >= visible:
            break
        robot.put(pose)
    return robot


def inside(robot: ExploringRobot) -> np.ndarray:
    """(Y, X) bool: cells within the bounds of the world."""
    return ~robot.outside


def completion_samples(robot: ExploringRobot) -> tuple[np.ndarray, np.ndarray]:
    """How probably the network says that unseen cells are occupied, uncalibrated (N,), and whether they are (N,)."""
    chance = completion_chances(robot.grid, calibrated=False)
    where = ~np.isnan(chance) & inside(robot)
    return chance[where], robot.truth.occupied[where]


def best_threshold(robots: Sequence[ExploringRobot]) -> float:
    """What the network must say, uncalibrated, for completed cells to be called occupied: with the largest overlap."""
    chance, right, seen = [], [], np.zeros(2)
    for robot in robots:
        p, within, occupied = completion_chances(robot.grid, calibrated=False), inside(robot), robot.truth.occupied
        where = ~np.isnan(p) & within
        chance.append(p[where])
        right.append(occupied[where])
        called = (robot.grid.state == CellState.OBSERVED_OCCUPIED) & within
        seen += np.array([(called & occupied).sum(), (called | occupied).sum()])
    p, y = np.concatenate(chance), np.concatenate(right)

    def overlap_from(threshold: float) -> float:
        called = p > threshold
        return float((seen[0] + (called & y).sum()) / (seen[1] + (called & ~y).sum()))

    return max(np.arange(0.1, 0.7, 0.02).round(2).tolist(), key=overlap_from)


def model_samples(
    scene: Scene, pipeline: Pipeline, estimator: DepthEstimator | None
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Evidence of a model in cells of a world, and whether they are occupied.

    A world model observes a few views of a walk and imagines those after them; with a depth estimator it is given no
    depth, too.

    Args:
        scene: the world. pipeline: imagines. estimator: estimates depth; None: only imagined cells.

    Returns:
        By "imagined" and "estimated": highest confidence of depth that ends in a cell, mean confidence of depth that
        passes through it, in 0..1, and whether it is occupied, (N,) each.
    """
    walk = make_path(scene, "ground", WALK, 0)
    given, asked = walk[: WALK // 2 : WALK // 10], walk[WALK // 2 :: WALK // 16]
    frames = render_scene(scene, VIEW_CAMERA, given, light="plain")
    views = [
        View(image.numpy(), VIEW_CAMERA, pose, depth.numpy(), stamp_ns=index)
        for index, (image, pose, depth) in enumerate(zip(frames.image, given, frames.depth, strict=True))
    ]
    out = {}
    world = WorldModel(pipeline, CloudMemory(voxel_size=0.02, max_points=500_000))
    for view in views:
        world.observe(view)
    occupancy = OccupancyMap.from_world(world, up=(0, 0, 1), max_range=SENSOR.max_range, include=walk[:, :3, 3])
    occupancy.add_hypothesis(world.imagine(asked, VIEW_CAMERA))
    out["imagined"] = _samples(scene, occupancy, occupancy.hypothesis_levels[-1])
    if estimator is not None:
        world = WorldModel(pipeline, CloudMemory(voxel_size=0.02, max_points=500_000), depth_estimator=estimator)
        for view in views:
            world.observe(replace(view, depth=None))
        occupancy = OccupancyMap.from_world(world, up=(0, 0, 1), max_range=SENSOR.max_range)
        out["estimated"] = _samples(scene, occupancy, occupancy.estimated_levels)
    return out


def _samples(
    scene: Scene, occupancy: OccupancyMap, levels: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    _, _, hit, free = find_columns(occupancy, ROBOT, 0.0).evidence(levels)
    grid = make_grid(occupancy, ROBOT, floor=0.0)
    where = ((hit > 0) | (free > 0)) & ~grid.observed & ~outside_cells(scene, grid)
    return hit[where], free[where], coarse(true_occupancy(scene, grid), grid)[where]


def score_completions(robots: Sequence[ExploringRobot], seeds: int = SEEDS) -> CompletionScores:
    """Scores the completions of the grids of some robots."""
    chance, right, counts, near, visible = [], [], np.zeros(8), np.zeros(4), []
    seen_free, seen_occupied = np.zeros(2), np.zeros(2)
    for robot in robots:
        grid, true, within = complete(robot.grid, range(seeds)), robot.truth.occupied, inside(robot)
        completed = grid.imagined & within
        chance.append(grid.occupied[completed])
        right.append(true[completed])
        visible.append(robot.coverage)
        counts += [*overlap(grid, true, within), *overlap(robot.grid, true, within)]
        near += [*near_overlap(grid, true, within), *near_overlap(robot.grid, true, within)]
        free = within & (grid.state == CellState.OBSERVED_FREE)
        occupied = within & (grid.state == CellState.OBSERVED_OCCUPIED)
        seen_free += [float(true[free].sum()), float(free.sum())]
        seen_occupied += [float(true[occupied].sum()), float(occupied.sum())]
    p, y = np.concatenate(chance), np.concatenate(right)
    ratio = counts[::2] / np.maximum(counts[1::2], 1)
    return CompletionScores(
        cells=len(p), visible=float(np.mean(visible)), ece=expected_calibration_error(p, y.astype(np.float64)),
        iou_free=float(ratio[0]), iou_occupied=float(ratio[1]), iou_free_seen=float(ratio[2]),
        iou_occupied_seen=float(ratio[3]), iou_occupied_near=float(near[0] / max(near[1], 1)),
        iou_occupied_seen_near=float(near[2] / max(near[3], 1)), false_free=float(seen_free[0] / max(seen_free[1], 1)),
        observed_occupied=float(seen_occupied[0] / max(seen_occupied[1], 1)),
    )  # fmt: skip


def overlap(grid: OccupancyGrid, true: np.ndarray, within: np.ndarray) -> list[float]:
    """Intersection and union of free cells, and of occupied cells, with the truth."""
    known = (grid.state != CellState.UNKNOWN) & within
    free, occupied = known & ~grid.called_occupied, known & grid.called_occupied
    out = []
    for called, is_so in ((free, ~true & within), (occupied, true & within)):
        out += [float((called & is_so).sum()), float((called | is_so).sum())]
    return out


def near_overlap(grid: OccupancyGrid, true: np.ndarray, within: np.ndarray) -> list[float]:
    """Intersection and union of occupied cells with the truth, where neighbours (eight) count as one cell."""
    called, true = grid.called_occupied & within, true & within
    called_right = float((called & ndimage.binary_dilation(true, np.ones((3, 3)))).sum())
    true_found = float((true & ndimage.binary_dilation(called, np.ones((3, 3)))).sum())
    shared = 0.5 * (called_right + true_found)
    return [shared, float(called.sum()) - called_right + float(true.sum()) - true_found + shared]
