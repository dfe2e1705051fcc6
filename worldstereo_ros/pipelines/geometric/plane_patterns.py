"""Patterns of planes that repeat in both directions, such as tiles: found, and folded to one period.

A pattern repeats wherever the plane was seen, so it is no picture and no rug, whatever its contrast. The folded pattern
has no gaps, and it continues in phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.plane_sampling import (
    TEXELS,
    DetailExample,
    find_periods,
    low_pass,
    pack_detail,
    sample_plane,
)

LIGHT_M = 0.7  # standard deviation that separates patterns from light
MIN_CONTRAST = 12.0  # RMS grey levels; calmer planes have ordinary detail
MIN_SEEN = 0.04  # of the texels
MIN_CORRELATION = 0.45  # one period away, in both directions
MIN_EXPLAINED = 0.5  # of the variance, by the folded pattern
PERIOD_TEXELS = 100  # at most, of the folded pattern
FOLDED_TEXELS = 3 * TEXELS  # of each side of what is folded: finer than the pattern is searched
OUTLIER = 1.5  # deviations from the folded pattern, beyond which a texel shows something else
MIN_SAMPLES = 0.6  # of the texels of one period that were seen
REFINED_PERIODS = 0.03  # search range of the exact period, relative
RADIUS = 24  # texels, of the windows that are blended


def find_pattern(
    views: Sequence[View],
    normal: np.ndarray,
    offset: float,
    axes: np.ndarray,
    middle: np.ndarray,
    extent: float,
    finest: float,
) -> DetailExample | None:
    """The repeated pattern of a plane; None if it has none.

    Args:
        views: observations with depth that show most of the plane.
        normal, offset: of the plane.
        axes: (2, 3) in the plane; the pattern is searched along them.
        middle: (2,) of what was seen, metres along the axes.
        extent: of what was seen, metres.
        finest: size of a texel of the example, metres.
    """
    texel = max(finest, extent / TEXELS)
    origin = middle - TEXELS / 2 * texel
    grey = np.zeros((TEXELS, TEXELS), np.float32)
    seen = np.zeros((TEXELS, TEXELS), bool)
    lights: list[np.ndarray | None] = []
    for view in views:
        colour, shown, _ = sample_plane(view, normal, offset, axes, origin, texel, TEXELS)
        if shown.mean() < MIN_SEEN:
            lights.append(None)
            continue
        light = low_pass(colour, shown, LIGHT_M / texel)
        lights.append(light)
        new = shown & ~seen
        grey[new] = (colour - light).mean(axis=-1)[new]
        seen |= shown
    if seen.mean() < MIN_SEEN or grey[seen].std() < MIN_CONTRAST:
        return None
    periods, correlation = find_periods(grey, seen)
    if not (periods > 0).all() or correlation < MIN_CORRELATION:
        return None
    periods = _refine(grey, seen, periods)
    fine = max(finest, float(periods.max()) * texel / PERIOD_TEXELS)
    folded = _fold(views, lights, normal, offset, axes, origin, texel, periods * texel, fine)
    if folded is None:
        return None
    grid = (np.arange(TEXELS) + 0.5) * fine
    columns, rows = (
        (np.mod(grid, period) / period * size - 0.5).astype(np.float32)
        for period, size in zip(periods * texel, folded.shape[1::-1], strict=True)
    )
    detail = cv2.remap(folded, *np.meshgrid(columns, rows), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    usable = np.zeros((TEXELS, TEXELS), bool)
    usable[RADIUS:-RADIUS, RADIUS:-RADIUS] = True
    in_texels = (periods * texel / fine).astype(np.float32)
    return pack_detail(detail, usable, origin, fine, RADIUS, in_texels, correlation, upright=False)


def _refine(grey: np.ndarray, seen: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """Periods (2,) for which all repetitions fit, not the nearest alone."""
    refined = periods.astype(np.float64).copy()
    rows, columns = np.nonzero(seen)
    values = grey[seen]
    for axis, positions in enumerate((columns, rows)):
        others = (rows, columns)[axis]
        best, choice = -np.inf, refined[axis]
        span = positions.max() - positions.min() + 1
        # One step shifts the farthest repetition by half a texel.
        step = 0.5 * refined[axis] / span
        for candidate in np.arange(
            refined[axis] * (1 - REFINED_PERIODS), refined[axis] * (1 + REFINED_PERIODS) + step, step
        ):
            bins = max(4, round(float(candidate)))
            phase = (np.mod(positions + 0.5, candidate) / candidate * bins).astype(int).clip(0, bins - 1)
            other_bins = max(4, round(float(refined[1 - axis])))
            other = np.mod(others + 0.5, refined[1 - axis]) / refined[1 - axis] * other_bins
            index = phase * other_bins + other.astype(int).clip(0, other_bins - 1)
            counts = np.bincount(index, minlength=bins * other_bins)
            sums = np.bincount(index, values, minlength=bins * other_bins)
            explained = (sums**2 / np.maximum(counts, 1)).sum()
            if explained > best:
                best, choice = explained, candidate
        refined[axis] = choice
    return refined


def _fold(
    views: Sequence[View],
    lights: Sequence[np.ndarray | None],
    normal: np.ndarray,
    offset: float,
    axes: np.ndarray,
    origin: np.ndarray,
    texel: float,
    periods: np.ndarray,
    fine: float,
) -> np.ndarray | None:
    """(rows, columns, 3) float32 of one period, from `origin`; None if the pattern does not explain what was seen.

    Args:
        views, normal, offset, axes, origin, texel: see `find_pattern`.
        lights: (TEXELS, TEXELS, 3) of each view, None where it shows too little.
        periods: (2,) metres along the axes.
        fine: size of a texel of the result, metres.
    """
    columns, rows = (max(4, round(float(period) / fine)) for period in periods)
    size, spacing = FOLDED_TEXELS, texel * TEXELS / FOLDED_TEXELS
    grid = (np.arange(size) + 0.5) * spacing
    u, v = (
        (np.mod(grid, period) / period * count).astype(int).clip(0, count - 1)
        for period, count in zip(periods, (columns, rows), strict=True)
    )
    index = (v[:, None] * columns + u[None, :]).ravel()
    values, places = [], []
    for view, light in zip(views, lights, strict=True):
        if light is None:
            continue
        colour, shown, _ = sample_plane(view, normal, offset, axes, origin, spacing, size)
        detail = colour - cv2.resize(light, (size, size), interpolation=cv2.INTER_LINEAR)
        values.append(detail[shown])
        places.append(index[shown.ravel()])
    value, place = np.concatenate(values), np.concatenate(places)
    weight = np.ones(len(value))
    for _ in range(4):  # what lies on the plane, such as a rug, is left out
        counts = np.bincount(place, weight, rows * columns)
        sums = [np.bincount(place, weight * value[:, c], rows * columns) for c in range(3)]
        mean = np.stack(sums, axis=-1) / np.maximum(counts, 1e-6)[:, None]
        error = np.linalg.norm(value - mean[place], axis=1)
        weight = (error < OUTLIER * max(float(np.sqrt((weight * error**2).sum() / weight.sum())), 1.0)).astype(float)
    kept = weight > 0
    total = (value[kept] ** 2).sum()
    filled = counts > 0
    if total <= 0 or 1 - (error[kept] ** 2).sum() / total < MIN_EXPLAINED or filled.mean() < MIN_SAMPLES:
        return None
    if kept.mean() < MIN_EXPLAINED:
        return None
    folded = mean.reshape(rows, columns, 3).astype(np.float32)
    gaps = (~filled).reshape(rows, columns)
    if gaps.any():
        tiled = np.tile(np.where(gaps[..., None], 0, folded), (3, 3, 1)).astype(np.float32)
        known = np.tile((~gaps).astype(np.float32), (3, 3))
        near = cv2.GaussianBlur(tiled, (0, 0), 2.0) / np.maximum(cv2.GaussianBlur(known, (0, 0), 2.0), 1e-4)[..., None]
        folded = np.where(gaps[..., None], near[rows : 2 * rows, columns : 2 * columns], folded)
    return folded - folded.mean(axis=(0, 1))
