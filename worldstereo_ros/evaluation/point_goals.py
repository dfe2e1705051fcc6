"""Navigation to points that were not seen, in closed loop: what completions of the map with K hypotheses are worth.

A robot that turned once in a room of a floor (`room_floors`) drives to a point in another room, of which it knows the
coordinates alone. It plans the cheapest way over all cells that are not seen occupied, drives the part of it that it
saw free, looks ahead, and plans anew. Without imagination all unseen cells cost the same. With K hypotheses
(`planning.completion`) a cell costs more, the more of the hypotheses have an obstacle under the robot there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy import ndimage

from worldstereo_ros.evaluation.exploration import (
    BOOTSTRAP_SAMPLES,
    LEVEL,
    bootstrap_ratio,
    parse_worlds,
)
from worldstereo_ros.evaluation.exploration_robot import MARGIN_M, ROBOT, ExploringRobot
from worldstereo_ros.evaluation.output import write_rows
from worldstereo_ros.evaluation.room_floors import make_floor
from worldstereo_ros.evaluation.tables import Column, build_table
from worldstereo_ros.planning import OccupancyGrid
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.completion import MAX_HYPOTHESES, drawn_completions
from worldstereo_ros.planning.next_view import snap
from worldstereo_ros.planning.travel import TravelField, footprint_maximum
from worldstereo_ros.scenes import Scene, seed_of
from worldstereo_ros.utils.errors import InputError

HYPOTHESES = (0, 1, 3, 11)  # 0: without imagination
ARRIVED_M = 0.3  # from the goal
MIN_WAY_M = 2.0  # of the shortest way to a goal
MAX_WAYS = 1.5  # of the shortest way, within which a run must arrive; a robot that took a wrong door fails
REPLAN_M = 0.6  # driven between two plans
MAX_DECISIONS = 200
BLOCKED_COST = 4.0  # metres more for each metre through what all hypotheses say is occupied
UNTOLD_COST = 0.5  # metres more for each metre through cells of which no hypothesis says anything
BLIND_M = 0.65  # around the robot, where the sensor sees nothing and what is unseen counts as free
STUCK_CELLS = 3  # along a way that showed nothing new, and is not tried again


@dataclass(frozen=True)
class PointGoalRow:
    """A run to one goal.

    Attributes:
        world: its name: split, number and kind.
        hypotheses: number of completions; 0 = without imagination.
        success: arrived, having driven at most `MAX_WAYS` of the shortest way and touched nothing.
        travel_m: metres driven. shortest_m: metres of the shortest way if all were known.
        spl: success weighted by path length (Anderson et al. 2018): success * shortest / max(travel, shortest).
        collisions: how often the robot touched something.
        decisions: how often a way was planned.
        seconds: of computing, the simulation included.
    """

    world: str
    hypotheses: int
    success: bool
    travel_m: float
    shortest_m: float
    spl: float
    collisions: int
    decisions: int
    seconds: float


def unseen_goal(robot: ExploringRobot) -> tuple[int, int, float] | None:
    """A cell that the robot has not seen and can get to: row, column, and metres of the shortest way there.

    Of such cells, at the distance from obstacles at which ways are planned, the one whose way is longest compared with
    the straight line: around corners, where a planner can be wrong. None if no cell is `MIN_WAY_M` away.
    """
    resolution = robot.grid.resolution
    clear = ndimage.distance_transform_edt(~(robot.truth.occupied | robot.outside)) * resolution
    start = snap(clear > ROBOT.radius + MARGIN_M, *robot.cell(), resolution)
    field = TravelField(clear > ROBOT.radius + MARGIN_M, *start, resolution)
    unseen = ~robot.grid.observed & np.isfinite(field.distance) & (field.distance >= MIN_WAY_M)
    rows, columns = np.nonzero(unseen)
    if not len(rows):
        return None
    ways = field.distance[rows, columns]
    chosen = int(np.argmax(ways - np.hypot(rows - start[0], columns - start[1]) * resolution))
    return int(rows[chosen]), int(columns[chosen]), float(ways[chosen])


def costs(grid: OccupancyGrid, hypotheses: int) -> np.ndarray:
    """(Y, X) float32 cost of a metre over each cell: 1 where it was seen, more where it may be occupied.

    Args:
        grid: what is known. hypotheses: number of completions; 0 = all unseen cells cost the same.
    """
    out = np.full(grid.state.shape, 1 + UNTOLD_COST, np.float32)
    if hypotheses:
        drawn = drawn_completions(grid, range(hypotheses))
        told = ~np.isnan(drawn)
        blocked = footprint_maximum(np.where(told, drawn, 0), grid.robot.radius / grid.resolution).mean(axis=0)
        out = (1 + np.where(told.mean(axis=0) >= 0.5, BLOCKED_COST * blocked, UNTOLD_COST)).astype(np.float32)
    out[grid.state == CellState.OBSERVED_FREE] = 1
    return out


def navigate(scene: Scene, hypotheses: int, name: str = "") -> PointGoalRow | None:
    """Lets a robot drive to an unseen point; the same every time but for `seconds`.

    Args:
        scene: the world.
        hypotheses: number of completions that plans are made on; 0 = without imagination.
        name: of the world, for the row.

    Returns:
        The run; None if the world has no place that is far enough away and not seen from the start.

    Raises:
        InputError: the number of hypotheses is out of range, or the world has no free place to start.
    """
    if not 0 <= hypotheses <= MAX_HYPOTHESES:
        raise InputError(f"{hypotheses} hypotheses were asked for; 0 to {MAX_HYPOTHESES} were expected.")
    start = time.perf_counter()
    robot = ExploringRobot(scene)
    found = unseen_goal(robot)
    if found is None:
        return None
    row, column, shortest = found
    decisions, tried = 0, np.zeros(robot.grid.state.shape, bool)
    while decisions < MAX_DECISIONS and robot.travel <= MAX_WAYS * shortest and _away(robot, row, column) > ARRIVED_M:
        decisions += 1
        if not _advance(robot, row, column, hypotheses, tried):
            break
    arrived = _away(robot, row, column) <= ARRIVED_M and robot.travel <= MAX_WAYS * shortest
    success = arrived and not robot.collisions
    return PointGoalRow(
        world=name or f"{scene.kind}-{scene.seed}",
        hypotheses=hypotheses,
        success=success,
        travel_m=round(robot.travel, 3),
        shortest_m=round(shortest, 3),
        spl=round(success * shortest / max(robot.travel, shortest), 4),
        collisions=robot.collisions,
        decisions=decisions,
        seconds=round(time.perf_counter() - start, 2),
    )


def _away(robot: ExploringRobot, row: int, column: int) -> float:
    return _apart(robot, robot.cell(), (row, column))


def _apart(robot: ExploringRobot, a: tuple[int, int], b: tuple[int, int]) -> float:
    return math.hypot(a[0] - b[0], a[1] - b[1]) * robot.grid.resolution


def _advance(robot: ExploringRobot, row: int, column: int, hypotheses: int, tried: np.ndarray) -> bool:
    """Plans, drives what was seen of the way, and looks ahead; whether there is a way at all."""
    cost = costs(robot.grid, hypotheses)
    for margin in (MARGIN_M, 0.0):  # a door may look narrower than it is
        known, clear = robot.ways(BLIND_M, margin)
        # What was looked at and stays unseen is no way: something hides it.
        start = snap(known & clear, *robot.cell(), robot.grid.resolution)
        field = TravelField(clear & ~(tried & ~known), *start, robot.grid.resolution, cost=cost)
        goal = snap(np.isfinite(field.distance), row, column, robot.grid.resolution)
        cells = field.path_to(*goal)
        if len(cells) and _apart(robot, goal, (row, column)) <= ARRIVED_M:
            break
    else:
        # Nothing is left but what was tried from elsewhere: it may show itself from here.
        again = bool(tried.any())
        tried[:] = False
        return again
    seen = known[cells[:, 0], cells[:, 1]]
    end = len(cells) if seen.all() else int(np.argmin(seen))
    before = int(robot.grid.observed.sum())
    if end > 1:
        robot.drive(cells[:end], REPLAN_M)
    elif len(cells) == 1:
        return False  # as near as it gets
    if end < len(cells):
        ahead = cells[min(end + STUCK_CELLS, len(cells) - 1)]
        here = robot.cell()
        robot.look(math.atan2(ahead[0] - here[0], ahead[1] - here[1]))
    robot.refresh()
    if end <= 1 and int(robot.grid.observed.sum()) <= before:
        rows, columns = cells[end : end + STUCK_CELLS].T
        tried[rows, columns] = True
    return True


def evaluate_point_goals(
    data: Sequence[str],
    *,
    hypotheses: Sequence[int] = HYPOTHESES,
    json_file: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[PointGoalRow]:
    """Drives to an unseen point of the floor that each world's seed gives, with each number of hypotheses.

    The file is written anew after each run.

    Args:
        data: worlds, see `parse_worlds`.
        hypotheses: numbers of completions; 0 = without imagination.
        json_file: where to write the rows and the summary; None: nowhere.
        progress: called with a line after each run.

    Raises:
        InputError: the worlds are unknown, or none has an unseen place to go to.
    """
    worlds = [world for text in data for world in parse_worlds(text)]
    if not worlds or not hypotheses:
        raise InputError("There is nowhere to go: at least one world and one number of hypotheses were expected.")
    rows: list[PointGoalRow] = []
    for split, index in worlds:
        scene = make_floor(seed_of(split, index))
        name = f"{split}{index}-{scene.kind}"
        for count in hypotheses:
            row = navigate(scene, count, name)
            if row is None:
                progress(f"{name:24} has no place {MIN_WAY_M:g} m away that is not seen from the start")
                break
            rows.append(row)
            progress(describe_row(row))
            if json_file is not None:
                write_rows(json_file, [asdict(row) for row in rows], summarise(rows))
    if not rows:
        raise InputError(f"No world has a place {MIN_WAY_M:g} m away that is not seen from the start.")
    return rows


def describe_row(row: PointGoalRow) -> str:
    """A run as one line of text."""
    return (
        f"{row.world:24} {row.hypotheses:2d} hypotheses {'arrived' if row.success else 'failed':7} after "
        f"{row.travel_m:5.1f} m of {row.shortest_m:5.1f} m, {row.collisions} collisions, {row.seconds:.1f} s"
    )


def summarise(rows: Sequence[PointGoalRow]) -> list[dict[str, Any]]:
    """Means for each number of hypotheses, with bootstrap intervals over the worlds.

    Travel is compared in the worlds in which all succeed, with that of the first number of hypotheses.
    """
    counts = list(dict.fromkeys(row.hypotheses for row in rows))
    by_count = {count: {row.world: row for row in rows if row.hypotheses == count} for count in counts}
    first = by_count[counts[0]]
    shared = [world for world in first if all(world in r and r[world].success for r in by_count.values())]
    out = []
    for count in counts:
        own = list(by_count[count].values())
        summary: dict[str, Any] = {"hypotheses": count, "worlds": len(own)}
        for key, values in {"success": [row.success for row in own], "spl": [row.spl for row in own]}.items():
            mean, low, high = bootstrap_mean(np.array(values, np.float64))
            summary |= {key: mean, f"{key}_low": low, f"{key}_high": high}
        summary |= {
            "travel_m": float(np.mean([row.travel_m for row in own])),
            "shortest_m": float(np.mean([row.shortest_m for row in own])),
            "collisions": sum(row.collisions for row in own), "max_seconds": max(row.seconds for row in own),
            "compared_worlds": len(shared), "travel_to_first": None,
        }  # fmt: skip
        if shared:
            mine = np.array([by_count[count][world].travel_m for world in shared])
            ratio, low, high = bootstrap_ratio(mine, np.array([first[world].travel_m for world in shared]))
            summary |= {"travel_to_first": ratio, "travel_to_first_low": low, "travel_to_first_high": high}
        out.append(summary)
    return out


def bootstrap_mean(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of `values` (N,) and its percentile bootstrap interval of `LEVEL`."""
    picks = np.random.default_rng(0).integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)


