#!/usr/bin/env python3
"""Draws the picture of docs/guides/explore.md: what a robot saw, the next best views, and the map after the first.

python scripts/explore_picture.py docs/images/explore.jpg
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation.exploration_robot import SENSOR, ExploringRobot
from worldstereo_ros.io.images import write_image
from worldstereo_ros.planning import CellState, OccupancyGrid, RankedView, next_best_view
from worldstereo_ros.planning.completion import complete_unknown
from worldstereo_ros.planning.next_view import snap
from worldstereo_ros.planning.travel import TravelField, traversable
from worldstereo_ros.scenes import make_scene, seed_of
from worldstereo_ros.visualization.text import PAPER, draw_text, text_width

SCALE, GAP, HEAD = 5, 14, 44  # pixels of a cell, between the panels, and above them
COLOURS = {
    CellState.UNKNOWN: (150, 154, 162), CellState.IMAGINED_FREE: (250, 214, 165),
    CellState.IMAGINED_OCCUPIED: (214, 120, 30), CellState.ESTIMATED: (170, 140, 210),
    CellState.OBSERVED_FREE: (252, 252, 252), CellState.OBSERVED_OCCUPIED: (38, 44, 58),
}  # fmt: skip
ROBOT, WAY, VIEW = (37, 120, 240), (37, 120, 240), (20, 140, 80)
SEEDS = range(3)
WIDTH = 1600  # of the picture


def draw(grid: OccupancyGrid) -> np.ndarray:
    """(H, W, 3) uint8 picture of the states, y up."""
    table = np.array([COLOURS[CellState(n)] for n in range(len(CellState))], np.uint8)
    return np.ascontiguousarray(table[grid.state][::-1].repeat(SCALE, axis=0).repeat(SCALE, axis=1))


def pixel(grid: OccupancyGrid, row: float, column: float) -> tuple[int, int]:
    """Of the centre of a cell in `draw`."""
    return int((column + 0.5) * SCALE), int((len(grid.state) - row - 0.5) * SCALE)


def draw_robot(image: np.ndarray, grid: OccupancyGrid, robot: ExploringRobot) -> None:
    """A blue disc of its size."""
    cv2.circle(image, pixel(grid, *robot.cell()), 3 * SCALE + 4, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(image, pixel(grid, *robot.cell()), 3 * SCALE, ROBOT, -1, cv2.LINE_AA)


def draw_view(image: np.ndarray, grid: OccupancyGrid, pose: np.ndarray, number: int) -> None:
    """What the camera would see, up to a metre, and the rank of the view."""
    row, column, _ = grid.cells_at(pose[None, :3, 3])
    x, y = pixel(grid, int(row[0]), int(column[0]))
    yaw = np.arctan2(pose[1, 2], pose[0, 2])
    angles = yaw + np.linspace(-0.5, 0.5, 9) * SENSOR.fov
    rim = np.stack([x + 16 * SCALE * np.cos(angles), y - 16 * SCALE * np.sin(angles)], axis=1)
    wedge = np.rint(np.concatenate([[[x, y]], rim])).astype(np.int32)
    layer = image.copy()
    cv2.fillPoly(layer, [wedge], VIEW, cv2.LINE_AA)
    cv2.addWeighted(layer, 0.3, image, 0.7, 0, image)
    cv2.polylines(image, [wedge], True, VIEW, 2, cv2.LINE_AA)
    cv2.circle(image, (x, y), 20, VIEW, -1, cv2.LINE_AA)
    draw_text(image, str(number), (x - 9, y + 10), 0.9, (255, 255, 255), 2)


def ranked(robot: ExploringRobot) -> tuple[list[RankedView], OccupancyGrid]:
    """The next best views, and the completed grid that they are of."""
    completed = complete_unknown(robot.grid, SEEDS)
    return next_best_view(completed, robot.pose, sensor=SENSOR, count=40), completed


def way(robot: ExploringRobot, pose: np.ndarray) -> np.ndarray:
    """(N, 2) cells of the shortest way to a pose."""
    grid = robot.grid
    free = traversable(grid)
    field = TravelField(free, *snap(free, *robot.cell(), grid.resolution), grid.resolution)
    rows, columns, _ = grid.cells_at(pose[None, :3, 3])
    return field.path_to(int(rows[0]), int(columns[0]))


def go(robot: ExploringRobot, pose: np.ndarray) -> None:
    """Drives to a pose and looks."""
    cells = way(robot, pose)
    if len(cells) > 1:
        robot.drive(cells, 100.0)
    robot.look(float(np.arctan2(pose[1, 2], pose[0, 2])))
    robot.refresh()


def main() -> None:
    """Draws and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--world", type=int, default=0, help="warehouse, by its number in the demo split")
    parser.add_argument("--steps", type=int, default=7, help="views that it took before")
    options = parser.parse_args()
    robot = ExploringRobot(make_scene("warehouse", seed_of("demo", options.world)))
    for _ in range(options.steps):
        views, _ = ranked(robot)
        go(robot, views[0].world_from_camera)
    grid = robot.grid
    views, completed = ranked(robot)
    shown = [views[0]]
    for view in views[1:]:  # others from nearly the same place say little
        apart = [np.linalg.norm(view.world_from_camera[:2, 3] - other.world_from_camera[:2, 3]) for other in shown]
        if min(apart) > 1.0 and len(shown) < 3:
            shown.append(view)
    cells = way(robot, shown[0].world_from_camera)
    panels = {"seen": draw(grid), "imagined, and where to look next": draw(completed)}
    first, second = panels.values()
    draw_robot(first, grid, robot)
    if len(cells) > 1:
        line = np.array([pixel(grid, *cell) for cell in cells], np.int32)
        cv2.polylines(second, [line[:, None]], False, WAY, 8, cv2.LINE_AA)
    draw_robot(second, grid, robot)
    for number, view in enumerate(shown, 1):
        draw_view(second, grid, view.world_from_camera, number)
        print(
            f"{number}: {view.information_gain:.0f} bits, {view.new_area:.1f} m² new, way {view.travel:.1f} m, "
            f"score {view.score:.0f}"
        )
    before, travel = robot.coverage, robot.travel
    go(robot, shown[0].world_from_camera)
    print(f"seen: {before:.0%} before, {robot.coverage:.0%} after {robot.travel - travel:.1f} m more")
    panels["after it went to 1"] = draw(robot.grid)
    draw_robot(panels["after it went to 1"], robot.grid, robot)
    truth = np.where(robot.truth.occupied[..., None], COLOURS[CellState.OBSERVED_OCCUPIED], (252, 252, 252))
    truth[robot.outside & ~robot.truth.occupied] = COLOURS[CellState.UNKNOWN]
    panels["truth"] = truth[::-1].repeat(SCALE, axis=0).repeat(SCALE, axis=1).astype(np.uint8)
    columns_of = []
    for title, panel in panels.items():
        head = np.full((HEAD, panel.shape[1], 3), PAPER, np.uint8)
        draw_text(head, title, ((panel.shape[1] - text_width(title, 0.9)) // 2, 30), 0.9)
        columns_of += [np.vstack([head, panel]), np.full((panel.shape[0] + HEAD, GAP, 3), PAPER, np.uint8)]
    sheet = np.hstack(columns_of[:-1])
    height = round(WIDTH * sheet.shape[0] / sheet.shape[1])
    write_image(options.out, cv2.resize(sheet, (WIDTH, height), interpolation=cv2.INTER_AREA))


if __name__ == "__main__":
    main()
