from types import SimpleNamespace

import numpy as np
import pytest
from helpers.floor_plans import boxes

from worldstereo_ros.evaluation.exploration_robot import ExploringRobot
from worldstereo_ros.evaluation.occupancy_calibration import (
    best_threshold,
    completion_samples,
    near_overlap,
    overlap,
    score_completions,
)
from worldstereo_ros.planning.cells import CellState, load_calibration, probability

HALVED = boxes(((0.0, -0.8, 0.5), (0.15, 2.5, 1.0)))


@pytest.fixture(scope="module")
def robot():
    return ExploringRobot(HALVED)


def test_overlap_counts_called_and_true_cells():
    state = np.array([[4, 4, 5, 0]], np.uint8)
    grid = SimpleNamespace(state=state, called_occupied=state == 5)
    true = np.array([[False, True, True, False]])
    within = np.ones((1, 4), bool)
    # Free: called 0 and 1, true 0 and 3. Occupied: called 2, true 1 and 2.
    assert overlap(grid, true, within) == [1, 3, 1, 2]
    within[0, 3] = False
    assert overlap(grid, true, within) == [1, 2, 1, 2]


def test_neighbours_count_as_one_cell_where_that_is_asked():
    called, true = np.zeros((3, 6), bool), np.zeros((3, 6), bool)
    called[1, [0, 5]], true[0, [1, 3]] = True, True
    grid = SimpleNamespace(called_occupied=called)
    # Called (1, 0) and true (0, 1) touch at a corner; called (1, 5) and true (0, 3) have no neighbour.
    assert near_overlap(grid, true, np.ones((3, 6), bool)) == [1, 3]


def test_the_completion_of_a_half_seen_room_is_scored(robot):
    scores = score_completions([robot], seeds=5)
    assert scores.cells > 20
    assert 0 <= scores.ece <= 1
    assert scores.iou_free > scores.iou_free_seen > 0.2  # the rest of the room is free
    assert scores.false_free < 0.02
    assert scores.iou_occupied_near >= scores.iou_occupied > 0
    assert scores.observed_occupied > 0.4


def test_samples_are_of_unseen_cells_in_the_world(robot):
    chance, occupied = completion_samples(robot)
    assert len(chance) == len(occupied) > 20
    assert ((chance > 0) & (chance < 1)).all()
    unseen = ~robot.grid.observed & ~robot.outside
    assert len(chance) <= unseen.sum()


def test_the_threshold_of_calling_cells_occupied_is_that_of_the_largest_overlap(robot):
    threshold = best_threshold([robot])
    chance, occupied = completion_samples(robot)

    def overlap_from(value):
        return (occupied & (chance > value)).sum() / (occupied | (chance > value)).sum()

    assert overlap_from(threshold) >= max(overlap_from(value) for value in (0.1, 0.3, 0.5)) - 1e-6


def test_the_bundled_calibration_orders_evidence():
    calibration = load_calibration()
    assert 0 < calibration.observed_free < 0.02 < calibration.unknown < 0.5 < calibration.observed_occupied < 1
    for model in (calibration.estimated, calibration.imagined):
        free, nothing, hit = (probability(model, np.array([h]), np.array([f]))[0] for h, f in ((0, 1), (0, 0), (1, 0)))
        assert free <= nothing <= hit
    assert calibration.completed[1] >= 0
    assert max(CellState) == CellState.OBSERVED_OCCUPIED
