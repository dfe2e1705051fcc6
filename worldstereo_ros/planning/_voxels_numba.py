"""Rays through voxels: what a depth image says of the space in front of its surfaces, and of the surfaces."""

from __future__ import annotations

import math

import numpy as np

from worldstereo_ros.utils.jit import compiled

# Log odds of a voxel that a sensor saw occupied or free once, and their limits, as in OctoMap (Hornung et al. 2013). A
# miss counts for a quarter of theirs: rays pass beside thin and slanted surfaces in the same voxel, such as over the
# seat of a chair. A voxel stays occupied if it is hit in a tenth of the images; what left is gone after 35 of them.
HIT, MISS, LOWEST, HIGHEST = np.float32(0.85), np.float32(-0.1), np.float32(-2.0), np.float32(3.5)
# A ray says that space is free up to this fraction of its depth in front of the surface, for errors of the depth.
FREE_MARGIN_FRACTION = 0.02


@compiled
def trace_image(
    depth, kind, confidence, camera, pose, low, resolution, max_range, stride, stamps, turn, odds, hits, free, which
):
    """Adds the evidence of the pixels of one class of a depth image.

    Voxels in which a ray ends are occupied, those before it are free; where both happens in one image, occupied wins.

    Args:
        depth: (H, W) float32 metres along the optical axis; 0, NaN and infinity = unknown.
        kind: (H, W) uint8 provenance of the pixels; those other than `which` are skipped.
        confidence: (H, W) float32 in 0..1, of depth.
        camera: fx, fy, cx, cy in pixels of this image.
        pose: (4, 4) float64 grid_from_camera.
        low: (3,) float64 corner of the grid, metres. resolution: edge of a voxel, metres.
        max_range: metres from the camera up to which depth counts; farther surfaces only show that space is free.
        stride: every how many rows and columns a pixel counts.
        stamps: (X, Y, Z) int32, the turn in which a voxel was changed last, times two, plus one if it was hit.
        turn: number of this image, ascending from 1.
        odds: (X, Y, Z) float32 log odds of occupied, changed if `which` is observed; else (0, 0, 0).
        hits, free: (X, Y, Z) uint8 levels of evidence in 0..255, changed otherwise: the highest confidence of a pixel.
        which: the class of the pixels, a value of `Provenance`.
    """
    X, Y, Z = stamps.shape
    fx, fy, cx, cy = camera
    observed = odds.shape[0] > 0
    start = np.empty(3)
    for axis in range(3):
        start[axis] = (pose[axis, 3] - low[axis]) / resolution
    for phase in range(2):  # surfaces first: free space does not overwrite them
        for row in range(0, depth.shape[0], stride):
            for column in range(0, depth.shape[1], stride):
                if kind[row, column] != which:
                    continue
                z = np.float64(depth[row, column])
                if not (z > 0 and z < 1e6):
                    continue
                x, y = (column - cx) / fx, (row - cy) / fy
                dx = pose[0, 0] * x + pose[0, 1] * y + pose[0, 2]
                dy = pose[1, 0] * x + pose[1, 1] * y + pose[1, 2]
                dz = pose[2, 0] * x + pose[2, 1] * y + pose[2, 2]
                length = math.sqrt(x * x + y * y + 1.0)  # of the ray at depth 1
                near = z * length <= max_range
                level = np.uint8(min(max(confidence[row, column], 0.0), 1.0) * 255)
                if phase == 0:
                    if not near:
                        continue
                    i = math.floor(start[0] + dx * z / resolution)
                    j = math.floor(start[1] + dy * z / resolution)
                    k = math.floor(start[2] + dz * z / resolution)
                    if i < 0 or j < 0 or k < 0 or i >= X or j >= Y or k >= Z:
                        continue
                    if observed:
                        if stamps[i, j, k] < 2 * turn:
                            odds[i, j, k] = min(odds[i, j, k] + HIT, HIGHEST)
                    elif level > hits[i, j, k]:
                        hits[i, j, k] = level
                    stamps[i, j, k] = 2 * turn + 1
                    continue
                end = min(z * (1 - FREE_MARGIN_FRACTION) - 0.5 * resolution / length, max_range / length)
                if end > 0:
                    _clear(start, dx, dy, dz, end / resolution, stamps, turn, odds, free, observed, level)


