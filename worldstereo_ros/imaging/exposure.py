"""Exposure and white balance that differ between views, estimated from where they see the same points."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.imaging.overlap import Overlap

FEWEST = 20  # points that are not clipped, without which a pair says nothing
DARK, BRIGHT = 6, 249  # clipped colours say nothing about exposure
GAIN_LIMIT = 3.0
PRIOR_SAMPLES = 100.0  # weight of "unchanged" against the number of common points


def align_exposure(count: int, overlaps: dict[tuple[int, int], Overlap]) -> np.ndarray:
    """A gain per view and colour channel that makes the views agree where they see the same surface.

    `gain * image` brings every view to one common exposure. Of every pair the median of the log ratios of common
    points is taken, which outliers (gloss, wrong depth) hardly move, and all pairs are brought together by least
    squares, held towards gain 1 where overlaps do not decide. There is no bias: fitted beside the gain it follows
    gloss and the mix of surfaces, and lifts what is dark to grey.

    Args:
        count: number of views.
        overlaps: of views (i, j), i and j below `count`, as `overlaps.overlap` gives them.

    Returns:
        (count, 3) float64 gains between 1/3 and 3; their mean logarithm is 0 unless the limits cut it.
    """
    gains = np.ones((count, 3))
    ratios = []
    for (i, j), common in overlaps.items():
        clipped = (common.colours.min(axis=(1, 2)) <= DARK) | (common.colours.max(axis=(1, 2)) >= BRIGHT)
        colours = common.colours[~clipped]
        if len(colours) >= FEWEST:
            ratios.append((i, j, len(colours), np.median(np.log(colours[:, 1] / colours[:, 0]), axis=0)))
    for channel in range(3 if ratios else 0):
        log_gain = solve_pairwise_offsets(count, [(i, j, n, float(ratio[channel])) for i, j, n, ratio in ratios])
        gains[:, channel] = np.clip(np.exp(log_gain), 1 / GAIN_LIMIT, GAIN_LIMIT)
    return gains


def solve_pairwise_offsets(
    count: int, differences: list[tuple[int, int, int, float]], held: float = PRIOR_SAMPLES
) -> np.ndarray:
    """(count,) values x, mean 0, with x[i] - x[j] close to d for every (i, j, weight, d); `held` is the weight of 0."""
    normal, right = np.eye(count) * held, np.zeros(count)
    for i, j, samples, d in differences:
        normal[i, i] += samples
        normal[j, j] += samples
        normal[i, j] -= samples
        normal[j, i] -= samples
        right[i] += samples * d
        right[j] -= samples * d
    x = np.linalg.solve(normal, right)
    return x - x.mean()
