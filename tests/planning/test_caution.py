"""Where the robot is to drive slowly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from helpers.floor_plans import around, boxes, mapped

from worldstereo_ros.planning.caution import slow_zone
from worldstereo_ros.planning.cells import RobotShape
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid, merge_evidence


def plan(rows: list[str], radius: float = 0.2) -> OccupancyGrid:
    """A grid of 0.1 m from letters: `.` seen free, `#` seen occupied, `?` unseen; the last row has the lowest y."""
    letters = np.array([list(row) for row in rows[::-1]])
    return merge_evidence(
        observed_free=letters == ".", observed_occupied=letters == "#",
        estimated=np.full(letters.shape, np.nan, np.float32), hypotheses=np.zeros((0, *letters.shape), np.float32),
        floor=np.zeros(letters.shape, np.float32), origin=(0.0, 0.0), resolution=0.1, grid_from_world=np.eye(3),
        robot=RobotShape(radius=radius),
    )  # fmt: skip


def corridor(gap: int) -> OccupancyGrid:
    """A corridor of 40 x 11 cells along x, its far end closed, with a gap of some cells in the wall above it."""
    wall = list("#" * 40)
    wall[20 : 20 + gap] = "?" * gap
    return plan(["?" * 40] * 12 + ["".join(wall)] + ["#" + "." * 38 + "#"] * 11 + ["#" * 40] + ["?" * 40] * 12)


def test_way_before_an_opening_is_slow_and_no_more():
    grid = corridor(gap=8)
    slow = slow_zone(grid, 0.6)
    middle = 12 + 1 + 5  # row of the middle of the corridor
    assert slow[~grid.observed].all()
    assert slow[middle + 3, 22:26].all()  # 0.3 m below the opening
    assert not slow[middle, 2:14].any()
    assert not slow[middle, 32:38].any()
    assert slow_zone(grid, 1.2)[middle].sum() > slow[middle].sum() > 0


def test_gap_through_which_the_robot_does_not_fit_does_not_slow_it():
    grid = corridor(gap=3)
    np.testing.assert_array_equal(slow_zone(grid, 1.0), ~grid.observed)
    assert slow_zone(replace(grid, robot=RobotShape(radius=0.05)), 1.0)[grid.observed].any()  # a thinner one fits


def test_end_of_the_map_is_an_opening():
    grid = plan(["#" * 30, *["." * 30] * 9, "#" * 30])
    slow = slow_zone(grid, 0.5)
    assert slow[5, :3].all()
    assert slow[5, -3:].all()
    assert not slow[5, 10:20].any()


def test_without_a_distance_only_what_was_not_seen_is_slow():
    scene = boxes(((1.5, 0.0, 0.5), (0.4, 1.0, 1.0)))
    # From two places: from one alone it has not seen the floor below itself.
    grid = make_grid(mapped(scene, *around(scene, -0.5, 0.0), *around(scene, -2.3, 0.2)))
    np.testing.assert_array_equal(slow_zone(grid), ~grid.observed)
    before = slow_zone(grid, 0.5) & grid.observed
    rows, columns = np.nonzero(before)
    places = grid.world_points(rows, columns)
    assert len(places) > 20
    assert (places[:, 0] > 1.0).all()  # beside the box, from behind which something may come
