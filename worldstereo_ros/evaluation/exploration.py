"""Exploration in closed loop: how far a robot drives until it has seen a procedural world, by several rules."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from worldstereo_ros.evaluation.exploration_robot import SENSOR, ExploringRobot
from worldstereo_ros.evaluation.exploration_rules import RULES, Goal, snap
from worldstereo_ros.evaluation.output import write_rows
from worldstereo_ros.evaluation.tables import Column, build_table
from worldstereo_ros.evaluation.world_sequences import PREFIX
from worldstereo_ros.planning.travel import TravelField
from worldstereo_ros.scenes import KINDS, SPLITS, Scene, make_scene, seed_of
from worldstereo_ros.utils.errors import InputError

COVERAGE = 0.95  # of the cells to see, at which a run ends
REPLAN_M = 0.8  # driven between two decisions
MAX_DECISIONS, MAX_TRAVEL_M = 400, 400.0
NO_GAIN_CELLS = 3  # cells that a decision must show for its goal not to be given up
BOOTSTRAP_SAMPLES, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class ExplorationRow:
    """A run of one rule in one world.

    Attributes:
        world: its name: split, number and kind.
        rule: one of `RULES`.
        travel_m: metres driven. steps: images taken. decisions: how often a goal was chosen.
        coverage: share of the cells to see that were seen.
        finished: whether it reached `COVERAGE`; otherwise no goal was left, or the limits were reached.
        collisions: how often the robot touched something.
        false_free: share of the cells called observed free in which there is an object.
        seconds: of computing, the simulation included.
    """

    world: str
    rule: str
    travel_m: float
    steps: int
    decisions: int
    coverage: float
    finished: bool
    collisions: int
    false_free: float
    seconds: float


def parse_worlds(text: str) -> list[tuple[str, int]]:
    """Splits and numbers of `worlds:SPLIT:COUNT` or `worlds:SPLIT:FIRST:END`.

    Raises:
        InputError: the text has another form, or there are no such worlds.
    """
    parts = text.removeprefix(PREFIX).split(":") if text.startswith(PREFIX) else []
    numbers = parts[1:]
    if len(parts) not in (2, 3) or parts[0] not in SPLITS or not all(n.isdecimal() for n in numbers):
        raise InputError(
            f"'{text}' names no worlds to explore; {PREFIX}SPLIT:COUNT or {PREFIX}SPLIT:FIRST:END was expected, as in "
            f"{PREFIX}test:50, with one of the splits {', '.join(SPLITS)}."
        )
    first, end = (0, int(numbers[0])) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
    if not first < end <= len(SPLITS[parts[0]]):
        raise InputError(f"'{text}' names no world: {first} to {end} of {len(SPLITS[parts[0]])} were requested.")
    return [(parts[0], index) for index in range(first, end)]


def world_to_explore(split: str, index: int) -> Scene:
    """World `index` of a split; kinds take turns."""
    return make_scene(list(KINDS)[index % len(KINDS)], seed_of(split, index))


def explore(scene: Scene, rule: str, name: str = "") -> ExplorationRow:
    """Lets a robot explore a world; the same every time but for `seconds`.

    Args:
        scene: the world.
        rule: one of `RULES`.
        name: of the world, for the row.

    Raises:
        InputError: the rule is unknown, or the world has no free place to start.
    """
    if rule not in RULES:
        raise InputError(f"The rule '{rule}' is unknown; one of {', '.join(RULES)} was expected.")
    start = time.perf_counter()
    robot, choose = ExploringRobot(scene), RULES[rule]()
    given_up: set[tuple[int, int]] = set()
    decisions = 0
    while robot.coverage < COVERAGE and decisions < MAX_DECISIONS and robot.travel < MAX_TRAVEL_M:
        decisions += 1
        field = _ways(robot)
        goal = next((g for g in choose(robot.grid, field, SENSOR) if (g.row, g.column) not in given_up), None)
        if goal is None:
            break
        before = int(robot.grid.observed.sum())
        arrived = _go(robot, field, goal)
        robot.refresh()
        if arrived and int(robot.grid.observed.sum()) - before < NO_GAIN_CELLS:
            given_up |= _around(goal)
    return ExplorationRow(
        world=name or f"{scene.kind}-{scene.seed}",
        rule=rule,
        travel_m=round(robot.travel, 3),
        steps=robot.steps,
        decisions=decisions,
        coverage=round(robot.coverage, 4),
        finished=robot.coverage >= COVERAGE,
        collisions=robot.collisions,
        false_free=round(robot.false_free, 5),
        seconds=round(time.perf_counter() - start, 2),
    )


def _around(goal: Goal) -> set[tuple[int, int]]:
    """The goal and its neighbours."""
    return {(goal.row + i, goal.column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}


def _ways(robot: ExploringRobot) -> TravelField:
    """The ways over cells that were seen free, at a distance from obstacles."""
    known, clear = robot.ways()
    free, grid = known & clear, robot.grid
    row, column = robot.cell()
    return TravelField(free, *snap(free, row, column, grid.resolution), grid.resolution)


def _go(robot: ExploringRobot, field: TravelField, goal: Goal) -> bool:
    """Drives towards a goal; whether it was reached, or nothing more can be done for it."""
    cells = field.path_to(goal.row, goal.column)
    if len(cells) > 1 and not robot.drive(cells, REPLAN_M):
        return False
    if goal.yaw is not None:
        robot.look(goal.yaw)
    return True


def evaluate_exploration(
    data: Sequence[str],
    *,
    rules: Sequence[str] = tuple(RULES),
    json_file: Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[ExplorationRow]:
    """Runs rules in worlds, one after the other; the file is written anew after each run.

    Args:
        data: worlds, see `parse_worlds`.
        rules: names of `RULES`.
        json_file: where to write the rows and the summary; None: nowhere.
        progress: called with a line after each run.

    Raises:
        InputError: the worlds or rules are unknown.
    """
    worlds = [world for text in data for world in parse_worlds(text)]
    if not worlds or not rules:
        raise InputError("There is nothing to explore: at least one world and one rule were expected.")
    rows: list[ExplorationRow] = []
    for split, index in worlds:
        scene = world_to_explore(split, index)
        for rule in rules:
            rows.append(explore(scene, rule, f"{split}{index}-{scene.kind}"))
            progress(describe_row(rows[-1]))
            if json_file is not None:
                write_rows(json_file, [asdict(row) for row in rows], summarise(rows))
    return rows


def describe_row(row: ExplorationRow) -> str:
    """A run as one line of text."""
    return (
        f"{row.world:24} {row.rule:9} {row.travel_m:7.1f} m {row.steps:5d} images, coverage {row.coverage:.3f}"
        f"{'' if row.finished else ' (not finished)'}, {row.collisions} collisions, false free "
        f"{100 * row.false_free:.2f} %, {row.seconds:.1f} s"
    )


def summarise(rows: Sequence[ExplorationRow]) -> list[dict[str, Any]]:
    """Means of each rule, and its travel relative to `frontier` in the same worlds, with a bootstrap interval.

    Only worlds that all rules finished count for the relative travel, since less travel for less coverage is no merit.
    """
    names = list(dict.fromkeys(row.rule for row in rows))
    by_rule = {name: {row.world: row for row in rows if row.rule == name} for name in names}
    shared = [world for world in by_rule[names[0]] if all(world in r and r[world].finished for r in by_rule.values())]
    out: list[dict[str, Any]] = []
    for name in names:
        own = list(by_rule[name].values())
        summary: dict[str, Any] = {
            "rule": name, "worlds": len(own), "finished": sum(row.finished for row in own),
            "travel_m": float(np.mean([row.travel_m for row in own])),
            "coverage": float(np.mean([row.coverage for row in own])),
            "collisions": sum(row.collisions for row in own),
            "false_free": float(np.mean([row.false_free for row in own])),
            "max_seconds": max(row.seconds for row in own), "compared_worlds": len(shared),
            "travel_to_frontier": None, "travel_to_frontier_low": None, "travel_to_frontier_high": None,
        }  # fmt: skip
        if shared and "frontier" in by_rule:
            mine = np.array([by_rule[name][world].travel_m for world in shared])
            base = np.array([by_rule["frontier"][world].travel_m for world in shared])
            ratio, low, high = bootstrap_ratio(mine, base)
            summary |= {"travel_to_frontier": ratio, "travel_to_frontier_low": low, "travel_to_frontier_high": high}
        out.append(summary)
    return out


def bootstrap_ratio(values: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
    """Sum of `values` over that of `base` (N,), pairs, and its percentile bootstrap interval of `LEVEL`."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(base), (BOOTSTRAP_SAMPLES, len(base)))
    total = np.maximum(base[picks].sum(axis=1), 1e-9)
    low, high = np.quantile(values[picks].sum(axis=1) / total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.sum() / max(base.sum(), 1e-9)), float(low), float(high)


def summary_table(rows: Sequence[ExplorationRow]) -> Table:
    """The summary for the terminal."""

    def relative(row: dict[str, Any]) -> str | None:
        if row["travel_to_frontier"] is None:
            return None
        low, high = row["travel_to_frontier_low"], row["travel_to_frontier_high"]
        return f"{row['travel_to_frontier']:.2f} ({low:.2f} to {high:.2f})"

    columns = [
        Column("rule", lambda row: row["rule"], label=True),
        Column("worlds", lambda row: row["worlds"]),
        Column("finished", lambda row: row["finished"]),
        Column("travel m", lambda row: row["travel_m"], "{:.1f}"),
        Column("travel / frontier", relative),
        Column("coverage", lambda row: row["coverage"], "{:.3f}"),
        Column("collisions", lambda row: row["collisions"]),
        Column("false free", lambda row: row["false_free"], "{:.2%}"),
        Column("longest run s", lambda row: row["max_seconds"], "{:.1f}"),
    ]
    caption = f"Travel to frontier: in the worlds that all rules finished, with a {LEVEL:.0%} bootstrap interval."
    return build_table(summarise(rows), columns, caption=caption)
