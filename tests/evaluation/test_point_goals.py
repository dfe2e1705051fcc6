import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.floor_plans import boxes
from scipy import ndimage

from worldstereo_ros.evaluation import point_goals
from worldstereo_ros.evaluation.exploration_robot import ROBOT, ExploringRobot
from worldstereo_ros.evaluation.point_goals import (
    MAX_WAYS,
    MIN_WAY_M,
    PointGoalRow,
    bootstrap_mean,
    costs,
    evaluate_point_goals,
    navigate,
    summarise,
    summary_table,
    unseen_goal,
)
from worldstereo_ros.evaluation.room_floors import make_floor
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.utils.errors import InputError

# Two rooms with a door at one end of the wall between them.
ROOMS = boxes(((0.0, -0.6, 0.9), (0.16, 2.8, 1.8)))


@pytest.fixture(scope="module")
def runs():
    return {count: navigate(ROOMS, count, "test") for count in (0, 2)}


@pytest.mark.parametrize("count", [0, 2])
def test_the_robot_finds_the_door_to_a_point_that_it_has_not_seen(runs, count):
    row = runs[count]
    assert row.success
    assert row.collisions == 0
    assert MIN_WAY_M <= row.shortest_m <= row.travel_m + 0.4
    assert row.travel_m <= MAX_WAYS * row.shortest_m
    assert row.spl == pytest.approx(row.shortest_m / max(row.travel_m, row.shortest_m), abs=1e-3)
    assert row.decisions > 1


def test_a_run_to_a_point_is_the_same_every_time(runs):
    assert replace(navigate(ROOMS, 2, "test"), seconds=0) == replace(runs[2], seconds=0)


def test_goals_are_unseen_and_can_be_reached():
    robot = ExploringRobot(ROOMS)
    row, column, way = unseen_goal(robot)
    assert robot.grid.state[row, column] == CellState.UNKNOWN
    assert not robot.truth.occupied[row, column]
    here = robot.cell()
    assert way >= max(MIN_WAY_M, math.hypot(row - here[0], column - here[1]) * robot.grid.resolution - 0.2)


def test_a_world_without_a_place_far_enough_away_has_no_goal(monkeypatch):
    monkeypatch.setattr(point_goals, "MIN_WAY_M", 20.0)
    assert navigate(ROOMS, 0) is None


@pytest.mark.parametrize("count", [-1, 33])
def test_numbers_of_hypotheses_are_checked(count):
    with pytest.raises(InputError, match=r"0 to 32"):
        navigate(ROOMS, count)


def test_seen_cells_cost_one_and_imagined_obstacles_more():
    grid = ExploringRobot(ROOMS).grid
    for count in (0, 1, 3):
        cost = costs(grid, count)
        assert (cost[grid.state == CellState.OBSERVED_FREE] == 1).all()
        assert (cost >= 1).all()
        assert len(np.unique(cost[~grid.observed])) > 1 or count == 0
    assert len(np.unique(costs(grid, 0)[~grid.observed])) == 1
    # Each hypothesis adds a level.
    assert len(np.unique(costs(grid, 3))) > len(np.unique(costs(grid, 1)))


@pytest.mark.parametrize("seed", range(6))
def test_all_rooms_of_a_floor_are_connected(seed):
    scene = make_floor(seed)
    (x0, y0, _), (x1, y1, _) = scene.bounds
    # Walls and doors alone, seen from above at 5 cm.
    x, y = np.arange(x0, x1, 0.05), np.arange(y0, y1, 0.05)
    blocked = np.zeros((len(y), len(x)), bool)
    for centre, half in zip(scene.primitives.centre.numpy(), scene.primitives.half.numpy(), strict=True):
        if centre[2] > 0:
            blocked |= (np.abs(y - centre[1]) <= half[1])[:, None] & (np.abs(x - centre[0]) <= half[0])[None]
    free = ndimage.distance_transform_edt(~blocked) * 0.05 > ROBOT.radius
    parts, _ = ndimage.label(free)
    sizes = np.bincount(parts.ravel())[1:]
    assert sizes.max() > 0.98 * sizes.sum()
    assert make_floor(seed).primitives.centre.equal(scene.primitives.centre)
    assert not make_floor(seed + 1).primitives.centre.equal(scene.primitives.centre)


# --- rows and summary -------------------------------------------------------------------------------------------------


def row(count, world, travel, success=True):
    return PointGoalRow(world, count, success, travel, 10.0, success * 10 / max(travel, 10), 0, 5, 1.0)


def test_travel_is_compared_where_all_succeed():
    rows = [row(0, "a", 20), row(3, "a", 15), row(0, "b", 30, False), row(3, "b", 12)]
    without, three = summarise(rows)
    assert (without["success"], three["success"]) == (0.5, 1.0)
    assert three["compared_worlds"] == 1
    assert three["travel_to_first"] == pytest.approx(0.75)
    assert without["spl"] == pytest.approx(0.25)
    assert three["spl_low"] <= three["spl"] <= three["spl_high"]
    assert summary_table(rows).row_count == 2
    assert summarise([row(0, "b", 30, False)])[0]["travel_to_first"] is None


def test_the_interval_of_a_mean_holds_it():
    mean, low, high = bootstrap_mean(np.arange(20.0))
    assert low < mean == 9.5 < high
    assert bootstrap_mean(np.ones(5)) == (1, 1, 1)


def test_runs_are_written_one_after_the_other(tmp_path, monkeypatch, runs):
    monkeypatch.setattr(point_goals, "navigate", lambda scene, count, name: replace(runs[count], world=name))
    file, lines = tmp_path / "rows.json", []
    rows = evaluate_point_goals(["worlds:test:1"], hypotheses=[0, 2], json_file=file, progress=lines.append)
    content = json.loads(file.read_text())
    assert len(rows) == len(lines) == len(content["rows"]) == 2
    expected = {"world", "hypotheses", "success", "travel_m", "shortest_m", "spl", "collisions", "seconds"}
    assert expected <= set(content["rows"][0])
    assert [mean["hypotheses"] for mean in content["means"]] == [0, 2]
    assert rows[0].world == "test0-floor"
    monkeypatch.setattr(point_goals, "navigate", lambda scene, count, name: None)
    with pytest.raises(InputError, match="No world has a place"):
        evaluate_point_goals(["worlds:test:1"], progress=lines.append)
    with pytest.raises(InputError, match="nowhere to go"):
        evaluate_point_goals(["worlds:test:1"], hypotheses=[])
