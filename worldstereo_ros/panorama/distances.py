"""Distances of overlapping views from one position: how far they agree, and bringing them into agreement.

Two views from one position show the same distance (along the ray) in the directions that they share. Where distances
are estimated view by view they do not, and blending them bends straight edges where one view takes over from the other.
Differences of colour show nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import clean_depth
from worldstereo_ros.panorama.stitching import border_weight, project_directions, sample

MAX_SAMPLES = 1200  # directions at which two views are compared
MIN_SAMPLES = 40  # common directions with a distance in both
# Difference of log distances at which a direction counts half (two views place edges apart), in each round of
# reweighting: from coarse to fine, since views may differ much at first.
OUTLIER_LOGS = (0.5, 0.4, 0.3, 0.2, 0.15, 0.15)
NOISE_LOG = 0.1  # standard deviation of the difference of log distances in one direction
# Standard deviation expected beforehand of each term of a view's correction, in log distance: constant; along x, y (at
# the border of the view); x^2, xy, y^2.
TERM_SPREAD = (0.4, 0.25, 0.25, 0.15, 0.15, 0.15)
INDEPENDENT_PX = 20.0  # neighbouring directions err alike: as many of them count as one observation


@dataclass(frozen=True)
class DistanceAgreement:
    """How far the distances of overlapping views agree.

    Attributes:
        median, percentile_90: of the relative difference of two distances of one direction (the larger one over the
            smaller one, minus 1).
        within: fraction of the common directions where it is at most `DEPTH_TOLERANCE` - 1.
        worst_joint: largest median among all pairs of views.
        joints: number of pairs of views.
    """

    median: float
    percentile_90: float
    within: float
    worst_joint: float
    joints: int


def distance_agreement(views: Sequence[View]) -> DistanceAgreement | None:
    """Compares the distances of all overlapping views from one position.

    Returns:
        None if no two views with depth overlap.
    """
    differences = [np.expm1(np.abs(pair.difference)) for pair in _pairs(views)]
    if not differences:
        return None
    every = np.concatenate(differences)
    return DistanceAgreement(
        median=float(np.median(every)),
        percentile_90=float(np.quantile(every, 0.9)),
        within=float((every <= DEPTH_TOLERANCE - 1).mean()),
        worst_joint=max(float(np.median(one)) for one in differences),
        joints=len(differences),
    )


def distance_difference(one: View, other: View) -> float | None:
    """Mean relative difference of the distances of two views from one position, over their overlap.

    Returns:
        None if they overlap too little, or one of them has no depth.
    """
    pair = next(_pairs([one, other]), None)
    return None if pair is None else float(np.expm1(np.abs(pair.difference)).mean())


def align_distances(views: Sequence[View]) -> list[View]:
    """Corrects the distances of overlapping views jointly, each by a smooth factor.

    The logarithm of the factor is a polynomial of second order in the image coordinates of the view, so that edges stay
    straight. Robust least squares over all overlaps, with a prior that keeps corrections small: a correction that the
    overlaps do not ask for is not made, and the mean scale of all views stays.

    Args:
        views: from one position, with depth.

    Returns:
        The views with corrected depth, in the same order.
    """
    pairs, terms, spread = list(_pairs(views)), len(TERM_SPREAD), np.array(TERM_SPREAD)
    if not pairs:
        return list(views)
    prior = np.tile((NOISE_LOG / spread) ** 2 * INDEPENDENT_PX, len(views))
    solution = np.zeros((len(views), terms))
    for outlier in OUTLIER_LOGS:
        normal, right = np.diag(prior), np.zeros(len(prior))
        for pair in pairs:
            rest = pair.difference + pair.terms @ solution[pair.one] - pair.other_terms @ solution[pair.other]
            weight = pair.weight / (1 + (rest / outlier) ** 2)
            both = np.concatenate([pair.terms, -pair.other_terms], axis=1)
            index = np.r_[pair.one * terms : (pair.one + 1) * terms, pair.other * terms : (pair.other + 1) * terms]
            normal[np.ix_(index, index)] += both.T @ (both * weight[:, None])
            right[index] -= both.T @ (pair.difference * weight)
        solution = np.asarray(np.linalg.solve(normal, right).reshape(len(views), terms))
    solution[:, 0] -= solution[:, 0].mean()
    corrected = []
    for view, coefficients in zip(views, solution, strict=True):
        rows, columns = np.mgrid[: view.camera.height, : view.camera.width]
        factor = np.exp(_terms(columns, rows, view) @ coefficients)
        corrected.append(replace(view, depth=clean_depth((_depth(view) * factor).astype(np.float32))))
    return corrected


def ray_distances(view: View) -> np.ndarray:
    """(H, W) float32 metres along the ray of a view with depth, 0 = unknown."""
    return (_depth(view) * np.linalg.norm(view.camera.rays(), axis=-1)).astype(np.float32)


def distances_seen_by(other: View, view: View) -> np.ndarray:
    """(H, W) float32 metres along the ray that `other` has for the pixels of `view`, 0 = none."""
    columns, rows, inside = project_directions(other, view.world_from_camera, view.camera.rays())
    return np.where(inside, sample(ray_distances(other), columns, rows, nearest=True), np.float32(0))


# --- internals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """Common directions of two views: log distance of `one` minus that of `other` (N,), terms (N, T), weight (N,)."""

    one: int
    other: int
    difference: np.ndarray
    terms: np.ndarray
    other_terms: np.ndarray
    weight: np.ndarray


def _pairs(views: Sequence[View]) -> Iterator[_Pair]:
    distances = [None if view.depth is None else ray_distances(view) for view in views]
    for i, one in enumerate(views):
        for j, other in enumerate(views[i + 1 :], i + 1):
            mine, theirs = distances[i], distances[j]
            if mine is None or theirs is None:
                continue
            stride = max(1, round((mine.size / MAX_SAMPLES) ** 0.5))
            grid = (slice(stride // 2, None, stride),) * 2
            columns, rows, inside = project_directions(other, one.world_from_camera, one.camera.rays()[grid])
            found = sample(theirs, columns, rows, nearest=True)
            both = inside & (found > 0) & (mine[grid] > 0)
            if both.sum() < MIN_SAMPLES:
                continue
            y, x = (values[both] for values in np.mgrid[: one.camera.height, : one.camera.width][(slice(None), *grid)])
            weight = np.sqrt(
                border_weight(x.astype(np.float32), y.astype(np.float32), one)
                * border_weight(columns[both], rows[both], other)
            )
            difference = np.log(mine[grid][both].astype(np.float64) / found[both])
            yield _Pair(i, j, difference, _terms(x, y, one), _terms(columns[both], rows[both], other), weight)


def _terms(columns: np.ndarray, rows: np.ndarray, view: View) -> np.ndarray:
    """(..., T) polynomial terms of pixels; the coordinates are -1 and 1 at the borders of the view."""
    x = (columns + 0.5) / (0.5 * view.camera.width) - 1
    y = (rows + 0.5) / (0.5 * view.camera.height) - 1
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _depth(view: View) -> np.ndarray:
    assert view.depth is not None
    return view.depth
