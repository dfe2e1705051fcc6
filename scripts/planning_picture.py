#!/usr/bin/env python3
"""Draws the sheet of docs/concepts/planning.md: what a robot saw of a world, the completion, and paths with scores.

python scripts/planning_picture.py --out docs/images/planning.jpg
"""

import argparse
import math
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation.exploration_robot import SENSOR, ExploringRobot
from worldstereo_ros.evaluation.occupancy_calibration import half_seen
from worldstereo_ros.geometry.poses import interpolate_poses
from worldstereo_ros.io.images import write_image
from worldstereo_ros.planning import CellState, OccupancyGrid, score_paths
from worldstereo_ros.planning.completion import complete
from worldstereo_ros.scenes.paths import camera_pose

SCALE, GAP = 5, 12  # pixels of a cell, and between the panels
COLOURS = {
    CellState.UNKNOWN: (120, 124, 130),
    CellState.IMAGINED_FREE: (255, 226, 178),
    CellState.IMAGINED_OCCUPIED: (214, 120, 30),
    CellState.ESTIMATED: (170, 140, 210),
    CellState.OBSERVED_FREE: (250, 250, 250),
    CellState.OBSERVED_OCCUPIED: (30, 34, 44),
}
PATH_COLOURS = ((20, 130, 60), (40, 90, 200), (200, 40, 40))


def draw_states(grid: OccupancyGrid) -> np.ndarray:
    """(H, W, 3) uint8 picture of the states, y up."""
    table = np.array([COLOURS[CellState(n)] for n in range(len(CellState))], np.uint8)
    return enlarged(table[grid.state])


def draw_chance(grid: OccupancyGrid) -> np.ndarray:
    """The same of P(occupied): dark is occupied, light is free."""
    return enlarged(np.repeat((255 * (1 - grid.occupied))[..., None], 3, axis=2).astype(np.uint8))


def enlarged(image: np.ndarray) -> np.ndarray:
    """Cells as squares, the y axis up."""
    return np.ascontiguousarray(image[::-1].repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def fan(robot: ExploringRobot) -> dict[str, np.ndarray]:
    """Three ways from the robot: ahead, and bent to either side."""
    out = {}
    for name, bend in (("left", 1.3), ("ahead", 0.0), ("right", -1.3)):
        poses = []
        x, y = robot.x, robot.y
        for share in np.linspace(0, 1, 30):
            yaw = robot.yaw + bend * share
            x, y = x + 0.1 * math.cos(yaw), y + 0.1 * math.sin(yaw)
            poses.append(camera_pose(np.array([x, y, 0.5]), yaw))
        out[name] = interpolate_poses(np.stack(poses), 16)
    return out


def main() -> None:
    """Draws and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=0, help="world of the demo split")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    robot = next(half_seen([("demo", options.world)], 0.5))
    completed = complete(robot.grid, range(11))
    paths = fan(robot)
    scores = score_paths(completed, paths, sensor=SENSOR)
    truth = np.where(robot.truth.occupied[..., None], (30, 34, 44), (250, 250, 250)).astype(np.uint8)
    panels = [draw_states(robot.grid), draw_states(completed), draw_chance(completed), enlarged(truth)]
    for score, colour in zip(scores.scores, PATH_COLOURS, strict=True):
        rows, columns, _ = completed.cells_at(paths[score.name][:, :3, 3])
        points = np.stack([(columns + 0.5) * SCALE, (len(completed.state) - rows - 0.5) * SCALE], axis=1).astype(
            np.int32
        )
        cv2.polylines(panels[1], [points[:, None]], False, colour, 3 if score is scores.winner else 1, cv2.LINE_AA)
        print(f"{score.name}: collision {score.collision_probability:.2f}, new area {score.new_area:.1f} m²")
    print(scores.reason)
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    sheet = panels[0]
    for panel in panels[1:]:
        sheet = np.hstack([sheet, gap, panel])
    write_image(options.out, sheet)


if __name__ == "__main__":
    main()
