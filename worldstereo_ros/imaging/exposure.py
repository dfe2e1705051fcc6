"""Exposure and white balance differences between views, estimated from common surface points."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.imaging.overlap import Overlap

MIN_POINTS = 20  # unclipped points for a pair of views to count
MIN_LEVEL, MAX_LEVEL = 6, 249  # colours outside are clipped and do not depend on exposure
MAX_GAIN = 3.0
PRIOR_WEIGHT = 100.0  # weight of gain 1, in common points


def align_exposure(count: int, overlaps: dict[tuple[int, int], Overlap]) -> np.ndarray:
    """Estimates a gain per view and colour channel that makes common surface points equally bright.

    `gain * image` has the common exposure. The gain between two views is the median of the colour ratios of their
    common points, which is robust against gloss and wrong depth. All pairs are solved jointly by least squares with a
    prior of gain 1. There is no offset: fitted together with the gain it follows gloss and the mix of surfaces, and
    turns dark colours grey.

    Args:
        count: number of views.
        overlaps: (i, j) -> overlap of views i and j, see `imaging.overlap.measure_overlap`.

    Returns:
        (count, 3) float64 gains between 1/3 and 3; their mean logarithm is 0 unless the limits apply.
    """
    gains = np.ones((count, 3))
    ratios = []
    for (i, j), common in overlaps.items():
        clipped = (common.colours.min(axis=(1, 2)) <= MIN_LEVEL) | (common.colours.max(axis=(1, 2)) >= MAX_LEVEL)
        colours = common.colours[~clipped]
        if len(colours) >= MIN_POINTS:
            ratios.append((i, j, len(colours), np.median(np.log(colours[:, 1] / colours[:, 0]), axis=0)))
    for channel in range(3 if ratios else 0):
        log_gain = solve_pairwise_offsets(count, [(i, j, n, float(ratio[channel])) for i, j, n, ratio in ratios])
        gains[:, channel] = np.clip(np.exp(log_gain), 1 / MAX_GAIN, MAX_GAIN)
    return gains


def solve_pairwise_offsets(
    count: int, differences: list[tuple[int, int, int, float]], prior_weight: float = PRIOR_WEIGHT
) -> np.ndarray:
    """Solves for values with given pairwise differences, by least squares with a prior of 0.

    Args:
        count: number of values.
        differences: (i, j, weight, d) for x[i] - x[j] = d.
        prior_weight: weight of x[i] = 0.

    Returns:
        (count,) float64 values of mean 0.
    """
    normal, right = np.eye(count) * prior_weight, np.zeros(count)
    for i, j, weight, d in differences:
        normal[i, i] += weight
        normal[j, j] += weight
        normal[i, j] -= weight
        normal[j, i] -= weight
        right[i] += weight * d
        right[j] -= weight * d
    x = np.linalg.solve(normal, right)
    return x - x.mean()
