import itertools
import math

import numpy as np
import pytest

from worldstereo_ros.planning.coverage_tour import Viewpoints, coverable, coverage_tour, open_two_opt
from worldstereo_ros.planning.travel import TravelField


def open_room(size: int = 60) -> np.ndarray:
    return np.zeros((size, size), np.float32)


def test_a_camera_that_turns_sees_a_disk_and_nothing_behind_a_wall():
    opaque = open_room()
    opaque[:, 40] = 1
    points = Viewpoints(opaque, np.ones_like(opaque), np.array([30]), np.array([30]), 15)
    covered = points.nothing()
    points.cover(0, covered)
    assert covered[30, 40] == 1
    assert covered[:, 41:].max() == 0
    assert covered[30, 15] == covered[30, 30] == 1
    assert covered[30, 14] == 0
    left = math.pi * 15**2 / 2
    assert left < points.gains()[0] < 2 * left
    assert points.gains(covered)[0] == 0


def test_what_is_half_opaque_hides_half():
    opaque = open_room()
    opaque[:, 35] = 0.5
    points = Viewpoints(opaque, np.ones_like(opaque), np.array([30]), np.array([30]), 10)
    covered = points.nothing()
    points.cover(0, covered)
    assert covered[30, 36] == pytest.approx(0.5)


@pytest.mark.parametrize("yaw", [0.0, 1.5, 3.1, -2.0])
def test_the_best_heading_looks_at_what_is_worth_it(yaw):
    worth = open_room()
    row, column = round(30 + 10 * math.sin(yaw)), round(30 + 10 * math.cos(yaw))
    worth[row - 1 : row + 2, column - 1 : column + 2] = 1
    points = Viewpoints(open_room(), worth, np.array([30]), np.array([30]), 15)
    found, gain = points.best_heading(0, math.radians(70))
    off = (found - math.atan2(row - 30, column - 30) + math.pi) % (2 * math.pi) - math.pi
    assert abs(off) < math.radians(35)
    assert gain == pytest.approx(9)
    rows, columns, seen = points.expected(0)
    assert len(rows) == len(columns) == 9
    assert (seen == 1).all()


def tour_of(worth, places, **options):
    field = TravelField(np.ones(worth.shape, bool), *places[0], 0.1)
    points = Viewpoints(np.zeros_like(worth), worth, *np.array(places).T, 3)
    return coverage_tour(points, 0, field, 0.1, **{"enough": 1e9, "min_gain": 1, **options})


def test_a_tour_takes_what_is_near_on_its_way_and_does_not_come_back():
    worth = np.zeros((9, 120), np.float32)
    places = [(4, 30), (4, 20), (4, 60), (4, 90), (4, 110)]
    for row, column in places[1:]:
        worth[row, column] = 5
    assert tour_of(worth, places) == [1, 2, 3, 4]


def test_a_tour_leaves_out_what_costs_most_when_enough_is_seen():
    worth = np.zeros((9, 120), np.float32)
    places = [(4, 30), (4, 40), (4, 50), (4, 115)]
    for row, column in places[1:]:
        worth[row, column] = 5
    assert tour_of(worth, places, enough=10) == [1, 2]
    assert tour_of(worth, places, enough=11) == [1, 2, 3]
    assert tour_of(worth, places, min_gain=6) == []


def test_a_tour_keeps_to_the_place_on_the_way_unless_another_order_is_much_shorter():
    worth = np.zeros((9, 120), np.float32)
    places = [(4, 60), (4, 56), (4, 65), (4, 6)]
    worth[4, 56] = worth[4, 65] = 5
    assert tour_of(worth, places) == [1, 2]
    assert tour_of(worth, places, before=2) == [2, 1]
    worth[4, 6] = 5
    assert tour_of(worth, places, before=3)[0] != 3


def test_nothing_to_see_is_no_tour():
    assert tour_of(np.zeros((9, 120), np.float32), [(4, 30), (4, 40)]) == []


def test_two_opt_is_never_longer_and_finds_the_best_of_few_places():
    rng = np.random.default_rng(0)
    for _ in range(10):
        at = rng.random((6, 2))
        between = np.hypot(*np.moveaxis(at[:, None] - at[None], -1, 0))

        def length(order, between=between):
            return sum(between[a, b] for a, b in itertools.pairwise(order))

        order = open_two_opt(between)
        best = min(length([0, *rest]) for rest in itertools.permutations(range(1, 6)))
        assert order[0] == 0
        assert sorted(order) == list(range(6))
        assert length(order) <= min(length(range(6)), 1.15 * best) + 1e-9
        assert open_two_opt(between, fixed=2)[:2] == [0, 1]


def test_the_robot_cannot_cover_what_is_too_narrow():
    free = np.zeros((30, 40), bool)
    free[5:25, 5:20] = True
    free[14:16, 20:35] = True  # a slit
    cover = coverable(free, (15, 10), 2)
    assert cover[6:24, 6:19].all()
    assert not cover[:, 23:].any()
    assert not (cover & ~free).any()


def test_ways_of_least_cost_go_around():
    free, cost = np.ones((11, 21), bool), np.ones((11, 21), np.float32)
    cost[3:8, 10] = 20
    plain, priced = (TravelField(free, 5, 2, 0.1, cost=c) for c in (None, cost))
    assert (plain.path_to(5, 18)[:, 0] == 5).all()
    way = priced.path_to(5, 18)
    assert (cost[way[:, 0], way[:, 1]] == 1).all()
    assert priced.distance[5, 18] < 3.0
    assert plain.distance[5, 18] == pytest.approx(1.6)
