"""Estimated points in a free line of sight of another photograph."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.reconstruction.free_space import bridges, seen_through

CAMERA = Camera(64, 48, 50.0, 50.0, 31.5, 23.5)


def view(x: float = 0.0, depth: float = 0.0) -> View:
    """A view along z, `x` metres to the right, with a constant depth."""
    pose = np.eye(4)
    pose[0, 3] = x
    return View(np.zeros((48, 64, 3), np.uint8), CAMERA, pose, np.full((48, 64), depth, np.float32))


def wall(depth: float = 4.0) -> np.ndarray:
    return np.full((48, 64), depth, np.float32)


@given(x=st.floats(-0.5, 0.5), depth=st.floats(1.0, 3.8), front=st.booleans())
@settings(max_examples=30, deadline=None)
def test_points_before_an_observed_wall_are_found_and_others_are_not(x, depth, front):
    """A second camera beside the first one observes a wall at 4 m."""
    z = depth if front else 4.0 * 0.99  # within what observed depth may err
    estimated = np.zeros((48, 64), bool)
    estimated[10:30, 20:40] = True
    found = seen_through(view(depth=z), estimated, [(view(x), wall())])
    assert not found[~estimated].any()
    if not front:
        assert not found.any()
        return
    columns = np.arange(20, 40)
    shown = np.rint((columns - CAMERA.cx) - x / z * CAMERA.fx + CAMERA.cx)
    inside = (shown >= 0) & (shown < CAMERA.width)
    assert (found[10:30, 20:40] == inside).all()


def test_what_lies_behind_is_hidden_and_no_contradiction():
    everything = np.ones((48, 64), bool)
    assert not seen_through(view(depth=6.0), everything, [(view(0.2), wall())]).any()


def test_pixels_of_unknown_depth_and_their_edges_say_nothing():
    observed = wall()
    observed[:, :32] = 0
    found = seen_through(view(depth=2.0), np.ones((48, 64), bool), [(view(), observed)])
    assert not found[:, :32].any()
    assert found[:, 32:].all()


def test_beside_an_edge_the_nearer_surface_counts():
    observed = wall()
    observed[:, 20:] = 2.0
    found = seen_through(view(depth=2.0), np.ones((48, 64), bool), [(view(), observed)])
    assert found[:, :19].all()
    assert not found[:, 19:].any()


@pytest.mark.parametrize("others", [[], [(view(), wall(0.0))]])
def test_without_observations_nothing_is_found(others):
    assert not seen_through(view(depth=2.0), np.ones((48, 64), bool), others).any()


def test_cameras_that_look_away_say_nothing():
    away = view()
    away.world_from_camera[:3, :3] = np.diag([-1.0, 1.0, -1.0])
    assert not seen_through(view(depth=2.0), np.ones((48, 64), bool), [(away, wall())]).any()


def test_bridges_between_surfaces_are_found_and_slopes_are_not():
    depth = np.tile(np.linspace(2, 4, 64, dtype=np.float32), (48, 1))  # a wall seen from the side
    everything = np.ones((48, 64), bool)
    assert not bridges(depth, everything).any()
    depth[:, 30:] += np.minimum(np.arange(34), 4).astype(np.float32)  # to another one, a metre a pixel
    found = bridges(depth, everything)
    assert found[:, 30:35].all()
    assert not found[:, :30].any()
    assert not found[:, 35:].any()
    assert not bridges(depth, np.zeros_like(everything)).any()
    depth[:, 31:34] = 0  # unknown pixels are no neighbours
    assert not bridges(depth, everything).any()