@compiled
def _clear(start, dx, dy, dz, end, stamps, turn, odds, free, observed, level):
    """Marks the voxels along a ray as free, by the algorithm of Amanatides and Woo (1987); lengths in voxels."""
    X, Y, Z = stamps.shape
    # The part of the ray inside the grid.
    t0, t1 = 0.0, end
    for axis in range(3):
        d = dx if axis == 0 else (dy if axis == 1 else dz)
        size = X if axis == 0 else (Y if axis == 1 else Z)
        if abs(d) < 1e-12:
            if start[axis] < 0 or start[axis] >= size:
                return
            continue
        a, b = -start[axis] / d, (size - start[axis]) / d
        t0, t1 = max(t0, min(a, b)), min(t1, max(a, b))
    if t0 >= t1:
        return
    inside = t0 + 1e-9
    i = min(max(math.floor(start[0] + dx * inside), 0), X - 1)
    j = min(max(math.floor(start[1] + dy * inside), 0), Y - 1)
    k = min(max(math.floor(start[2] + dz * inside), 0), Z - 1)
    si, sj, sk = 1 if dx > 0 else -1, 1 if dy > 0 else -1, 1 if dz > 0 else -1
    far = 1e300
    ti = (i + (1 if dx > 0 else 0) - start[0]) / dx if abs(dx) > 1e-12 else far
    tj = (j + (1 if dy > 0 else 0) - start[1]) / dy if abs(dy) > 1e-12 else far
    tk = (k + (1 if dz > 0 else 0) - start[2]) / dz if abs(dz) > 1e-12 else far
    ei = abs(1 / dx) if abs(dx) > 1e-12 else far
    ej = abs(1 / dy) if abs(dy) > 1e-12 else far
    ek = abs(1 / dz) if abs(dz) > 1e-12 else far
    while True:
        if observed:
            if stamps[i, j, k] < 2 * turn:
                stamps[i, j, k] = 2 * turn
                odds[i, j, k] = max(odds[i, j, k] + MISS, LOWEST)
        elif level > free[i, j, k] and stamps[i, j, k] != 2 * turn + 1:
            free[i, j, k] = level
        nearest = min(ti, tj, tk)
        if nearest >= t1:
            return
        if ti == nearest:
            i += si
            ti += ei
        elif tj == nearest:
            j += sj
            tj += ej
        else:
            k += sk
            tk += ek
        if i < 0 or j < 0 or k < 0 or i >= X or j >= Y or k >= Z:
            return


@compiled
def mark_points(points, provenance, confidence, rotation, low, resolution, odds, estimated, imagined):
    """Adds the points of a cloud: each says that its voxel is occupied, if no ray of the same class said anything.

    Args:
        points: (N, 3) float32 world points. provenance: (N,) uint8. confidence: (N,) float32, of the distance.
        rotation: (3, 3) float64 grid_from_world.
        low, resolution: of the grid, metres.
        odds: (X, Y, Z) float32. estimated, imagined: (X, Y, Z) uint8 levels.
    """
    X, Y, Z = odds.shape
    place = np.empty(3, np.int64)
    for n in range(len(points)):
        for axis in range(3):
            value = (
                rotation[axis, 0] * points[n, 0] + rotation[axis, 1] * points[n, 1] + rotation[axis, 2] * points[n, 2]
            )
            place[axis] = math.floor((value - low[axis]) / resolution)
        i, j, k = place[0], place[1], place[2]
        if i < 0 or j < 0 or k < 0 or i >= X or j >= Y or k >= Z:
            continue
        level = np.uint8(min(max(confidence[n], 0.0), 1.0) * 255)
        if provenance[n] == 3:
            if odds[i, j, k] == 0:
                odds[i, j, k] = HIT
        elif provenance[n] == 2:
            estimated[i, j, k] = max(estimated[i, j, k], level)
        elif provenance[n] == 1:
            imagined[i, j, k] = max(imagined[i, j, k], level)
