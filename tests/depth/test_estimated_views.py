"""Estimated depth in memory: its scale, where it is inserted, and its correction by measured depth."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.walls import WALL

from worldstereo_ros.depth.alignment import DepthError
from worldstereo_ros.depth.estimated_views import correct_estimated_views, insert_estimated, with_estimated_depth
from worldstereo_ros.depth.estimators import DepthEstimate
from worldstereo_ros.geometry.cameras import project
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.memory.free_space import in_free_space

SHAPE = (WALL.camera.height, WALL.camera.width)
EVERYWHERE = np.ones(SHAPE, bool)
VOXEL = 0.02


class WrongScale:
    """An estimator that sees the wall, 2 m ahead, `factor` times as far away; `sky_rows` rows are sky."""

    def __init__(self, factor=1.6, sky_rows=0, confidence=0.4):
        self.factor, self.sky_rows, self.confidence = factor, sky_rows, confidence

    def estimate(self, image, camera):
        depth = np.full(SHAPE, 2 * self.factor, np.float32)
        depth[: self.sky_rows] = 0
        return DepthEstimate(depth, np.where(depth > 0, np.float32(self.confidence), 0))

    def __call__(self, image, camera):
        return self.estimate(image, camera).depth


def photo(sideways=0.0, stamp=1):
    return replace(WALL.view(stamp, sideways), depth=None)


def memory_of(*views):
    cloud, bank = CloudMemory(VOXEL), ViewBank()
    for view in views:
        cloud.insert(view)
        bank.add(view)
    return cloud, bank


def seen_by(cloud, view):
    """(N,) bool, the points whose pixel lies in the image of a view, a pixel away from its border."""
    uv, z = project(cloud.points, view.camera, view.world_from_camera)
    height, width = SHAPE
    return (z > 0) & (uv > 1).all(axis=1) & (uv[:, 0] < width - 2) & (uv[:, 1] < height - 2)


# --- estimate --------------------------------------------------------------------------------------------------------


def test_all_of_an_estimate_is_labelled_as_estimated():
    view = with_estimated_depth(photo(), WrongScale(sky_rows=12), CloudMemory(VOXEL))
    assert view.is_observation
    assert (view.provenance == Provenance.ESTIMATED).all()  # sky, too: no sensor measured it
    np.testing.assert_array_equal(view.depth > 0, np.arange(SHAPE[0])[:, None].repeat(SHAPE[1], 1) >= 12)
    np.testing.assert_allclose(view.depth[12:], 3.2)
    np.testing.assert_allclose(view.depth_confidence[12:], 0.4)
    assert (view.depth_confidence[:12] == 0).all()


def test_an_estimator_without_confidence_gives_none():
    view = with_estimated_depth(photo(), lambda image, camera: np.full(SHAPE, 3, np.float32), CloudMemory(VOXEL))
    assert view.depth_confidence is None
    cloud = CloudMemory(VOXEL)
    insert_estimated(cloud, view)
    assert (cloud.depth_confidence == 0).all()
    assert (cloud.confidence == 1).all()


def test_the_scale_follows_observed_memory():
    cloud, _ = memory_of(WALL.view(sideways=0.3))
    view = with_estimated_depth(photo(), WrongScale(), cloud)
    assert np.median(view.depth) == pytest.approx(2, rel=0.02)
    assert view.estimated_mask.all()


def test_observed_memory_determines_the_scale_before_estimated_memory():
    wrong = replace(WALL.view(), depth=np.full(SHAPE, 5, np.float32), estimated=EVERYWHERE)
    cloud, _ = memory_of(wrong)
    alone = with_estimated_depth(photo(), WrongScale(), cloud)
    assert np.median(alone.depth) == pytest.approx(5, rel=0.02)
    right = np.arange(SHAPE[1])[None].repeat(SHAPE[0], 0) >= 32
    cloud.insert(replace(WALL.view(), depth=np.where(right, np.float32(2), 0)))
    both = with_estimated_depth(photo(), WrongScale(), cloud)
    assert np.median(both.depth) == pytest.approx(2, rel=0.02)


def test_imagined_memory_does_not_determine_the_scale():
    cloud, _ = memory_of(replace(WALL.view(), observed=~EVERYWHERE))
    np.testing.assert_allclose(with_estimated_depth(photo(), WrongScale(), cloud).depth, 3.2)


def test_without_an_estimator_the_error_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"no depth estimator is loaded.*depth_model.*WorldModel\(depth_estimator=\.\.\.\)"
    ):
        with_estimated_depth(photo(), None, CloudMemory(VOXEL))


def test_an_estimator_that_fails_changes_nothing():
    def fail(image, camera):
        raise DepthError("all sky")

    cloud, _ = memory_of(WALL.view())
    before = len(cloud)
    with pytest.raises(DepthError, match="all sky"):
        with_estimated_depth(photo(), fail, cloud)
    assert len(cloud) == before


# --- insert ----------------------------------------------------------------------------------------------------------


def test_nothing_is_inserted_where_memory_has_an_observed_surface():
    left = np.arange(SHAPE[1])[None].repeat(SHAPE[0], 0) < 32
    cloud, _ = memory_of(replace(WALL.view(), depth=np.where(left, np.float32(2), 0)))
    observed = cloud.observed_count
    guess = replace(WALL.view(), depth=np.full(SHAPE, 2.3, np.float32), estimated=EVERYWHERE)
    report = insert_estimated(cloud, guess)
    assert cloud.observed_count == observed  # estimated depth carves nothing
    estimated = cloud.points[cloud.estimated]
    assert len(estimated) == report.added > 1000
    uv, _ = project(estimated, WALL.camera, np.eye(4))
    assert uv[:, 0].min() > 30.5


# --- correct ---------------------------------------------------------------------------------------------------------


def test_the_same_frame_with_depth_leaves_no_estimated_point():
    measured = WALL.view(2)
    guess = with_estimated_depth(photo(), WrongScale(), CloudMemory(VOXEL))
    cloud, bank = memory_of(guess)
    assert cloud.estimated_count > 1000
    cloud.insert(measured)
    assert correct_estimated_views(cloud, bank, measured) == 1
    assert not cloud.estimated[seen_by(cloud, measured)].any()
    alone, _ = memory_of(measured)
    np.testing.assert_allclose(
        cloud.points[cloud.observed][np.lexsort(cloud.points[cloud.observed].T)],
        alone.points[np.lexsort(alone.points.T)],
        atol=1e-6,
    )
    # Pixels at the border of the image may stay without a measured point; they lie on the wall now.
    assert cloud.estimated_count < 0.1 * len(alone)
    assert np.abs(cloud.points[cloud.estimated][:, 2] - 2).max(initial=0) < 0.1
    (view,) = bank.views
    assert view.estimated_mask.all()  # corrected, but not measured by this view
    np.testing.assert_allclose(view.depth, 2, rtol=0.02)


def test_a_frame_from_another_pose_corrects_the_scale_of_the_rest():
    guess = with_estimated_depth(photo(), WrongScale(), CloudMemory(VOXEL))
    measured = WALL.view(2, sideways=1.2)
    cloud, bank = memory_of(guess)
    cloud.insert(measured)
    assert (cloud.points[cloud.estimated][:, 2] > 3).any()
    assert correct_estimated_views(cloud, bank, measured) == 1
    estimated = cloud.points[cloud.estimated]
    assert len(estimated) > 500  # what the second frame does not show is still remembered
    np.testing.assert_allclose(estimated[:, 2], 2, rtol=0.05)  # and no layer stays where it was guessed
    assert not cloud.estimated[seen_by(cloud, measured)].any()
    assert estimated[:, 0].max() < cloud.points[cloud.observed][:, 0].min() + 3 * VOXEL
    np.testing.assert_allclose(cloud.depth_confidence[cloud.estimated], 0.4, atol=1e-3)


def test_sky_stays_empty_when_the_rest_is_corrected():
    guess = with_estimated_depth(photo(), WrongScale(sky_rows=16), CloudMemory(VOXEL))
    below = np.arange(SHAPE[0])[:, None].repeat(SHAPE[1], 1) >= 24
    measured = replace(WALL.view(2), depth=np.where(below, np.float32(2), 0))
    cloud, bank = memory_of(guess)
    cloud.insert(measured)
    assert correct_estimated_views(cloud, bank, measured) == 1
    assert (bank.views[0].depth[:15] == 0).all()
    uv, _ = project(cloud.points, WALL.camera, np.eye(4))
    assert uv[:, 1].min() > 14


def test_a_frame_that_shows_another_place_corrects_nothing():
    guess = with_estimated_depth(photo(), WrongScale(), CloudMemory(VOXEL))
    behind = WALL.view(2)
    behind = replace(behind, world_from_camera=np.diag([-1.0, 1.0, -1.0, 1.0]))
    cloud, bank = memory_of(guess)
    before = cloud.points[cloud.estimated].copy()
    cloud.insert(behind)
    assert correct_estimated_views(cloud, bank, behind) == 0
    np.testing.assert_array_equal(cloud.points[cloud.estimated], before)
    assert bank.views[0] is guess


def test_estimated_depth_corrects_nothing_and_shows_no_free_space():
    first = with_estimated_depth(photo(), WrongScale(1.6), CloudMemory(VOXEL))
    second = with_estimated_depth(photo(stamp=2), WrongScale(3.0), CloudMemory(VOXEL))
    cloud, bank = memory_of(first)
    cloud.insert(second)
    assert correct_estimated_views(cloud, bank, second) == 0
    point = np.array([[0, 0, 1.0]])
    assert not in_free_space(point, [first, second]).any()
    assert in_free_space(point, [WALL.view()]).all()
