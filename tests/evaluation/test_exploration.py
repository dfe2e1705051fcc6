import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.floor_plans import boxes, look, mapped

from worldstereo_ros.evaluation import exploration
from worldstereo_ros.evaluation.exploration import (
    COVERAGE,
    ExplorationRow,
    bootstrap_ratio,
    evaluate_exploration,
    explore,
    parse_worlds,
    summarise,
    world_to_explore,
)
from worldstereo_ros.evaluation.exploration_robot import ROBOT, SAMPLE_M, ExploringRobot, true_occupancy
from worldstereo_ros.evaluation.exploration_rules import RULES, frontiers
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.travel import TravelField, traversable
from worldstereo_ros.utils.errors import InputError

# A wall with a passage halves the room.
HALVED = boxes(((0.0, -0.8, 0.5), (0.15, 2.5, 1.0)))


@pytest.fixture(scope="module")
def runs():
    return {rule: explore(HALVED, rule, "test") for rule in RULES}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_sees_the_whole_room_without_touching_anything(runs, rule):
    row = runs[rule]
    assert row.finished
    assert row.coverage >= COVERAGE
    assert row.collisions == 0
    assert row.false_free < 0.02
    assert 0.5 < row.travel_m < 30
    assert row.steps > row.decisions > 0


def test_a_run_is_the_same_every_time(runs):
    again = explore(HALVED, "ours", "test")
    assert replace(again, seconds=0) == replace(runs["ours"], seconds=0)


def test_unknown_rules_are_refused():
    with pytest.raises(InputError, match="frontier, mapex, ours"):
        explore(HALVED, "random")


def test_the_truth_knows_the_boxes_and_what_the_robot_can_get_to():
    scene = boxes(((1.5, 1.0, 0.3), (0.4, 0.4, 0.6)), ((-1.5, 1.0, 1.2), (0.6, 0.6, 0.2)))
    robot = ExploringRobot(scene)
    grid, truth = robot.grid, robot.truth

    def at(x, y, values):
        rows, columns, _ = grid.cells_at(np.array([[x, y, 0.0]]))
        return bool(values[rows[0], columns[0]])

    assert at(1.5, 1.0, truth.occupied)
    assert not at(1.0, 1.0, truth.occupied)
    assert not at(-1.5, 1.0, truth.occupied)  # above the robot
    assert at(0.5, 0.5, truth.goal)
    assert not at(1.5, 1.0, truth.goal)
    assert not at(3.4, 0.0, truth.goal)  # behind the wall
    fine = true_occupancy(scene, grid)
    assert fine.shape == tuple(round(grid.resolution / SAMPLE_M) * n for n in grid.state.shape)


def test_a_robot_that_drives_into_a_box_touches_it_and_remembers_that():
    robot = ExploringRobot(HALVED)
    row, column = robot.cell()
    line = np.array([[row, c] for c in range(column, grid_column(robot, 3.0))])
    arrived = robot.drive(line, 100.0)
    assert not arrived
    assert robot.collisions == 1
    assert robot.truth.distance.min() == 0
    robot.refresh()
    ahead = robot.grid.cells_at(np.array([[robot.x + 0.1, robot.y, 0.0]]))
    assert robot.grid.state[ahead[0], ahead[1]] == CellState.OBSERVED_OCCUPIED


def grid_column(robot, x):
    return int(robot.grid.cells_at(np.array([[x, robot.y, 0.0]]))[1][0])


def test_frontiers_lie_between_seen_and_unseen():
    grid = make_grid(mapped(HALVED, look(HALVED, -2, 0, 0), look(HALVED, -2, 0, 1)), ROBOT)
    free = traversable(grid)
    rows, columns = np.nonzero(free)
    field = TravelField(free, int(rows[len(rows) // 2]), int(columns[len(rows) // 2]), grid.resolution)
    found = frontiers(grid, field)
    assert found
    for frontier in found:
        assert (grid.state[frontier.rows, frontier.columns] == CellState.OBSERVED_FREE).all()
        assert free[frontier.nearest]
        assert np.isfinite(frontier.travel)


# --- worlds, rows and summary -----------------------------------------------------------------------------------------


def test_worlds_are_named_by_count_or_range():
    assert parse_worlds("worlds:test:2") == [("test", 0), ("test", 1)]
    assert parse_worlds("worlds:validation:100:102") == [("validation", 100), ("validation", 101)]
    assert world_to_explore("test", 1).kind == "corridor"


@pytest.mark.parametrize(
    "text", ["worlds:test", "worlds:nowhere:2", "worlds:test:0", "worlds:test:5:5", "worlds:test:-1", "test:2", "a/b"]
)
def test_other_texts_name_no_worlds(text):
    with pytest.raises(InputError):
        parse_worlds(text)


def row(rule, world, travel, finished=True):
    return ExplorationRow(world, rule, travel, 10, 5, 0.96 if finished else 0.5, finished, 0, 0.001, 1.0)


def test_only_worlds_that_all_rules_finish_are_compared():
    rows = [row("frontier", "a", 10), row("ours", "a", 8), row("frontier", "b", 20), row("ours", "b", 1, False)]
    frontier, ours = summarise(rows)
    assert frontier["travel_to_frontier"] == 1
    assert ours["compared_worlds"] == 1
    assert ours["travel_to_frontier"] == pytest.approx(0.8)
    assert ours["finished"] == 1
    assert summarise([row("ours", "a", 3)])[0]["travel_to_frontier"] is None


def test_the_bootstrap_interval_holds_the_ratio():
    base = np.linspace(5, 15, 50)
    values = base * np.random.default_rng(0).uniform(0.7, 0.9, 50)
    ratio, low, high = bootstrap_ratio(values, base)
    assert low < ratio < high
    assert low > 0.75
    assert high < 0.85
    assert bootstrap_ratio(base, base) == (1, 1, 1)


def test_rows_are_written_after_each_run(tmp_path, monkeypatch):
    monkeypatch.setattr(exploration, "world_to_explore", lambda split, index: HALVED)
    file, lines = tmp_path / "rows.json", []
    rows = evaluate_exploration(["worlds:test:1"], rules=["frontier"], json_file=file, progress=lines.append)
    content = json.loads(file.read_text())
    assert len(rows) == len(lines) == len(content["rows"]) == 1
    expected = {"travel_m", "steps", "coverage", "collisions", "false_free", "seconds", "world", "rule"}
    assert expected <= set(content["rows"][0])
    assert content["means"][0]["rule"] == "frontier"
    with pytest.raises(InputError, match="nothing to explore"):
        evaluate_exploration(["worlds:test:1"], rules=[])
