"""Noise of depth images: of a plane, beside edges and folds, and where nothing is known."""

import numpy as np
import pytest

from worldstereo_ros.imaging.depth_noise import REACH_PX, WINDOW_PX, depth_noise
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO

Y, X = np.mgrid[:120, :160].astype(np.float32)
PLANE = 2 + 0.004 * X + 0.002 * Y
TOLERANCE = DEPTH_TOLERANCE_RATIO * PLANE + DEPTH_TOLERANCE_M
BORDER = REACH_PX + WINDOW_PX // 2
INNER = (slice(BORDER, -BORDER),) * 2  # all pixels of the window have neighbours in rows and columns


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_the_noise_of_a_plane_is_found(share):
    noisy = PLANE + share * TOLERANCE * np.random.default_rng(0).normal(size=PLANE.shape)
    found = depth_noise(noisy)
    # The mean of |a - 2 b + c| is sqrt(6) * sqrt(2 / pi) standard deviations.
    assert np.median(found[INNER]) == pytest.approx(share * np.sqrt(6 * 2 / np.pi), rel=0.25)
    assert found.dtype == np.float32


def test_planes_edges_and_folds_are_not_noise():
    edge = np.where(X < 80, np.float32(2), np.float32(3))
    fold = 2 + 0.02 * np.abs(X - 80)
    for depth in (PLANE, edge, edge.T, fold, fold[:, ::-1]):
        assert depth_noise(depth)[INNER].max() < 1e-3


def test_large_noise_is_limited_to_one_tolerance():
    wild = np.random.default_rng(1).uniform(0.5, 6, PLANE.shape)
    found = depth_noise(wild)
    assert found.max() <= 1
    assert np.median(found) > 0.5


@pytest.mark.parametrize("unknown", [0, np.nan, np.inf])
def test_unknown_depth_is_as_uncertain_as_can_be(unknown):
    assert (depth_noise(np.full((20, 30), unknown, np.float32)) == 1).all()
    gap = PLANE.copy()
    gap[40:80] = unknown
    found = depth_noise(gap)
    assert (found[40 + WINDOW_PX // 2 : 80 - WINDOW_PX // 2, 20:-20] == 1).all()
    assert found[20:30, 20:-20].max() < 1e-3  # elsewhere the gap changes nothing
    assert (depth_noise(np.ones((4, 4), np.float32)) == 1).all()  # smaller than the reach
