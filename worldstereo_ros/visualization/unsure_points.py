"""Imagined points that pictures of a cloud leave out: distances more likely wrong than right, and bits in the air.

Where nothing was seen, the imagined depth runs from one surface to the next as a curtain, and breaks into sprays at
edges. Its confidence is low there. The memory keeps these points, because views are rendered from it with their
confidence; in a picture without it they would look as solid as walls.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.visualization.images import as_classes

MIN_DEPTH_CONFIDENCE = 0.5  # below, the distance is more likely wrong by 25 % than right
CELL_SPACINGS = 3.0  # size of a cell, in distances between the points of a surface
MIN_NEIGHBOURS = 5  # of 26: a cell of a plane has 8, one on its straight edge 5, one of a thread 2
MIN_CELLS = 30  # a surface of fewer cells, without any point that was seen, stands alone
_SAMPLES = 5000
_NEIGHBOURS = [(x, y, z) for x in (0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)]


def unsure_points(points: np.ndarray, provenance: np.ndarray, depth_confidence: np.ndarray | None) -> np.ndarray:
    """Finds imagined points whose distance is unsure, and those that stand alone.

    Args:
        points: (N, 3), finite.
        provenance: (N,) uint8 values of `Provenance`, or bool with True = observed and False = imagined.
        depth_confidence: (N,) float32 in 0..1; None if unknown, and 0 for all imagined points means the same.

    Returns:
        (N,) bool, True = unsure. Points that are observed, estimated or of unknown provenance are not, and none is if
        all points would be: a picture of nothing says less.
    """
    imagined = as_classes(provenance) == Provenance.IMAGINED
    if not imagined.any():
        return imagined
    unsure = np.zeros(len(points), dtype=bool)
    if depth_confidence is not None and depth_confidence[imagined].any():
        unsure = imagined & (depth_confidence < MIN_DEPTH_CONFIDENCE)
    sure = ~unsure
    unsure[sure] = _stand_alone(points[sure], imagined[sure])
    return np.zeros_like(unsure) if unsure.all() else unsure


def _stand_alone(points: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """(N,) bool, True for imagined points on small surfaces that touch nothing that was seen."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not imagined.any():
        return imagined
    tree = cKDTree(points, compact_nodes=False, balanced_tree=False)
    sample = np.random.default_rng(0).permutation(np.flatnonzero(imagined))[:_SAMPLES]
    spacing, _ = tree.query(points[sample], k=min(5, len(points)))  # the first is the point itself
    cell = CELL_SPACINGS * max(float(np.percentile(spacing[:, -1], 90)), 1e-6)
    cells = np.floor((points.astype(np.float64) - points.min(axis=0)) / cell).astype(np.int64)
    size = cells.max(axis=0) + 3
    strides = np.array([size[1] * size[2], size[2], 1])
    keys, of_point = np.unique((cells + 1) @ strides, return_inverse=True)
    first, second = [], []
    for offset in _NEIGHBOURS:
        at = np.searchsorted(keys, keys + np.dot(offset, strides))
        found = np.flatnonzero(keys[np.minimum(at, len(keys) - 1)] == keys + np.dot(offset, strides))
        first.append(found)
        second.append(at[found])
    rows, columns = np.concatenate(first), np.concatenate(second)
    seen = np.zeros(len(keys), dtype=bool)
    seen[of_point[~imagined]] = True
    neighbours = np.bincount(rows, minlength=len(keys)) + np.bincount(columns, minlength=len(keys))
    solid = seen | (neighbours >= MIN_NEIGHBOURS)  # cells, without those of threads and sprays
    linked = solid[rows] & solid[columns]
    links = coo_array((np.ones(linked.sum(), np.int8), (rows[linked], columns[linked])), shape=(len(keys), len(keys)))
    count, surface = connected_components(links, directed=False)
    anchored = np.zeros(count, dtype=bool)
    anchored[surface[seen]] = True
    large = np.bincount(surface, minlength=count) >= MIN_CELLS
    return imagined & ~(solid & (large | anchored)[surface])[of_point]
