"""Cells of grids as messages have them."""

import numpy as np

from worldstereo_ros.planning import RobotShape
from worldstereo_ros.planning.occupancy_grid import merge_evidence
from worldstereo_ros.ros.conversions.grids import variance_cells


def test_variance_is_in_percent_of_the_largest_and_unknown_stays_unknown():
    # From left: observed free, hypotheses that agree, that differ a little, that contradict each other, nothing known.
    free = np.array([[True, False, False, False, False]])
    hypotheses = np.array([[[0.9, 0.3, 0.4, 0.0, np.nan]], [[0.1, 0.3, 0.6, 1.0, np.nan]]], np.float32)
    grid = merge_evidence(
        observed_free=free, observed_occupied=np.zeros_like(free), estimated=np.full(free.shape, np.nan, np.float32),
        hypotheses=hypotheses, floor=np.zeros(free.shape, np.float32), origin=(0.0, 0.0), resolution=0.1,
        grid_from_world=np.eye(3), robot=RobotShape(), metric=True,
    )  # fmt: skip
    cells = variance_cells(grid)
    assert cells.dtype == np.int8
    np.testing.assert_array_equal(cells, [[0, 0, 4, 100, -1]])
