"""The points of the page: which are sent to the browser, how large and in which colours."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.visualization.images import as_classes, provenance_colours

MAX_POINTS = 600_000  # sent to a browser: 9 MB, fluid on a laptop without a graphics card
TINTED, NATURAL, PROVENANCE = "image colours, tinted by provenance", "image colours", "provenance"
TINT = {Provenance.IMAGINED: 0.5, Provenance.ESTIMATED: 0.35}  # weight of the class's colour if tinted
COLOURINGS = (TINTED, NATURAL, PROVENANCE)


def thin_points(
    points: np.ndarray, provenance: np.ndarray, max_points: int = MAX_POINTS, distance: np.ndarray | None = None
) -> np.ndarray:
    """Chooses at most `max_points` points, one per voxel, so that surfaces stay evenly covered.

    Args:
        points: (N, 3).
        provenance: (N,) uint8 values of `Provenance`, or bool with True = observed; of the points in a voxel one of the
            highest class is kept.
        max_points: at least 1.
        distance: (N,) distance of each point from the nearest camera. The voxel size doubles with every doubling of it
            beyond the median, so that distant points do not use up the budget. None for one voxel size.

    Returns:
        (M,) int64 indices, sorted.
    """
    if len(points) <= max_points:
        return np.arange(len(points))
    order = np.argsort(-as_classes(provenance).astype(np.int8), kind="stable")
    ordered = points[order].astype(np.float64)
    level = np.zeros(len(ordered), dtype=np.int64)
    if distance is not None:
        relative = distance[order] / max(float(np.median(distance)), 1e-9)
        level = np.clip(np.floor(np.log2(np.maximum(relative, 1e-9))), 0, 7).astype(np.int64)
    scaled = (ordered - np.median(ordered, axis=0)) / 2.0 ** level[:, None]
    # Points lie on surfaces, so their number is proportional to 1 / voxel**2. A few iterations find the voxel size.
    voxel = (float(np.linalg.norm(np.ptp(scaled, axis=0))) or 1.0) / np.sqrt(4.0 * max_points)
    too_small, large_enough, kept = 0.0, np.inf, np.arange(len(ordered))
    for _ in range(9):
        cells = np.clip(np.floor(scaled / voxel), -(2**19), 2**19 - 1).astype(np.int64) + 2**19
        key = (level << 60) | (cells[:, 0] << 40) | (cells[:, 1] << 20) | cells[:, 2]
        _, first = np.unique(key, return_index=True)
        if len(first) > max_points:
            too_small = voxel
        else:
            large_enough, kept = voxel, first
            if len(first) >= 0.85 * max_points:
                break
        guess = voxel * float(np.clip(np.sqrt(len(first) / (0.92 * max_points)), 0.25, 4.0))
        bracketed = too_small > 0 and np.isfinite(large_enough)
        voxel = np.sqrt(too_small * large_enough) if bracketed else guess
    if len(kept) > max_points:
        kept = np.random.default_rng(0).choice(kept, max_points, replace=False)
    return np.sort(order[kept])


def camera_distance(points: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """(N,) distance of each of the points (N, 3) from the nearest of the cameras (F, 4, 4), F >= 1."""
    from scipy.spatial import cKDTree

    return cKDTree(cameras[:, :3, 3]).query(points, workers=2)[0]


def point_sizes(points: np.ndarray) -> np.ndarray:
    """Size at which each point touches its neighbours: the distance to the third nearest one.

    Args:
        points: (N, 3).

    Returns:
        (N,) float32, in the unit of the points; at most three times the median, so that outliers stay small.
    """
    from scipy.spatial import cKDTree

    if len(points) < 4:
        return np.full(len(points), 0.02, dtype=np.float32)
    distance, _ = cKDTree(points, compact_nodes=False, balanced_tree=False).query(points, k=4, workers=2)
    size = distance[:, 3].astype(np.float32)
    median = float(np.median(size)) or 0.01
    return np.clip(size, 0.3 * median, 3 * median)


def colour_points(colours: np.ndarray, provenance: np.ndarray, colouring: str) -> np.ndarray:
    """Applies a colouring.

    Args:
        colours: (N, 3) uint8.
        provenance: (N,) uint8 values of `Provenance`, or bool with True = observed and False = imagined.
        colouring: one of `COLOURINGS`.

    Returns:
        (N, 3) uint8.

    Raises:
        InputError: the colouring is unknown.
    """
    if colouring == NATURAL or len(colours) == 0:
        return colours
    classes = as_classes(provenance)
    tint = provenance_colours(classes).astype(np.float32)
    if colouring == TINTED:
        strength = np.array([TINT.get(kind, 0.0) for kind in Provenance])[classes][:, None]
        return ((1 - strength) * colours + strength * tint).astype(np.uint8)
    if colouring == PROVENANCE:
        grey = colours.astype(np.float32).mean(axis=1, keepdims=True) / 255
        return np.clip(tint * (0.45 + 0.9 * grey), 0, 255).astype(np.uint8)
    raise InputError(f"The colouring '{colouring}' is unknown; one of {', '.join(COLOURINGS)} was expected.")
