"""Splats and meshes for tests."""

import numpy as np

from worldstereo_ros.io.meshes import Mesh
from worldstereo_ros.rendering.gaussian_splats import GaussianSplats


def random_splats(count=50, coefficients=4, seed=0):
    """Splats in front of a camera at the origin, of all three classes."""
    rng = np.random.default_rng(seed)
    return GaussianSplats(
        rng.uniform((-1, -1, 1.5), (1, 1, 3), (count, 3)),
        rng.normal(size=(count, 4)),
        rng.uniform(0.01, 0.2, (count, 3)),
        rng.uniform(0.05, 0.99, count),
        0.4 * rng.normal(size=(count, coefficients, 3)),
        rng.integers(1, 4, count),
        metric=False,
    )


def coloured_cube():
    """A cube of edge 2 around (1, 0, 3) with a colour, a normal and a class for each corner."""
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
    triangles = np.array([
        (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
        (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
    ])  # fmt: skip
    colours = np.random.default_rng(0).integers(0, 256, (8, 3), dtype=np.uint8)
    provenance = np.array([1, 2, 3, 3, 1, 2, 3, 1], np.uint8)
    normals = corners / np.sqrt(np.float32(3))
    return Mesh(corners + np.float32([1, 0, 3]), triangles, colours, normals, provenance, metric=False)
