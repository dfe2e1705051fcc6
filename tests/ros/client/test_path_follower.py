"""Lanes, the speed limit of a mask, and the robot that follows a path."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldstereo_ros.ros.client.path_follower import (
    BRAKING_M_S2,
    FULL_SPEED_M_S,
    MARGIN_M,
    FollowingRobot,
    GridCells,
    MaskMeaning,
    headings,
    lane,
    merge,
    speed_limit,
)

LEFT_TURN = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]])
RIGHT_TURN = LEFT_TURN * (1, -1)


@pytest.mark.parametrize("route", [LEFT_TURN, RIGHT_TURN], ids=["left", "right"])
@pytest.mark.parametrize("offset", [-0.4, 0.0, 0.4])
def test_lane_keeps_its_distance_from_the_route(route, offset):
    points = lane(route, offset, 0.9)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.max() < 0.06
    side = 1 if route is LEFT_TURN else -1
    np.testing.assert_allclose(points[0], [0, offset], atol=1e-9)
    np.testing.assert_allclose(points[-1], [4 - side * offset, 3 * side], atol=1e-9)
    turns = np.diff(np.unwrap(headings(points)))
    assert turns.sum() == pytest.approx(side * math.pi / 2, abs=0.01)
    assert (side * turns > -1e-3).all()
    middle = lane(route, 0.0, 0.9)
    away = np.linalg.norm(points[:, None] - middle[None], axis=2).min(axis=1)
    np.testing.assert_allclose(away, abs(offset), atol=0.03)


def test_merged_path_begins_at_the_robot_and_ends_on_the_lane():
    points = lane(LEFT_TURN, 0.4, 0.9)
    path = merge(np.array([1.0, -0.3]), points)
    np.testing.assert_allclose(path[0], [1.0, -0.3], atol=1e-9)
    np.testing.assert_allclose(path[-1], points[-1], atol=1e-9)
    assert np.abs(headings(path)[:20]).max() < 1.0  # no step to the side


def test_limit_is_that_of_nav2s_speed_filter():
    mask = GridCells(np.array([[0, 40], [-1, 90]], np.int8), np.array([1.0, 2.0]), 0.5)
    at = {"no limit": (1.2, 2.2), "percent": (1.7, 2.2), "unknown": (1.2, 2.7), "outside": (0.9, 2.2)}
    limits = {name: speed_limit(mask, MaskMeaning(), np.array(place)) for name, place in at.items()}
    assert limits == {"no limit": 1.0, "percent": 0.4, "unknown": None, "outside": None}
    assert speed_limit(mask, MaskMeaning(100.0, -1.0), np.array(at["percent"])) == pytest.approx(0.6)
    assert speed_limit(mask, MaskMeaning(50.0, 1.0), np.array((1.7, 2.7))) == 1.0  # 140 % is no limit


def drive_straight(limit, free_way=lambda x: math.inf, seconds=20.0):
    robot = FollowingRobot(0.0, 0.0, 0.0, 0.2)
    robot.path = np.stack([np.arange(0, 6.01, 0.05), np.zeros(121)], axis=1)
    speeds = []
    for _ in range(round(seconds / 0.1)):
        robot.step(0.1, limit(robot.x), free_way(robot.x))
        speeds.append(robot.speed)
        if robot.arrived and robot.speed < 0.05:
            break
    return robot, np.array(speeds)


def test_robot_keeps_the_limit_and_stops_at_the_end():
    robot, speeds = drive_straight(lambda x: 0.5)
    assert robot.arrived
    assert speeds.max() == pytest.approx(0.5 * FULL_SPEED_M_S)
    assert np.abs(np.diff(speeds)).max() <= BRAKING_M_S2 * 0.1 + 1e-9
    assert abs(robot.y) < 1e-9


def test_robot_stops_before_what_is_in_its_way():
    robot, speeds = drive_straight(lambda x: 1.0, lambda x: 3.0 - x)
    assert not robot.arrived
    assert speeds[-1] < 0.01
    assert 3.0 - MARGIN_M - 0.15 < robot.x < 3.0 - 0.5 * MARGIN_M


def test_free_way_ends_where_the_circle_touches_an_occupied_cell():
    robot = FollowingRobot(0.0, 0.0, 0.0, 0.2)
    robot.path = np.stack([np.arange(0, 3.01, 0.05), np.zeros(61)], axis=1)
    cells = np.zeros((20, 40), np.int8)
    grid = GridCells(cells, np.array([-1.0, -1.0]), 0.1)
    assert robot.free_way(grid) == robot.free_way(None) == math.inf
    cells[10, 25] = 100  # at (1.55, 0.05)
    assert robot.free_way(grid) == pytest.approx(1.4, abs=0.06)
    cells[10, 25], cells[14, 25] = -1, 100  # 0.45 m beside the path
    assert robot.free_way(grid) == math.inf


def test_robot_turns_around_a_corner_on_its_lane():
    robot = FollowingRobot(0.0, 0.0, 0.0, 0.2)
    middle = lane(LEFT_TURN, 0.0, 0.9)
    robot.path, away = middle, []
    for _ in range(200):
        robot.step(0.1, 1.0)
        away.append(np.linalg.norm(middle - robot.position, axis=1).min())
        if robot.arrived:
            break
    assert robot.arrived
    assert max(away) < 0.12
