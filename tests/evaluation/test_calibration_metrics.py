"""Calibration error and rank correlation of confidences."""

from __future__ import annotations

import numpy as np
import pytest

from worldstereo_ros.evaluation.calibration_metrics import depth_ratio, expected_calibration_error, rank_correlation


def test_calibrated_confidence_has_no_calibration_error():
    random = np.random.default_rng(0)
    confidence = random.random(200_000)
    assert expected_calibration_error(confidence, random.random(len(confidence)) < confidence) < 0.01


@pytest.mark.parametrize("offset", [0.2, -0.3])
def test_calibration_error_is_the_offset_of_the_confidence(offset):
    random = np.random.default_rng(1)
    confidence = random.uniform(0.35, 0.75, 200_000)
    right = random.random(len(confidence)) < confidence - offset
    assert expected_calibration_error(confidence, right) == pytest.approx(abs(offset), abs=0.01)


def test_calibration_error_of_known_bins():
    confidence, right = np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True])
    # One bin is off by .45, one by .025; each has half of the pixels.
    assert expected_calibration_error(confidence, right) == pytest.approx((0.45 + 0.025) / 2)
    assert expected_calibration_error(np.zeros(0), np.zeros(0)) is None


def test_rank_correlation_is_one_where_higher_confidence_has_smaller_error():
    confidence = np.linspace(0, 1, 50)
    assert rank_correlation(confidence, np.exp(-confidence)) == pytest.approx(1)
    assert rank_correlation(confidence, confidence**2) == pytest.approx(-1)
    assert rank_correlation(confidence, np.ones(50)) is None
    assert rank_correlation(confidence[:2], confidence[:2]) is None


def test_rank_correlation_takes_infinite_errors_as_the_largest():
    confidence = np.array([0.4, 0.3, 0.2, 0.1])
    ties = rank_correlation(confidence, np.array([1.0, 2.0, 9.0, 9.0]))
    assert rank_correlation(confidence, np.array([1.0, 2.0, np.inf, np.inf])) == pytest.approx(ties)
    assert rank_correlation(confidence, np.full(4, np.inf)) is None


def test_depth_ratio():
    ratio = depth_ratio(np.array([2.0, 1.0, 0.0, 3.0]), np.array([1.0, 2.0, 1.0, 0.0]))
    np.testing.assert_array_equal(ratio[:3], [2, 2, np.inf])
    assert np.isnan(ratio[3])
