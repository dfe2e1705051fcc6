"""Planes of observed depth, and how far they continue into estimated depth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.reconstruction.plane_continuation import MAX_CHANGE, continue_planes, find_planes

CAMERA = Camera(96, 72, 80.0, 80.0, 47.5, 35.5)
SHAPE = (72, 96)


def room(unit: float = 1.0) -> np.ndarray:
    """(H, W) depth of a wall at 4 units, and of a floor 1.2 units below the camera before it."""
    y = (np.arange(72) - CAMERA.cy) / CAMERA.fy
    floor = np.where(y > 0, 1.2 / np.maximum(y, 1e-9), np.inf)
    return np.repeat(np.minimum(4.0, floor)[:, None], 96, axis=1).astype(np.float32) * np.float32(unit)


def view(depth: np.ndarray, pose: np.ndarray | None = None) -> View:
    return View(np.zeros((*SHAPE, 3), np.uint8), CAMERA, np.eye(4) if pose is None else pose, depth)


def bent(truth: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The truth where it is observed, elsewhere an estimate that is up to 20 % off."""
    columns = np.linspace(0.0, 1.0, 96)[None]
    return np.where(observed > 0, observed, truth * np.exp(0.2 * np.sin(7 * columns))).astype(np.float32)


@given(unit=st.sampled_from([0.01, 1.0, 300.0]), seed=st.integers(0, 5))
@settings(max_examples=4, deadline=None)
def test_wall_and_floor_continue_in_any_unit(unit, seed):
    truth = room(unit)
    observed = truth.copy()
    observed[:, 40:] = 0
    planes = find_planes([(view(truth), observed)], seed)
    assert len(planes) == 2
    assert sorted(round(abs(plane.offset) / unit, 3) for plane in planes) == [1.2, 4.0]
    estimate = bent(truth, observed)
    depth, confidence = continue_planes(view(truth), observed, estimate, planes)
    off = np.abs(depth / truth - 1)
    assert np.median(np.abs(estimate / truth - 1)[:, 40:]) > 0.05
    assert (off[:, 40:] < 0.01).mean() > 0.95  # where they meet, either may be the nearer one
    assert (depth[:, :40] == observed[:, :40]).all()
    assert (confidence[:, :40] == 0).all()
    assert ((confidence[:, 40:] > 0.7) & (confidence[:, 40:] < 1)).all()


def test_planes_follow_from_other_photographs_too():
    """The camera observes a patch of the wall that is too small for a plane of its own; another one sees all of it."""
    truth = room()
    beside = np.eye(4)
    beside[0, 3] = 0.5
    observed = np.zeros(SHAPE, np.float32)
    observed[10:20, 10:20] = 4.0
    planes = find_planes([(view(truth), observed), (view(truth, beside), truth)])
    depth, _ = continue_planes(view(truth), observed, bent(truth, observed), planes)
    np.testing.assert_allclose(depth[:30], 4.0, rtol=0.005)


def test_what_is_far_from_the_plane_or_does_not_adjoin_it_stays():
    truth = np.full(SHAPE, 4.0, np.float32)
    observed = truth.copy()
    observed[:, 40:] = 0
    planes = find_planes([(view(truth), observed)])
    estimate = bent(truth, observed)
    estimate[:, 60:70] = 4.0 * np.exp(-1.1 * MAX_CHANGE)  # an object before the wall, from top to bottom
    estimate[:10, 50:55] = 0  # sky
    depth, confidence = continue_planes(view(truth), observed, estimate, planes)
    np.testing.assert_allclose(depth[20:, 40:60], 4.0, rtol=0.005)
    assert (depth[:, 60:] == estimate[:, 60:]).all()
    assert (confidence[:, 60:] == 0).all()
    assert (depth[:10, 50:55] == 0).all()


def test_the_plane_nearest_to_the_estimate_is_taken():
    truth = np.full(SHAPE, 4.0, np.float32)
    truth[:, :48] = 3.4  # two walls, one behind the other
    observed = truth.copy()
    observed[20:50] = 0
    planes = find_planes([(view(truth), observed)])
    depth, _ = continue_planes(view(truth), observed, np.where(observed > 0, observed, truth * 1.03), planes)
    np.testing.assert_allclose(depth, truth, rtol=0.005)


@pytest.mark.parametrize("shape", ["nothing", "a line", "noise"])
def test_without_a_plane_nothing_is_found(shape):
    depth = np.zeros(SHAPE, np.float32)
    if shape == "a line":
        depth[36] = 4.0
    if shape == "noise":
        depth = np.random.default_rng(0).uniform(1, 9, SHAPE).astype(np.float32)
    assert find_planes([(view(depth), depth)]) == []
    estimate = np.full(SHAPE, 3.0, np.float32)
    unchanged, confidence = continue_planes(view(depth), depth, np.where(depth > 0, depth, estimate), [])
    assert (unchanged == np.where(depth > 0, depth, estimate)).all()
    assert not confidence.any()


def test_equal_seeds_give_equal_planes():
    truth = room()
    one, other = (find_planes([(view(truth), truth)], seed=3) for _ in range(2))
    assert [(*plane.normal, plane.offset) for plane in one] == [(*plane.normal, plane.offset) for plane in other]