def summary_table(rows: Sequence[PointGoalRow]) -> Table:
    """The summary for the terminal."""

    def interval(key: str, form: str) -> Callable[[dict[str, Any]], str | None]:
        def text(row: dict[str, Any]) -> str | None:
            if row[key] is None:
                return None
            return f"{row[key]:{form}} ({row[f'{key}_low']:{form}} to {row[f'{key}_high']:{form}})"

        return text

    columns = [
        Column("hypotheses", lambda row: str(row["hypotheses"] or "none"), label=True),
        Column("worlds", lambda row: row["worlds"]),
        Column("success", interval("success", ".0%")),
        Column("SPL", interval("spl", ".2f")),
        Column("travel m", lambda row: row["travel_m"], "{:.1f}"),
        Column("shortest m", lambda row: row["shortest_m"], "{:.1f}"),
        Column("travel / first", interval("travel_to_first", ".2f")),
        Column("collisions", lambda row: row["collisions"]),
        Column("longest run s", lambda row: row["max_seconds"], "{:.1f}"),
    ]
    caption = (
        f"Success: at most {MAX_WAYS:g} times the shortest way, nothing touched. Travel / first: in the worlds in "
        f"which all succeed. With {LEVEL:.0%} bootstrap intervals."
    )
    return build_table(summarise(rows), columns, caption=caption)
