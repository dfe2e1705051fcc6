"""Statistics of a place: what observations say about each other, and what they do not."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.evaluation.world_sequences import world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.overlap import measure_overlap
from worldstereo_ros.pipelines.confidence.statistics import StatisticsCache

CAMERA = Camera.from_fov(160, 120, np.radians(75))


@pytest.fixture(scope="module")
def views():
    walk = world_sequence("test", 0, views=13, camera=CAMERA)
    return [walk[0], walk[3]]


def test_measured_views_of_the_same_surfaces_agree(views):
    agreement = StatisticsCache()(views).agreement
    assert agreement is not None
    assert agreement.surface > 0.8
    assert agreement.log_depth < 0.02


def test_estimates_do_not_confirm_each_other(views):
    estimated = [replace(view, estimated=np.ones(view.image.shape[:2], bool)) for view in views]
    assert StatisticsCache()(estimated).agreement is None
    assert StatisticsCache()([views[0], estimated[1]]).agreement is None


def test_only_measured_pixels_of_a_mixed_view_count(views):
    half = np.zeros(views[0].image.shape[:2], bool)
    half[:, 80:] = True
    wrong = [replace(view, estimated=half, depth=np.where(half, view.depth * (1 + index), view.depth))
             for index, view in enumerate(views)]  # fmt: skip
    agreement = StatisticsCache()(wrong).agreement
    assert agreement is not None
    assert agreement.surface > 0.8


def test_an_overlap_tells_where_its_points_are(views):
    one, other = views
    overlap = measure_overlap(one, other)
    rows, columns = overlap.pixels.T
    assert len(rows) == len(overlap.colours) == len(overlap.log_depth) > 100
    np.testing.assert_array_equal(one.image[rows, columns], overlap.colours[:, 0])
    assert overlap.compared >= len(rows)
    nearer = measure_overlap(one, replace(other, depth=other.depth * 0.98))
    assert np.median(nearer.log_depth) == pytest.approx(np.log(0.98), abs=0.002)
