"""Depth of rendered clouds, interpolated in the views that measured it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.surface_depth import DepthSource, refine_depth

CAMERA = Camera.from_fov(160, 120, 1.2)
STEP_M = 0.5  # of the staircases


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def depth_of_plane(plane: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> np.ndarray:
    """(H, W) float32 depth of normal . point = offset, 0 where it is not in front of the camera."""
    along = camera.rays() @ (world_from_camera[:3, :3].T @ plane[:3])
    height = plane[3] - plane[:3] @ world_from_camera[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = height / along
    return np.where((depth > 0.1) & (depth < 30), depth, 0).astype(np.float32)


def source(plane: np.ndarray, world_from_camera: np.ndarray, camera: Camera = CAMERA) -> DepthSource:
    depth = depth_of_plane(plane, camera, world_from_camera)
    return DepthSource(depth, (depth > 0).astype(np.uint8), camera, world_from_camera)


FLOOR = np.array([0.0, 1.0, 0.0, 1.0])  # a metre below the camera


def test_a_floor_is_no_staircase() -> None:
    """Discs of the cloud on a floor that was seen from three metres behind are steps of up to a tenth of the depth."""
    view = source(FLOOR, pose(z=-3))
    truth = depth_of_plane(FLOOR, CAMERA, pose())
    steps = np.where(truth > 0, np.maximum(np.round(truth / 0.1) * 0.1, 0.1), 0).astype(np.float32)
    before = np.abs(steps - truth)[truth > 0]
    refined = refine_depth(steps, CAMERA, pose(), [view])
    # Only what the view saw in all four pixels around can be refined.
    changed = refined != steps
    assert changed[truth > 0].mean() > 0.6
    assert np.abs(refined - truth)[changed].max() < 0.003 < before.max()
    assert (refined[truth == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.floats(2, 6),
    st.floats(-0.4, 0.4),
    st.floats(-1, 1),
    st.integers(0, 2**32 - 1),
)
def test_planes_are_exact(a: float, b: float, distance: float, x: float, z: float, seed: int) -> None:
    """Whatever the plane and the rendered depth near it: what is refined lies on the plane."""
    normal = np.array([a, b, 1.0]) / np.linalg.norm([a, b, 1.0])
    plane = np.append(normal, distance)
    view = source(plane, pose(x=x, z=z))
    truth = depth_of_plane(plane, CAMERA, pose())
    noise = np.random.default_rng(seed).uniform(0.97, 1.03, truth.shape).astype(np.float32)
    refined = refine_depth(truth * noise, CAMERA, pose(), [view], threads=2)
    changed = refined != truth * noise
    np.testing.assert_allclose(refined[changed], truth[changed], rtol=2e-3)


def test_depth_edges_are_not_interpolated() -> None:
    """A step between two walls stays a step: no depth between the two appears."""
    depth = np.full((120, 160), 4.0, np.float32)
    depth[:, 80:] = 2.0
    view = DepthSource(depth, np.ones(depth.shape, np.uint8), CAMERA, pose())
    refined = refine_depth(depth, CAMERA, pose(x=0.02), [view])
    assert ((np.abs(refined - 4) < 0.01) | (np.abs(refined - 2) < 0.01)).all()


def test_pixels_without_depth_do_not_count() -> None:
    view = source(FLOOR, pose(z=-3))
    steps = depth_of_plane(FLOOR, CAMERA, pose()) * np.float32(1.02)
    without = view._replace(valid=np.zeros_like(view.valid))
    assert (refine_depth(steps, CAMERA, pose(), [without]) == steps).all()
    assert refine_depth(steps, CAMERA, pose(), []) is steps


@pytest.mark.parametrize("gap", [0.0, 8.0])
def test_gaps_between_discs_are_closed(gap: float) -> None:
    """Very close to a wall, discs of six pixels leave gaps; a surface that passes through them fills them exactly."""
    wall = np.array([0.3, 0.0, 1.0, 2.5])
    view = source(wall, pose(z=-4))
    truth = depth_of_plane(wall, CAMERA, pose())
    rendered = truth.copy()
    rendered[:, np.arange(160) % 8 < 4] = 0
    refined = refine_depth(rendered, CAMERA, pose(), [view], gap=gap)
    holes = rendered == 0
    if gap:
        assert (refined[holes] > 0).mean() > 0.9
        np.testing.assert_allclose(refined[refined > 0], truth[refined > 0], rtol=2e-3)
    else:
        assert (refined[holes] == 0).all()


def test_a_hole_beside_a_thing_is_not_closed() -> None:
    """What a view saw beside a near thing lies behind it, not at the thing's depth."""
    depth = np.full((120, 160), 6.0, np.float32)
    depth[:, 80:] = 2.0
    view = DepthSource(depth, np.ones(depth.shape, np.uint8), CAMERA, pose())
    rendered = np.where(
        np.arange(160)[None] >= 90, depth, np.float32(0)
    )  # the wall is missing, and a part of the thing
    refined = refine_depth(rendered, CAMERA, pose(), [view], gap=40.0)
    assert (refined[:, :79] == 0).all()
    assert (refined[:-1, 80:] == 2).all()


@pytest.mark.parametrize("behind", [1.1, 1.25, 2.0])
def test_a_thing_that_came_keeps_its_depth(behind: float) -> None:
    """A view that was taken before shows the wall behind it, from the same place."""
    wall = np.array([0.1, 0.2, 1.0, 2.0 * behind])
    view = source(wall, pose())
    thing = np.full((120, 160), 2.0, np.float32)
    near = np.abs(depth_of_plane(wall, CAMERA, pose()) / 2.0 - 1) < 0.08  # where the two meet, they are one surface
    refined = refine_depth(thing, CAMERA, pose(), [view])
    assert (refined[~near] == 2).all()
