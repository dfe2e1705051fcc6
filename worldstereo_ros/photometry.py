"""Exposure and white balance that differ between views, estimated from where they see the same points."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.overlaps import Overlap

FEWEST = 20  # points that are not clipped, without which a pair says nothing
DARK, BRIGHT = 6, 249  # clipped colours say nothing about exposure
GAIN_LIMIT = 3.0
SHRINK = 40.0  # grey levels added to both contrasts: low contrast says little about gain
PRIOR_SAMPLES = 30.0  # weight of "unchanged" against the number of common points


def align_exposure(count: int, overlaps: dict[tuple[int, int], Overlap]) -> np.ndarray:
    """A gain and a bias per view and colour channel that make the views agree where they see the same surface.

    `gain * image + bias` brings every view to one common exposure. Of every pair the ratio of contrasts and the
    difference of medians are taken, which outliers (gloss, wrong depth) hardly move, and all pairs are brought
    together by least squares: log gains first, biases with these gains next. Where overlaps do not decide, a view is
    left as it is. A fit of gain and bias to the colours in one go would be drawn towards gain 0, which also makes
    everything agree.

    Args:
        count: number of views.
        overlaps: of views (i, j), i and j below `count`, as `overlaps.overlap` gives them.

    Returns:
        (count, 3, 2) float64: gain, bias (in grey levels, 0..255). The mean log gain and the mean bias are 0.
    """
    out = np.tile(np.array([1.0, 0.0]), (count, 3, 1))
    pairs = []
    for (i, j), common in overlaps.items():
        clipped = (common.colours.min(axis=(1, 2)) <= DARK) | (common.colours.max(axis=(1, 2)) >= BRIGHT)
        colours = common.colours[~clipped]
        if len(colours) >= FEWEST:
            low, middle, high = np.percentile(colours, (10, 50, 90), axis=0)
            pairs.append((i, j, len(colours), high - low + SHRINK, middle))
    for channel in range(3 if pairs else 0):
        ratios = [(i, j, n, float(np.log(c[1, channel] / c[0, channel]))) for i, j, n, c, _ in pairs]
        gain = np.clip(np.exp(_synchronise(count, ratios)), 1 / GAIN_LIMIT, GAIN_LIMIT)
        shifts = [(i, j, n, gain[j] * m[1, channel] - gain[i] * m[0, channel]) for i, j, n, _, m in pairs]
        out[:, channel, 0], out[:, channel, 1] = gain, _synchronise(count, shifts)
    return out


def _synchronise(count: int, differences: list[tuple[int, int, int, float]]) -> np.ndarray:
    """(count,) values x, mean 0, with x[i] - x[j] close to d for every (i, j, weight, d); weakly held to 0."""
    normal, right = np.zeros((count, count)), np.zeros(count)
    for i, j, samples, d in differences:
        normal[i, i] += samples
        normal[j, j] += samples
        normal[i, j] -= samples
        normal[j, i] -= samples
        right[i] += samples * d
        right[j] -= samples * d
    normal += np.eye(count) * PRIOR_SAMPLES
    x = np.linalg.solve(normal, right)
    return x - x.mean()
