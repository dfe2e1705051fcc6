"""Rules that decide where an exploring robot goes next, from what it knows.

`frontier` is the rule of explore_lite: of the frontiers, connected cells between seen free and unseen, the one of least
cost, three times the distance less the size. `mapex` is that of MapEx (Ho et al. 2024): the frontier with the largest
sum of the variance of an ensemble of completions, over the cells that are visible from it in the mean completion,
divided by the distance. `ours` looks from the nearest places that show what our completions say is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from worldstereo_ros.planning import OccupancyGrid
from worldstereo_ros.planning.completion import drawn_completions
from worldstereo_ros.planning.next_view import frontier_cells, snap
from worldstereo_ros.planning.travel import TravelField, disk
from worldstereo_ros.planning.visibility import Sensor, opacity, seen_from

MIN_FRONTIER_M = 0.75  # of explore_lite; smaller ones are visited when there are no others
POTENTIAL_SCALE, GAIN_SCALE = 3.0, 1.0  # of explore_lite's cost
COMPLETIONS = 3  # of MapEx's ensemble
PLACES, HEADINGS, NEAR_CELLS = 60, 8, 20  # of candidates of `ours`
MIN_AREA_M2, MAX_AREA_M2 = (
    0.15,
    4.0,
)  # of a view, below which it is not worth a way, and above which more does not count
METRES_PER_M2 = 0.5  # of the way that a square metre of what is shown is worth
BEYOND = 0.1  # worth of a cell of which no completion says anything
ALL_AROUND = 2 * math.pi


@dataclass(frozen=True)
class Goal:
    """Where to go: row and column of a cell, and the direction to look at there, radians; None: as the robot comes."""

    row: int
    column: int
    yaw: float | None = None


Rule = Callable[[OccupancyGrid, TravelField, Sensor], list[Goal]]


@dataclass(frozen=True)
class Frontier:
    """Connected frontier cells: rows and columns, the one that is nearest to the robot, and the way there in metres."""

    rows: np.ndarray
    columns: np.ndarray
    nearest: tuple[int, int]
    travel: float


def frontiers(grid: OccupancyGrid, field: TravelField) -> list[Frontier]:
    """The frontiers that the robot can get to; to their nearest cell, or as near as its radius lets it."""
    labels, count = ndimage.label(frontier_cells(grid), np.ones((3, 3)))
    # A frontier beside a wall cannot be entered: the nearest place within the robot's reach counts.
    reachable = np.isfinite(field.distance)
    if not count or not reachable.any():
        return []
    away, (near_row, near_column) = ndimage.distance_transform_edt(~reachable, return_indices=True)
    found = []
    reach = (grid.robot.radius + 0.3) / grid.resolution
    for label, where in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = np.nonzero(labels[where] == label)
        rows, columns = rows + where[0].start, columns + where[1].start
        place_rows, place_columns = near_row[rows, columns], near_column[rows, columns]
        travel = field.distance[place_rows, place_columns] + away[rows, columns] * grid.resolution
        travel[away[rows, columns] > reach] = np.inf
        best = int(np.argmin(travel))
        if np.isfinite(travel[best]):
            place = (int(place_rows[best]), int(place_columns[best]))
            found.append(Frontier(rows, columns, place, float(travel[best])))
    return found


def _towards(frontier: Frontier) -> float:
    """Direction from the place at a frontier to its middle."""
    return math.atan2(
        float(frontier.rows.mean()) - frontier.nearest[0], float(frontier.columns.mean()) - frontier.nearest[1]
    )


def frontier_rule(grid: OccupancyGrid, field: TravelField, sensor: Sensor) -> list[Goal]:
    """Goals in ascending order of explore_lite's cost, those below its minimum size last."""

    def cost(frontier: Frontier) -> tuple[bool, float]:
        size = len(frontier.rows) * grid.resolution
        return size < MIN_FRONTIER_M, POTENTIAL_SCALE * frontier.travel - GAIN_SCALE * size

    ranked = sorted(frontiers(grid, field), key=cost)
    return [Goal(*frontier.nearest, _towards(frontier)) for frontier in ranked]


