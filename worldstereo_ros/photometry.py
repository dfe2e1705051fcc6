"""Exposure and white balance that differ between views, estimated from where they see the same points."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.camera import project, unproject
from worldstereo_ros.views import View

SAMPLES = 1500  # points a view offers to the others
DARK, BRIGHT = 6, 249  # clipped colours say nothing about exposure
GAIN_LIMIT = 3.0
SHRINK = 40.0  # grey levels added to both contrasts: low contrast says little about gain
PRIOR_SAMPLES = 30.0  # weight of "unchanged" against the number of common points


def align_exposure(views: list[View], *, relative: float = 0.05, absolute: float = 0.02) -> np.ndarray:
    """A gain and a bias per view and colour channel that make the views agree where they see the same surface.

    `gain * image + bias` brings every view to one common exposure. Points of each view are looked up in all others
    (accepted where the depths agree). Of every pair the ratio of contrasts and the difference of medians are taken,
    which outliers (gloss, wrong depth) hardly move, and all pairs are brought together by least squares: log gains
    first, biases with these gains next. Where overlaps do not decide, a view is left as it is. A fit of gain and bias
    to the colours in one go would be biased towards gain 0, which also makes everything agree.

    Args:
        views: with depth; views without are left alone.
        relative, absolute: depth agreement, fraction and metres.

    Returns:
        (len(views), 3, 2) float64: gain, bias (in grey levels, 0..255). The mean log gain and the mean bias are 0.
    """
    count = len(views)
    out = np.tile(np.array([1.0, 0.0]), (count, 3, 1))
    pairs = [_matches(views, i, j, relative, absolute) for i in range(count) for j in range(count) if i != j]
    pairs = [pair for pair in pairs if pair is not None]
    if not pairs:
        return out
    for channel in range(3):
        statistics = []
        for i, j, a, b in pairs:
            qa, qb = np.percentile(a[:, channel], (10, 50, 90)), np.percentile(b[:, channel], (10, 50, 90))
            ratio = np.log((qb[2] - qb[0] + SHRINK) / (qa[2] - qa[0] + SHRINK))
            statistics.append((i, j, len(a), ratio, qa[1], qb[1]))
        log_gain = _synchronise(count, [(i, j, n, ratio) for i, j, n, ratio, _, _ in statistics])
        gain = np.clip(np.exp(log_gain), 1 / GAIN_LIMIT, GAIN_LIMIT)
        bias = _synchronise(count, [(i, j, n, gain[j] * mb - gain[i] * ma) for i, j, n, _, ma, mb in statistics])
        out[:, channel, 0], out[:, channel, 1] = gain, bias
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


def _matches(
    views: list[View], i: int, j: int, relative: float, absolute: float
) -> tuple[int, int, np.ndarray, np.ndarray] | None:
    """Colours of the same points in views i and j."""
    one, other = views[i], views[j]
    if one.depth is None or other.depth is None:
        return None
    stride = max(1, round((one.depth.size / SAMPLES) ** 0.5))
    half = stride // 2
    depth = one.depth[half::stride, half::stride]
    rows, columns = np.nonzero(depth > 0)
    rows, columns = rows * stride + half, columns * stride + half
    local = one.camera.rays()[rows, columns] * one.depth[rows, columns, None]
    points = local @ one.world_from_camera[:3, :3].T + one.world_from_camera[:3, 3]
    uv, z = project(points, other.camera, other.world_from_camera)
    with np.errstate(invalid="ignore"):
        u, v = np.rint(uv[:, 0]), np.rint(uv[:, 1])
        inside = (z > 0.05) & (u >= 1) & (v >= 1) & (u < other.camera.width - 1) & (v < other.camera.height - 1)
    rows, columns, z = rows[inside], columns[inside], z[inside]
    u, v = u[inside].astype(np.int64), v[inside].astype(np.int64)
    there = other.depth[v, u]
    good = (there > 0) & (np.abs(there - z) <= relative * z + absolute)
    good &= one.observed_mask[rows, columns] & other.observed_mask[v, u]
    a = one.image[rows, columns].astype(np.float64)
    b = other.image[v, u].astype(np.float64)
    good &= (a.min(1) > DARK) & (b.min(1) > DARK) & (a.max(1) < BRIGHT) & (b.max(1) < BRIGHT)
    if good.sum() < 20:
        return None
    return i, j, a[good], b[good]
