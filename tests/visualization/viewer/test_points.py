"""Points of the viewer: thinning, sizes and colours."""

import numpy as np
import pytest

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.visualization.viewer.points import (
    NATURAL,
    PROVENANCE,
    TINTED,
    camera_distance,
    colour_points,
    point_sizes,
    thin_points,
)


def test_thin_points_keeps_density_even_within_the_budget():
    rng = np.random.default_rng(0)
    dense = rng.uniform(0, 1, (90_000, 2))  # one half of the floor is nine times as dense as the other
    sparse = rng.uniform(0, 1, (10_000, 2)) + np.array([1, 0])
    points = np.concatenate([np.concatenate([dense, sparse]), np.zeros((100_000, 1))], axis=1).astype(np.float32)
    kept = thin_points(points, np.ones(len(points), bool), 5000)
    assert 3500 <= len(kept) <= 5000
    assert (np.diff(kept) > 0).all()
    share = (points[kept, 0] < 1).mean()
    assert 0.45 < share < 0.6  # 0.9 with random thinning
    np.testing.assert_array_equal(kept, thin_points(points, np.ones(len(points), bool), 5000))


def test_thin_points_prefers_observed_points():
    grid = np.stack(np.meshgrid(np.arange(60), np.arange(60), [0]), -1).reshape(-1, 3).astype(np.float32)
    points = np.concatenate([grid, grid])
    observed = np.arange(len(points)) >= len(grid)
    kept = thin_points(points, observed, 2000)
    assert observed[kept].all()
    np.testing.assert_array_equal(thin_points(points, observed, 10_000), np.arange(len(points)))


def test_thin_points_prefers_estimated_points_to_imagined_ones():
    grid = np.stack(np.meshgrid(np.arange(60), np.arange(60), [0]), -1).reshape(-1, 3).astype(np.float32)
    kinds = np.repeat([Provenance.IMAGINED, Provenance.ESTIMATED], len(grid)).astype(np.uint8)
    kept = thin_points(np.concatenate([grid, grid]), kinds, 2000)
    assert (kinds[kept] == Provenance.ESTIMATED).all()


def test_thin_points_with_distances_keeps_more_near_points():
    rng = np.random.default_rng(0)
    near = np.c_[rng.uniform(-1, 1, (30_000, 2)), np.zeros(30_000)]
    far = np.c_[rng.uniform(-30, 30, (20_000, 2)), np.full(20_000, 60.0)]
    points = np.concatenate([near, near + 3e-4, far])
    cameras = np.repeat(np.eye(4)[None], 2, axis=0)
    cameras[0, 2, 3], cameras[1, 2, 3] = 1.0, -500.0
    distance = camera_distance(points, cameras)
    assert distance[:60_000].max() < 2 < 58 < distance[60_000:].min()
    kept = thin_points(points, np.ones(80_000, bool), 10_000)
    kept_near = thin_points(points, np.ones(80_000, bool), 10_000, distance)
    assert len(kept_near) <= 10_000
    assert (kept_near < 60_000).sum() > 3 * (kept < 60_000).sum()


def test_thin_points_handles_degenerate_clouds():
    same = np.ones((1000, 3), np.float32)
    assert 1 <= len(thin_points(same, np.ones(1000, bool), 10)) <= 10
    far = np.concatenate([np.random.default_rng(0).normal(size=(5000, 3)), [[1e6, 0, 0]]]).astype(np.float32)
    assert 1 <= len(thin_points(far, np.ones(5001, bool), 500)) <= 500


def test_point_sizes_follow_the_spacing():
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(30), [0]), -1).reshape(-1, 3).astype(np.float32)
    points = np.concatenate([0.01 * grid, 0.02 * grid + [10, 0, 0], [[99.0, 0, 0]]])
    sizes = point_sizes(points)
    assert np.median(sizes[:900]) == pytest.approx(0.01, rel=0.01)
    assert np.median(sizes[900:1800]) == pytest.approx(0.02, rel=0.01)
    assert sizes[-1] <= 0.06  # the outlier is not drawn as large as its distance
    assert (point_sizes(points[:2]) > 0).all()


def test_colour_points_marks_imagined_points():
    colours, observed = np.full((2, 3), 100, np.uint8), np.array([True, False])
    np.testing.assert_array_equal(colour_points(colours, observed, NATURAL), colours)
    tinted = colour_points(colours, observed, TINTED)
    np.testing.assert_array_equal(tinted[0], colours[0])
    assert tinted[1, 0] > 140 > tinted[1, 2]
    blue, orange = colour_points(colours, observed, PROVENANCE).astype(int)
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    kinds = np.array([Provenance.UNKNOWN, Provenance.ESTIMATED], np.uint8)
    unknown, yellow = colour_points(colours, kinds, PROVENANCE).astype(int)
    assert np.ptp(unknown) == 0
    assert yellow[:2].min() > 1.5 * yellow[2]
    np.testing.assert_array_equal(colour_points(colours, kinds, TINTED)[0], colours[0])
    with pytest.raises(ValueError, match="The colouring 'mauve' is unknown"):
        colour_points(colours, observed, "mauve")
