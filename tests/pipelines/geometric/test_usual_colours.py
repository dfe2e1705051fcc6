"""The usual colour of a surface."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldstereo_ros.pipelines.geometric.usual_colours import nearness, usual_colour, usual_colours_of_rows

WALL, DOOR, PANEL = np.array([90.0, 100, 140]), np.array([190.0, 120, 50]), np.array([30.0, 60, 30])


@given(st.floats(0.0, 0.4), st.integers(0, 1000))
def test_it_is_the_colour_of_most_of_the_surface(share, seed):
    random = np.random.default_rng(seed)
    colours = np.where(random.random(500)[:, None] < share, DOOR, WALL) + random.normal(0, 4, (500, 3))
    assert np.abs(usual_colour(colours, np.ones(500)) - WALL).max() < 8


def test_what_counts_more_decides():
    colours = np.stack([WALL] * 5 + [DOOR] * 5)
    weights = np.array([1.0] * 5 + [4.0] * 5)
    np.testing.assert_allclose(usual_colour(colours, weights), DOOR, atol=6)


def test_nearness_falls_to_a_half_at_its_scale():
    assert nearness(WALL, WALL) == 1
    assert nearness(WALL + np.array([25.0, 0, 0]), WALL, 25.0) == pytest.approx(0.5)


def test_rows_have_the_colour_of_the_wall_or_one_of_their_own():
    """A door fills most of some rows, a panel all of others; nothing is known of the last."""
    colours = np.broadcast_to(WALL, (20, 40, 3)).copy()
    colours[2:6, :26] = DOOR
    colours[6:9] = PANEL
    weights = np.ones((20, 40))
    weights[19] = 0
    found = usual_colours_of_rows(colours, weights)
    np.testing.assert_allclose(found[:6], np.tile(WALL, (6, 1)), atol=12)
    np.testing.assert_allclose(found[6:9], np.tile(PANEL, (3, 1)), atol=6)
    np.testing.assert_allclose(found[9:19], np.tile(WALL, (10, 1)), atol=12)
    assert np.isnan(found[19]).all()


def test_rows_without_any_weight_are_unknown():
    assert np.isnan(usual_colours_of_rows(np.zeros((3, 4, 3)), np.zeros((3, 4)))).all()
