"""Photographs without poses, placed among captures with poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, pose_at, render

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.similarity import rotation_angles
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.reconstruction.placed_views import placed_view
from worldstereo_ros.reconstruction.placement import PhotographPlacer, PlacementSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def without_depth(view: View) -> View:
    return replace(view, depth=None)


@pytest.fixture(scope="module")
def captures() -> list[View]:
    return [render(pose) for pose in arc(5)]


@pytest.fixture(scope="module")
def photograph() -> View:
    return render(pose_at(np.radians(4.0), height=-0.1, distance=3.0))


def errors(pose: np.ndarray, view: View) -> tuple[float, float]:
    """(distance in the unit of the poses, angle in degrees) between a pose and that of a view."""
    degrees = float(np.degrees(rotation_angles(pose[:3, :3], view.world_from_camera[:3, :3])))
    return float(np.linalg.norm(pose[:3, 3] - view.world_from_camera[:3, 3])), degrees


@pytest.mark.parametrize("depth", [True, False], ids=["measured depth", "triangulated"])
def test_photograph_is_placed(captures, photograph, depth):
    placer = PhotographPlacer()
    given = captures if depth else [without_depth(view) for view in captures]
    placement = placer.place(photograph.image, photograph.camera, given)
    assert placement.world_from_camera is not None, placement.reason
    distance, degrees = errors(placement.world_from_camera, photograph)
    assert distance < 0.02  # of 3 m
    assert degrees < 0.4
    assert placement.position_error < 0.03
    assert set(placement.neighbours) <= set(range(len(captures)))
    # In any other order of the captures the same pose comes out.
    other = placer.place(photograph.image, photograph.camera, given[::-1])
    assert other.world_from_camera is not None
    np.testing.assert_allclose(other.world_from_camera, placement.world_from_camera, atol=0.02)


def test_photograph_of_another_camera_is_placed(captures):
    """A telephoto lens in portrait, as of a telephone."""
    camera = Camera(200, 280, 330.0, 330.0, 99.5, 139.5)
    view = render(pose_at(np.radians(-5.0), distance=3.4), camera)
    placement = PhotographPlacer().place(view.image, camera, captures)
    assert placement.world_from_camera is not None, placement.reason
    assert errors(placement.world_from_camera, view)[0] < 0.03


def test_photograph_of_another_place_is_refused_with_a_sentence(captures):
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (45, 60, 3), dtype=np.uint8)
    elsewhere = np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1))
    placement = PhotographPlacer().place(elsewhere, CAMERA, captures)
    assert placement.world_from_camera is None
    assert placement.reason.startswith("It does not overlap the map")
    grey = PhotographPlacer().place(np.full_like(elsewhere, 90), CAMERA, captures)
    assert "features" in grey.reason
    none = PhotographPlacer().place(elsewhere, CAMERA, [])
    assert "no capture" in none.reason


def test_wrong_intrinsics_give_no_wrong_pose(captures, photograph):
    """A photograph that was cropped, with the intrinsics of the whole: its pose is refused or nearly right."""
    cropped = np.ascontiguousarray(photograph.image[:120, :160])
    placement = PhotographPlacer().place(cropped, Camera(160, 120, 210.0, 210.0, 79.5, 59.5), captures)
    if placement.world_from_camera is not None:
        assert errors(placement.world_from_camera, photograph)[0] < 0.5


def test_pattern_that_repeats_is_refused():
    """Two equal posters on a wall: what shows one of them alone may stand before either."""
    random = np.random.default_rng(5)
    poster = random.integers(20, 235, (40, 40, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    camera = Camera(320, 120, 200.0, 200.0, 159.5, 59.5)
    wall = np.full((120, 320, 3), 128, np.uint8)
    wall[20:100, 40:120] = wall[20:100, 200:280] = poster
    captures = [View(wall, camera, np.eye(4), np.full((120, 320), 2.0, np.float32))]
    narrow = Camera(120, 120, 200.0, 200.0, 59.5, 59.5)
    placer = PhotographPlacer(PlacementSettings(min_points=15))
    both = placer.place(wall, camera, captures)
    one = placer.place(np.ascontiguousarray(wall[:, 20:140]), narrow, captures)
    assert one.world_from_camera is None, both
    assert one.reason


def test_depth_of_a_placed_photograph_is_estimated_and_right(captures, photograph):
    given = [without_depth(view) for view in captures]
    placement = PhotographPlacer().place(photograph.image, photograph.camera, given)
    view = placed_view(photograph.image, photograph.camera, placement, given, stamp_ns=7, metric=False)
    assert view.estimated_mask.all()
    assert view.is_observation
    assert (view.stamp_ns, view.metric) == (7, False)
    known = view.depth > 0
    assert known.mean() > 0.4
    relative = np.abs(view.depth[known] / photograph.depth[known] - 1)
    assert np.median(relative) < 0.02
    assert (relative < 0.1).mean() > 0.9
    assert (view.depth_confidence[known] > 0.9).all()
    assert (view.depth_confidence[~known] == 0).all()


def test_holes_get_the_depth_of_the_estimator(captures, photograph):
    placement = PhotographPlacer().place(photograph.image, photograph.camera, captures)

    def flat(image: np.ndarray, camera: Camera) -> np.ndarray:
        return np.full(image.shape[:2], 1.5, np.float32)

    view = placed_view(photograph.image, photograph.camera, placement, captures, estimator=flat)
    assert (view.depth > 0).all()
    assert view.estimated_mask.all()


def test_real_photographs_are_placed(shared_data):
    """Every fourth photograph of the fox has a pose; others are placed among them to a fifth of a percent."""
    sequence = open_sequence(shared_data / "multiview_fox")
    views = list(sequence)
    centres = np.stack([view.world_from_camera[:3, 3] for view in views])
    size = float(np.linalg.norm(np.ptp(centres, axis=0)))
    placer = PhotographPlacer()
    for number in (2, 9, 18):
        placement = placer.place(views[number].image, views[number].camera, views[::4])
        assert placement.world_from_camera is not None, placement.reason
        distance, degrees = errors(placement.world_from_camera, views[number])
        assert distance / size < 0.005
        assert degrees < 0.5
