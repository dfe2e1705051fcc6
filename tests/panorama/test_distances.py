"""Agreement of the distances of overlapping views, and their joint correction."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.panoramas import ROUND
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.geometry.views import View
from worldstereo_ros.panorama.closure import closure
from worldstereo_ros.panorama.distances import (
    align_distances,
    distance_agreement,
    distance_difference,
    ray_distances,
)
from worldstereo_ros.panorama.perspective_views import rings
from worldstereo_ros.panorama.stitching import panorama_from_views


def bent(view: View, rng: np.random.Generator, strength: float) -> View:
    """A view whose depth has a random smooth error: scale, slopes and curvature."""
    y, x = np.mgrid[-1 : 1 : 1j * view.camera.height, -1 : 1 : 1j * view.camera.width]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    error = terms @ (rng.normal(size=6) * strength * np.array([1, 1, 1, 0.5, 0.5, 0.5]))
    return replace(view, depth=(view.depth * np.exp(error)).astype(np.float32))


def crookedness(views: list[View]) -> float:
    """How far vertical edges of the box are from vertical: spread of the log horizontal distance along them.

    Median over all columns of the stitched panorama, within 30 degrees of the horizon, where the walls are.
    """
    distance = panorama_from_views(views, 128, world_from_camera=np.eye(4), align=False).distance
    elevation = np.radians(90 - (np.arange(128) + 0.5) / 128 * 180)
    level = np.abs(elevation) < np.radians(22)
    horizontal = np.log(distance[level] * np.cos(elevation[level])[:, None])
    return float(np.median(horizontal.std(axis=0)))


def test_true_distances_agree(box_views):
    agreement = distance_agreement(box_views)
    assert agreement.median < 0.01
    assert agreement.within > 0.99
    assert agreement.joints > len(box_views)
    assert distance_difference(box_views[0], box_views[1]) < 0.02
    assert distance_difference(box_views[0], box_views[6]) is None  # no overlap
    assert distance_agreement(box_views[:1]) is None
    assert distance_agreement([replace(view, depth=None) for view in box_views]) is None


def test_joint_correction_keeps_vertical_edges_straight(box_views):
    ratios = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        views = [bent(view, rng, 0.2) for view in box_views]
        ratios.append(crookedness(align_distances(views)) / crookedness(views))
    assert crookedness(box_views) < 0.001
    assert np.mean(ratios) < 0.6  # what all views have in common cannot be seen in their overlaps


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), strength=st.floats(0.05, 0.2))
def test_joint_correction_brings_views_into_agreement(box_views, seed, strength):
    rng = np.random.default_rng(seed)
    views = [bent(view, rng, strength) for view in box_views]
    aligned = align_distances(views)
    before, after = distance_agreement(views), distance_agreement(aligned)
    assert after.median < 0.2 * before.median
    assert after.percentile_90 < 0.2 * before.percentile_90
    scale = [np.log(ray_distances(a) / ray_distances(b)).mean() for a, b in zip(aligned, box_views, strict=True)]
    assert abs(np.mean(scale)) < 0.2


def test_correct_distances_are_hardly_changed(box_views):
    for aligned, view in zip(align_distances(box_views), box_views, strict=True):
        assert np.abs(np.log(aligned.depth / view.depth)).max() < 0.02
    assert align_distances([]) == []


def test_unknown_distances_stay_unknown(box_views):
    views = [replace(view, depth=np.where(view.depth > 2.4, np.float32(0), view.depth)) for view in box_views]
    for aligned, view in zip(align_distances(views), views, strict=True):
        np.testing.assert_array_equal(aligned.depth == 0, view.depth == 0)


def test_closure_sees_bends_that_colours_do_not_show(box_views):
    ring = box_views[: len(rings(ROUND)[0])]
    straight = closure(ring)
    rng = np.random.default_rng(0)
    crooked = closure([bent(view, rng, 0.2) for view in ring])
    assert crooked.seam == straight.seam
    assert crooked.inner == straight.inner
    assert straight.distance_inner < 0.02
    assert crooked.distance_inner > 0.1
    assert straight.distance_seam < 0.02 < crooked.distance_seam
    without = closure([replace(view, depth=None) for view in ring])
    assert without.distance_seam is None
    assert without.seam == pytest.approx(straight.seam)
