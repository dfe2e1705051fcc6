"""Rooms are closed where no view saw a wall, and stay open where one looked through."""

import numpy as np
import pytest
from helpers.box_room import CAMERA, COLOURS, HIGH, LOW, observe, room, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.layout import estimate_layout
from worldstereo_ros.pipelines.geometric.room_closing import CEILING, FLOOR, WALL


def test_a_view_turned_away_shows_a_room():
    layout = estimate_layout([observe(turned(0))])
    there = turned(180, tilt=30)
    unclosed = layout.without_closing().render_view(CAMERA, there)
    closed = layout.render_view(CAMERA, there)
    assert unclosed.probability.mean() < 0.5
    assert closed.probability.mean() > 0.6
    assert (closed.plane >= 0).mean() > 0.98
    truth, wall = room(there)
    floor = wall == 3  # whose height is known
    assert (np.abs(closed.depth - truth) < 0.05 * truth)[floor].mean() > 0.9


def test_seen_sides_close_the_room_where_they_are():
    layout = estimate_layout([observe(turned(0))])
    assert layout.room is not None
    sides = {kind: [side for side in layout.room.sides if side.kind == kind] for kind in (FLOOR, CEILING, WALL)}
    assert sides[FLOOR][0].source >= 0
    assert sides[FLOOR][0].offset == pytest.approx(-HIGH[1], abs=0.02)
    assert sides[CEILING][0].offset == pytest.approx(LOW[1], abs=0.02)
    seen = [side for side in sides[WALL] if side.source >= 0]
    assert len(sides[WALL]) == 4
    assert len(seen) == 3  # all but the one behind the camera
    behind = next(side for side in sides[WALL] if side.source < 0)
    assert behind.normal[2] > 0.99
    assert -behind.offset > 0.3  # behind the camera
    assert behind.probability < min(side.probability for side in seen)


@pytest.mark.parametrize("tilt", [-30, 0, 30, 45])
def test_up_is_found_by_cameras_that_are_tilted(tilt):
    layout = estimate_layout([observe(turned(20, tilt))])
    assert layout.room is not None
    assert layout.room.up @ np.array([0, -1, 0]) > 0.999


def test_planes_end_at_the_sides_of_the_room():
    layout = estimate_layout([observe(turned(0))])
    outside = turned(0, tilt=20)
    outside[2, 3] = HIGH[2] + 0.2  # just beyond the far wall, looking away from it
    floor = layout.render_view(CAMERA, outside)
    before = layout.without_closing().render_view(CAMERA, outside)
    rows = slice(90, 120)
    assert before.probability[rows].mean() > 0.2
    assert floor.probability[rows].mean() < 0.5 * before.probability[rows].mean()


def test_a_room_is_not_closed_where_a_view_looked_through():
    view = observe(turned(0))
    _, wall = room(turned(0))
    assert view.depth is not None
    doorway = np.zeros(wall.shape, bool)
    doorway[40:80, 60:100] = True
    depth = np.where(doorway, np.float32(0), view.depth)  # nothing was measured through it
    layout = estimate_layout([View(view.image, CAMERA, np.eye(4), depth)])
    planes = layout.render_view(CAMERA, np.eye(4))
    assert not planes.probability[45:75, 65:95].any()
    assert (planes.probability > 0.5)[~doorway].mean() > 0.95


def test_outdoors_there_is_ground_and_sky_and_no_wall():
    view = observe(turned(0))
    _, wall = room(turned(0))
    assert view.depth is not None
    image = view.image.copy()
    image[wall != 3] = 120, 160, 220
    open_view = View(image, CAMERA, np.eye(4), np.where(wall == 3, view.depth, 0))
    layout = estimate_layout([open_view])
    assert layout.room is not None
    assert layout.room.outdoors
    assert {side.kind for side in layout.room.sides} == {FLOOR}
    assert layout.sky is not None
    assert np.abs(layout.sky - (120, 160, 220)).max() < 8


@pytest.mark.parametrize("metric", [True, False])
def test_a_sensor_of_short_range_makes_no_sky(metric):
    """Half of what is above the horizon is not measured, beside a wall of 1.2 m above the camera."""
    view = observe(turned(0))
    _, wall = room(turned(0))
    rows = np.arange(CAMERA.height)[:, None] + np.zeros((1, CAMERA.width), int)
    near = (wall == 3) | ((rows > 25) & (np.arange(CAMERA.width) < CAMERA.width // 2))
    layout = estimate_layout(
        [View(view.image, CAMERA, np.eye(4), np.where(near, view.depth, np.float32(0)), metric=metric)]
    )
    assert layout.room is not None
    assert layout.room.outdoors != metric


def test_assumed_walls_have_the_colours_of_seen_ones():
    view = observe(turned(0))
    _, wall = room(turned(0))
    image = np.where(np.isin(wall, (0, 1, 5))[..., None], (90, 140, 110), view.image).astype(np.uint8)
    layout = estimate_layout([View(image, CAMERA, np.eye(4), view.depth)])
    there = turned(180, tilt=20)
    planes = layout.render_view(CAMERA, there)
    colours = layout.render_surfaces(planes, CAMERA, there, details=False)
    _, behind = room(there)
    for shown, expected in ((planes.plane == layout.detected, (90, 140, 110)), (behind == 3, COLOURS[3])):
        assert shown.sum() > 200
        assert np.abs(np.median(colours[shown], axis=0) - expected).max() < 15


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(-180, 180))
def test_the_room_moves_with_the_world(seed, x, degrees):
    """A world frame that is turned about the vertical and shifted changes nothing."""
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("y", degrees, degrees=True).as_matrix()
    moved[:3, 3] = x, -x / 2, x / 3
    view, there = observe(turned(10)), turned(170)
    one = estimate_layout([view]).render_view(CAMERA, there)
    other = estimate_layout([View(view.image, CAMERA, moved @ turned(10), view.depth)]).render_view(
        CAMERA, moved @ there
    )
    near = np.abs(one.depth - other.depth) < 0.03 * one.depth + 0.02
    assert near.mean() > 0.9


def test_nothing_unseen_is_assumed_where_lengths_are_no_metres():
    view = observe(turned(0), metric=False)
    layout = estimate_layout([view])
    assert layout.room is not None
    assert layout.room.sides
    assert all(side.source >= 0 for side in layout.room.sides)
    assert len(layout) == layout.detected
    alone = View(view.image, CAMERA, np.eye(4), np.where(room(np.eye(4))[1] == 5, view.depth, 0), metric=False)
    assert estimate_layout([alone]).render_view(CAMERA, turned(180)).probability.max() < 0.5  # a wall without a floor
