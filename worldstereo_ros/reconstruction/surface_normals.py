"""Normals of a cloud: from the neighbours of each point, turned towards the cameras that saw it."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.errors import InputError

NEIGHBOURS = 10  # of a point, with itself
MAX_SPACINGS = 4.0  # distance of a lone point from its neighbours, in spacings of the cloud


def surface_neighbourhood(points: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Describes the surface around each point of a cloud by its nearest points.

    Args:
        points: (N, 3) finite.
        spacing: (N,) distance between neighbours as the cloud says it; distances are limited to `MAX_SPACINGS` of it.

    Returns:
        (distance (N,) to the neighbours; normals (N, 3), unit vectors of either sign; planarity (N,), from 0 for points
        in all directions to 1 for a plane).
    """
    from scipy.spatial import cKDTree

    count = len(points)
    limit = MAX_SPACINGS * spacing.astype(np.float64)
    if count < 4:
        return limit / MAX_SPACINGS, np.tile([0.0, 0.0, 1.0], (count, 1)), np.zeros(count)
    places = points.astype(np.float64)
    distances, neighbours = cKDTree(places).query(places, k=min(NEIGHBOURS, count), workers=2)
    distance = np.minimum(np.sqrt((distances[:, 1:4] ** 2).mean(axis=1)), limit)
    around = places[neighbours] - places[neighbours].mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
    planarity = 1 - np.clip(values[:, 0] / np.maximum(values[:, 1], 1e-12) * 3, 0, 1)
    return np.maximum(distance, 0.05 * limit / MAX_SPACINGS), vectors[:, :, 0], planarity


def towards_cameras(points: np.ndarray, normals: np.ndarray, camera_centres: np.ndarray) -> np.ndarray:
    """Turns normals to the side of the nearest camera.

    Args:
        points, normals: (N, 3).
        camera_centres: (C, 3) in the world, at least one.

    Returns:
        (N, 3) float64.

    Raises:
        InputError: there are no cameras.
    """
    from scipy.spatial import cKDTree

    centres = np.asarray(camera_centres, np.float64).reshape(-1, 3)
    if len(centres) == 0:
        raise InputError("Normals are turned towards the cameras; at least one camera was expected.")
    nearest = centres[cKDTree(centres).query(points)[1]]
    away = ((nearest - points) * normals).sum(axis=1) < 0
    return np.where(away[:, None], -normals, normals).astype(np.float64)
