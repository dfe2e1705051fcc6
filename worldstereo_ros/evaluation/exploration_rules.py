"""Rules that decide where an exploring robot goes next, from what it knows.

`frontier` is the rule of explore_lite: of the frontiers, connected cells between seen free and unseen, the one of least
cost, three times the distance less the size. `mapex` is that of MapEx (Ho et al. 2024): the frontier with the largest
sum of the variance of an ensemble of completions, over the cells that are visible from it in the mean completion,
divided by the distance. `ours` goes along a tour over places that show what our completions say is
free (`planning.coverage_tour`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from worldstereo_ros.planning import OccupancyGrid
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.completion import completion_chances, drawn_completions
from worldstereo_ros.planning.coverage_tour import Viewpoints, coverable, coverage_tour
from worldstereo_ros.planning.next_view import frontier_cells, snap
from worldstereo_ros.planning.travel import TravelField
from worldstereo_ros.planning.visibility import Sensor, opacity, seen_from

MIN_FRONTIER_M = 0.75  # of explore_lite; smaller ones are visited when there are no others
POTENTIAL_SCALE, GAIN_SCALE = 3.0, 1.0  # of explore_lite's cost
COMPLETIONS = 3  # of MapEx's ensemble
PLACES, NEAR_CELLS = 60, 20  # of candidates of `ours`
MIN_AREA_M2 = 0.15  # that a place must show to be worth a way
AIM = 0.96  # share of what is to be seen that a tour is to show
DOUBT = 0.3  # factor of the worth of a cell each time that a view should have shown it and did not
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


class TourRule:
    """The places of a tour that shows what completions say is free; then the goals of `frontier_rule`.

    It remembers what it expected to see: cells that were in view and stay unseen count less and less.
    """

    def __init__(self) -> None:
        self._doubt: np.ndarray | None = None  # (Y, X) float32 factor of the worth of cells
        self._goal: Goal | None = None  # where it sent the robot
        self._expected: tuple[np.ndarray, np.ndarray] | None = None  # rows and columns that the view there shows

    def __call__(self, grid: OccupancyGrid, field: TravelField, sensor: Sensor) -> list[Goal]:
        """Goals, the best first."""
        if self._doubt is None:
            self._doubt = np.ones(grid.state.shape, np.float32)
        on_the_way = self._goal
        if self._goal is not None and self._expected is not None and (self._goal.row, self._goal.column) == field.start:
            self._doubt[self._expected] *= DOUBT  # the robot has looked there
            on_the_way = None
        share = completion_chances(grid)
        told = ~np.isnan(share)
        # What the robot is to see: unseen cells that are probably free and that it can cover. Cells of which no
        # completion says anything count little.
        free = (grid.state == CellState.OBSERVED_FREE) | (~grid.observed & told & (share < 0.5))
        cover = coverable(free, field.start, grid.robot.radius / grid.resolution)
        worth = np.where(told, (1 - share) * cover, BEYOND).astype(np.float32) * self._doubt
        worth[grid.observed] = 0
        opaque = opacity(replace(grid, occupied=np.where(told & ~grid.observed, share, grid.occupied)))
        chosen = _places(grid, field)
        if on_the_way is not None and np.isfinite(field.distance[on_the_way.row, on_the_way.column]):
            chosen = sorted({*chosen, (on_the_way.row, on_the_way.column)})
        else:
            on_the_way = None
        rows, columns = np.array(chosen).T
        points = Viewpoints(opaque, worth, rows, columns, round(sensor.max_range / grid.resolution))
        seen, unseen = float((cover & grid.observed).sum()), float(worth[told].sum())
        tour = coverage_tour(
            points, chosen.index(field.start), field, grid.resolution,
            enough=AIM * (seen + unseen) - seen, min_gain=MIN_AREA_M2 / grid.resolution**2,
            before=None if on_the_way is None else chosen.index((on_the_way.row, on_the_way.column)),
        )  # fmt: skip
        goals = [Goal(*chosen[n], points.best_heading(n, sensor.fov)[0]) for n in tour]
        self._goal = goals[0] if goals else None
        if goals:
            rows, columns, _ = points.expected(tour[0])
            away = np.arctan2(rows - goals[0].row, columns - goals[0].column) - (goals[0].yaw or 0.0)
            ahead = np.abs((away + math.pi) % (2 * math.pi) - math.pi) < 0.5 * sensor.fov
            self._expected = (rows[ahead], columns[ahead])
        return goals + frontier_rule(grid, field, sensor)


def _ensemble(grid: OccupancyGrid) -> tuple[np.ndarray, np.ndarray]:
    """Share of some completions in which cells are occupied (Y, X), NaN where they say nothing; its variance, or 0."""
    drawn = drawn_completions(grid, range(COMPLETIONS))
    told = ~np.isnan(drawn)
    count = np.maximum(told.sum(axis=0), 1)
    share = np.where(told, drawn, 0).sum(axis=0) / count
    most = told.mean(axis=0) >= 0.5
    return np.where(most, share, np.nan), np.where(most, share * (1 - share), 0)


def _places(grid: OccupancyGrid, field: TravelField) -> list[tuple[int, int]]:
    """The robot's own cell, the nearest to each frontier, and places in reach that are spread near what is unseen."""
    chosen = {frontier.nearest for frontier in frontiers(grid, field)}
    chosen.add(field.start)
    edge = frontier_cells(grid)
    near = np.isfinite(field.distance) & (ndimage.distance_transform_edt(~edge) <= NEAR_CELLS) & edge.any()
    rows, columns = np.nonzero(near)
    if len(rows):
        tile = max(3, math.ceil(math.sqrt(len(rows) / PLACES)))
        _, first = np.unique((rows // tile) * grid.state.shape[1] + columns // tile, return_index=True)
        chosen |= {(int(rows[n]), int(columns[n])) for n in first}
    return sorted(chosen)


# Each run of a world has a rule of its own, since a rule may remember.
RULES: dict[str, Callable[[], Rule]] = {
    "frontier": lambda: frontier_rule,
    "mapex": lambda: mapex_rule,
    "ours": TourRule,
}

__all__ = ["RULES", "Frontier", "Goal", "Rule", "TourRule", "frontiers", "snap"]