def mapex_rule(grid: OccupancyGrid, field: TravelField, sensor: Sensor) -> list[Goal]:
    """Goals in descending order of MapEx's score, on our completion."""
    share, variance = _ensemble(grid)
    opaque = (np.where(grid.observed, grid.occupied, share) >= 0.5).astype(np.float32)  # in the mean prediction
    around = Sensor(ALL_AROUND, sensor.max_range)

    def score(frontier: Frontier) -> float:
        seen = np.zeros(grid.state.shape, np.float32)
        row, column = frontier.nearest
        seen_from(opaque, grid.resolution, np.array([row]), np.array([column]), np.zeros(1), around, seen)
        gain = float(variance[(seen > 0) & ~grid.observed].sum())
        return gain / max(frontier.travel, grid.resolution)

    found = frontiers(grid, field)
    ranked = sorted(found, key=lambda frontier: (-score(frontier), frontier.travel))
    return [Goal(*frontier.nearest, _towards(frontier)) for frontier in ranked]


def our_rule(grid: OccupancyGrid, field: TravelField, sensor: Sensor) -> list[Goal]:
    """Goals in ascending order of the way to them less what they show; then those of `frontier_rule`.

    A robot need not drive to a frontier to see what lies behind it: of the places from which a view shows something,
    the near ones come first, also the one where the robot stands.
    """
    share, _ = _ensemble(grid)
    # What is probably free is what the robot is to see. Cells of which no completion says anything count little.
    told = ~np.isnan(share)
    worth = np.where(told, 1 - share, BEYOND).astype(np.float32)
    worth[grid.observed] = 0
    opaque = opacity(replace(grid, occupied=np.where(told & ~grid.observed, share, grid.occupied)))
    found = []
    for row, column in _places(grid, field):
        yaw, area = _best_heading(opaque, worth, grid.resolution, row, column, sensor)
        if area >= MIN_AREA_M2:
            cost = float(field.distance[row, column]) - METRES_PER_M2 * min(area, MAX_AREA_M2)
            found.append((cost, Goal(row, column, yaw)))
    found.sort(key=lambda item: item[0])
    return [goal for _, goal in found] + frontier_rule(grid, field, sensor)


def _ensemble(grid: OccupancyGrid) -> tuple[np.ndarray, np.ndarray]:
    """Share of the completions in which cells are occupied (Y, X), NaN where most say nothing; and its variance, or 0.

    The completions as they are drawn: after calibration they would hardly differ (`planning.completion`).
    """
    drawn = drawn_completions(grid, range(COMPLETIONS))
    told = ~np.isnan(drawn)
    count = np.maximum(told.sum(axis=0), 1)
    share = np.where(told, drawn, 0).sum(axis=0) / count
    most = told.mean(axis=0) >= 0.5
    return np.where(most, share, np.nan), np.where(most, share * (1 - share), 0)


def _best_heading(
    opaque: np.ndarray, worth: np.ndarray, resolution: float, row: int, column: int, sensor: Sensor
) -> tuple[float, float]:
    """The heading of the view from a cell that shows most, and the area that it shows, square metres."""
    best, chosen = 0.0, 0.0
    for yaw in 2 * math.pi * np.arange(HEADINGS) / HEADINGS:
        seen = np.zeros(worth.shape, np.float32)
        seen_from(opaque, resolution, np.array([row]), np.array([column]), np.array([yaw]), sensor, seen)
        area = float((seen * worth).sum()) * resolution**2
        if area > best:
            best, chosen = area, float(yaw)
    return chosen, best


def _places(grid: OccupancyGrid, field: TravelField) -> list[tuple[int, int]]:
    """The robot's own cell, the nearest to each frontier, and places in reach that are spread near what is unseen."""
    chosen = {frontier.nearest for frontier in frontiers(grid, field)}
    chosen.add(field.start)
    near = ndimage.binary_dilation(frontier_cells(grid), disk(NEAR_CELLS)) & np.isfinite(field.distance)
    rows, columns = np.nonzero(near)
    if len(rows):
        tile = max(3, math.ceil(math.sqrt(len(rows) / PLACES)))
        _, first = np.unique((rows // tile) * grid.state.shape[1] + columns // tile, return_index=True)
        chosen |= {(int(rows[n]), int(columns[n])) for n in first}
    return sorted(chosen)


RULES: dict[str, Rule] = {"frontier": frontier_rule, "mapex": mapex_rule, "ours": our_rule}

__all__ = ["RULES", "Frontier", "Goal", "Rule", "frontiers", "snap"]
