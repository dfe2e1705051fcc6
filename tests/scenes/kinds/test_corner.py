"""The corridor with a corner of `worldstereo demo --drive`."""

from __future__ import annotations

import numpy as np
import pytest

from worldstereo_ros.scenes import KINDS, clearance, seed_of
from worldstereo_ros.scenes.kinds.corner import HALF_WIDTH_M, corner_world

WORLDS = [corner_world(seed_of("demo", number)) for number in range(6)]


def test_it_is_no_kind_of_the_worlds_of_training_and_evaluation():
    assert list(KINDS) == ["room", "corridor", "warehouse", "lot"]


def test_seeds_turn_to_both_sides_and_the_same_seed_is_the_same_world():
    sides = {float(np.sign(world.route[2, 1] - world.route[1, 1])) for world in WORLDS}
    assert sides == {-1.0, 1.0}
    again = corner_world(seed_of("demo", 0))
    np.testing.assert_array_equal(again.scene.primitives.centre.numpy(), WORLDS[0].scene.primitives.centre.numpy())


@pytest.mark.parametrize("world", WORLDS, ids=range(6))
def test_way_is_free_but_for_what_stands_behind_the_corner(world):
    first, second = (np.linspace(*world.route[n : n + 2], 60) for n in (0, 1))
    points = np.concatenate([first, second])
    room = clearance(world.scene, np.column_stack([points, np.full(len(points), 0.3)]))
    apart = np.linalg.norm(points - world.obstacle, axis=1)
    assert room[apart > 0.8].min() > 0.25
    assert room.min() < 0.2  # it is in the way
    # A wall is between it and the robot until near the corner.
    for share in (0.0, 0.3, 0.6):
        start = world.route[0] + share * (world.route[1] - world.route[0])
        sight = np.linspace(start, world.obstacle, 200)[:-20]
        assert clearance(world.scene, np.column_stack([sight, np.full(len(sight), 0.3)])).min() == 0
    assert np.linalg.norm(world.route[1] - world.inner_corner) == pytest.approx(np.sqrt(2) * HALF_WIDTH_M)
    low, high = np.array(world.scene.bounds)[:, :2]
    assert ((points > low) & (points < high)).all()
