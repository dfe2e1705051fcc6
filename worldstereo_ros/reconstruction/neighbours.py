"""Which photographs to compare with which, and in which range of depths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from worldstereo_ros.geometry.cameras import project
from worldstereo_ros.reconstruction.sparse_model import SparseModel

# Angles at which a point is best seen from two photographs: smaller ones measure its depth less, larger ones show
# other sides of it (the score of MVSNet, Yao et al., ECCV 2018, with the angles of 8 degrees measured to be best here).
BEST_ANGLE_DEG, SMALL_SIGMA_DEG, LARGE_SIGMA_DEG = 8.0, 3.5, 8.0
MIN_SHARED = 8  # points
MIN_RANGE_POINTS = 20
NEAR_MARGIN, FAR_MARGIN = 0.8, 1.35  # of the nearest and the farthest points: surfaces extend beyond the features
MAX_RATIO = 60.0  # of the farthest to the nearest plane; farther surfaces would be a plane or two apart
SAME_SIDE = 0.6  # factor of the score of a neighbour that looks from the same side as one that is chosen


@dataclass(frozen=True)
class Neighbourhood:
    """Neighbours of a photograph.

    Attributes:
        rows: rows of the model, the best first; may be empty.
        near, far: range of depths to search; 0 if there are too few points to know it.
    """

    rows: tuple[int, ...]
    near: float
    far: float


def find_neighbours(model: SparseModel, count: int) -> list[Neighbourhood]:
    """Neighbours and depth range of each photograph of a model, from the points that they share.

    Args:
        model: registration.
        count: number of neighbours.
    """
    scores = pair_scores(model)
    centres = model.world_from_camera[:, :3, 3]
    found = []
    for row in range(len(model)):
        rows = _diverse(scores[row], centres - centres[row], count)
        near, far = _depth_range(model, row, rows)
        found.append(Neighbourhood(tuple(rows), near, far))
    return found


def pair_scores(model: SparseModel) -> np.ndarray:
    """(N, N) symmetric: number of shared points, each weighted by the angle between its rays; 0 for few points."""
    count = len(model)
    # A track may have two observations in one photograph; it counts once.
    seen = csr_matrix(
        (np.ones(len(model.observed_by), np.int32), (model.observed_by, model.observed_point)),
        shape=(count, len(model.points)),
    )
    seen.data[:] = 1
    seen.sort_indices()
    points_of = [seen.indices[seen.indptr[row] : seen.indptr[row + 1]] for row in range(count)]
    centres = model.world_from_camera[:, :3, 3]
    scores = np.zeros((count, count))
    shares = (seen @ seen.T).toarray() >= MIN_SHARED
    for i in range(count):
        for j in i + 1 + np.flatnonzero(shares[i, i + 1 :]):
            shared = model.points[np.intersect1d(points_of[i], points_of[j], assume_unique=True)]
            one, other = centres[i] - shared, centres[j] - shared
            cosine = (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            sigma = np.where(angle < BEST_ANGLE_DEG, SMALL_SIGMA_DEG, LARGE_SIGMA_DEG)
            scores[i, j] = scores[j, i] = np.exp(-((angle - BEST_ANGLE_DEG) ** 2) / (2 * sigma**2)).sum()
    return scores


def _diverse(scores: np.ndarray, directions: np.ndarray, count: int) -> list[int]:
    """Rows of the highest scores, preferring neighbours on different sides: what one cannot see another may."""
    remaining = scores.copy()
    chosen: list[int] = []
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    units = directions / np.maximum(length, 1e-12)
    while len(chosen) < count and remaining.max(initial=0) > 0:
        best = int(remaining.argmax())
        chosen.append(best)
        remaining[best] = 0
        remaining *= np.where(units @ units[best] > 0.5, SAME_SIDE, 1.0)
    return chosen


def _depth_range(model: SparseModel, row: int, neighbours: list[int]) -> tuple[float, float]:
    """(near, far) of the points in view of a photograph that it or a neighbour sees; zeros if they are too few."""
    own = model.depths_of(row)
    others = np.unique(np.concatenate([model.points_of(other) for other in neighbours] or [np.zeros(0, np.int64)]))
    camera = model.calibrations[row].camera
    pixels, depths = project(model.points[others], camera, model.world_from_camera[row])
    inside = (pixels >= 0).all(axis=1) & (pixels[:, 0] < camera.width) & (pixels[:, 1] < camera.height)
    depths = np.concatenate([own, depths[inside & (depths > 0)]])
    depths = depths[depths > 0]
    if len(depths) < MIN_RANGE_POINTS:
        return 0.0, 0.0
    near, far = np.percentile(depths, (0.5, 99.5))
    near, far = float(near) * NEAR_MARGIN, float(far) * FAR_MARGIN
    return near, min(far, near * MAX_RATIO)
