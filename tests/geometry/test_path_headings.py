"""Headings along a path, against headings worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from worldstereo_ros.geometry.path_headings import headings_along, without_headings

NONE, LEFT = (0, 0, 0, 1), (0, 0, np.sqrt(0.5), np.sqrt(0.5))
LINE = np.array([(0, 0.1 * i, 0) for i in range(5)])


def ahead(positions) -> list:
    return headings_along(np.array(positions, float))[:, :, 0].round(6).tolist()


def test_corner_turns_the_heading():
    path = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0)]
    assert ahead(path) == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_body_stays_level_and_right_handed_on_a_slope():
    rotations = headings_along(np.array([(0, 0, 0), (-1, -1, 3), (-2, -2, 6)], float))
    np.testing.assert_allclose(rotations[:, :, 2], np.tile((0, 0, 1), (3, 1)))
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    np.testing.assert_allclose(rotations[:, :, 0], np.tile((-np.sqrt(0.5), -np.sqrt(0.5), 0), (3, 1)))


def test_standing_jittering_and_vertical_parts_take_the_heading_of_the_way_after():
    path = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0.001, 1, 1), (0, 1.001, 1), (0, 1, 9), (1, 1, 9), (1, 1, 9)]
    expected = [[0, 1, 0], [0, 1, 0], *[[1, 0, 0]] * 6]
    assert ahead(path) == expected


@pytest.mark.parametrize("path", [np.zeros((4, 3)), np.array([(0, 0, float(z)) for z in range(4)]), np.zeros((1, 3))])
def test_path_without_horizontal_motion_has_no_heading(path):
    assert headings_along(path) is None


def test_many_repeated_poses_take_one_pass():
    path = np.zeros((50_000, 3))
    path[-1, 1] = 1
    np.testing.assert_allclose(headings_along(path)[:, :, 0], np.tile((0, 1, 0), (len(path), 1)))


@pytest.mark.parametrize(
    ("orientations", "expected"),
    [
        ([NONE] * 5, [True] * 5),
        ([NONE] * 4 + [LEFT], [True] * 4 + [False]),  # NavFn: the last one is the goal's
        ([LEFT] + [NONE] * 4, [False] + [True] * 4),
        ([LEFT] * 5, [False] * 5),
        ([NONE, NONE, LEFT, NONE, NONE], [False] * 5),
        ([(0, 0, 0, -1)] * 5, [False] * 5),
    ],
)
def test_planners_default_orientation_is_no_heading(orientations, expected):
    assert without_headings(np.array(orientations), LINE).tolist() == expected


def test_path_of_two_poses_with_one_orientation_has_headings():
    assert not without_headings(np.array([NONE, LEFT]), LINE[:2]).any()
    assert without_headings(np.array([NONE, NONE]), LINE[:2]).all()


def test_path_that_does_not_move_has_headings():
    assert not without_headings(np.array([NONE] * 3), np.zeros((3, 3))).any()
    assert not without_headings(np.array([NONE]), np.zeros((1, 3))).any()
