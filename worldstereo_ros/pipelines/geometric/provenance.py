"""Provenance: which pixels of a warped view may be labelled as observed.

A pixel is observed if all of this holds:

- **Memory shows observed points there**, not imagined ones.
- **A supporting view measured this very point.** The one measured pixel that the point falls on must agree with its
  depth (5 % + 2 cm). A pixel where the sensor measured nothing does not support it.
- **With a margin.** The nearest and the farthest depth of the 3 x 3 pixels around must agree with a supporting view
  too, since an edge may lie a pixel beside where it is rendered. Two supporting viewpoints make up for this and for the
  next.
- **With good registration.** Poses are never exact. How far two remembered views disagree about shared surfaces,
  expressed as an angle, is their registration error; it moves a slanted surface in depth. If it moves the point by more
  than the tolerance, one supporting view is not enough.
- **With its neighbours.** Half of the 7 x 7 pixels around must pass as well; isolated pixels are noise.
- **Nothing hidden before it.** The line of sight must not cross space that every view looking there saw only as hidden
  behind a surface.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO, Overlap, rotation_sensitivity
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

# What a supporting view measured at a point: outside its image; the same surface; the same surface in the 3 x 3 pixels
# around, too; another surface or nothing.
OUTSIDE, AGREES, AGREES_AROUND, DISAGREES = 0, 1, 2, 3

ASSUMED_ERROR_RAD = np.radians(0.5)  # of a view that shares too little with others to be checked
# Two views are two witnesses of a point if their camera centres are farther apart than this, relative to the distance
# of the point. The errors of closer ones are the same: they share the pose error, the line of sight and the sensor's.
MIN_BASELINE = 0.05
SIGMA_PER_MAD = 1.5  # standard deviations in a median absolute deviation: registration errors are medians
NEIGHBOURHOOD_PX, MIN_NEIGHBOURS = 7, 0.5  # window around a pixel, and fraction of it that must pass
# Search for hidden space along the lines of sight
RAY_STEPS = 16
RAY_STRIDE_PX = 4  # of every fourth row and column
RAY_START_M = 0.1
MAX_HIDDEN_M = 0.3  # of hidden space that a line of sight may cross


@dataclass(frozen=True)
class SupportingView:
    """A remembered view as evidence for what was observed.

    Attributes:
        view: the view, with depth.
        measured: (h, w) uint8, 1 where a sensor measured the depth.
        registration_error: radians.
    """

    view: View
    measured: np.ndarray
    registration_error: float


def registration_errors(count: int, overlaps: dict[tuple[int, int], Overlap]) -> np.ndarray:
    """(count,) median misalignment of each view with the others, radians; `ASSUMED_ERROR_RAD` if unknown.

    Overlaps of views from the same place are left out: a view agrees with its copy whatever its pose is.
    """
    errors: list[list[float]] = [[] for _ in range(count)]
    for (i, j), shared in overlaps.items():
        if np.isfinite(shared.misalignment) and shared.baseline >= MIN_BASELINE:
            errors[i].append(shared.misalignment)
            errors[j].append(shared.misalignment)
    return np.array([float(np.median(values)) if values else ASSUMED_ERROR_RAD for values in errors])


def observed_pixels(
    depth: np.ndarray,
    observed: np.ndarray,
    camera: Camera,
    pose: np.ndarray,
    supporting_views: list[SupportingView],
    threads: int = 1,
) -> np.ndarray:
    """(H, W) bool, True where a pixel shows what a sensor observed; see the module for the rules.

    Where no supporting view looks, observed points of memory suffice: the view that measured them may be evicted.

    Args:
        depth: (H, W) float32 metres rendered from memory, 0 = none.
        observed: (H, W) bool, True where memory shows observed points.
        camera, pose: camera and pose of the view; `pose` is world_from_camera.
        supporting_views: observations that may look there.
        threads: number of threads to use.
    """
    shape = depth.shape
    depth = np.ascontiguousarray(depth, np.float32)
    passed = observed & (depth > 0)
    if not supporting_views or not passed.any():
        return passed
    kernel = np.ones((3, 3), np.uint8)
    far = cv2.dilate(depth, kernel)
    near = cv2.erode(np.where(depth > 0, depth, np.float32(1e9)), kernel)
    slant = rotation_sensitivity(depth, camera.fx, camera.fy)
    looking, well_registered = np.zeros(shape, bool), np.zeros(shape, bool)
    agrees = np.zeros((len(supporting_views), *shape), np.uint8)
    for index, support in enumerate(supporting_views):
        A, b = pixel_transform(camera, pose, support.view.camera, support.view.world_from_camera)
        result = np.zeros(shape, np.uint8)
        source = (support.view.depth, support.measured)
        arguments = (depth, near, far, A, b, *source, _TOLERANCE_RATIO, _TOLERANCE_M, result)
        run_in_threads(_compare_depth, [(start, stop, *arguments) for start, stop in split_range(shape[0], threads)])
        looking |= result != OUTSIDE
        agrees[index] = (result == AGREES) | (result == AGREES_AROUND)
        well_registered |= (result == AGREES_AROUND) & (
            slant * SIGMA_PER_MAD * support.registration_error * depth
            <= DEPTH_TOLERANCE_RATIO * depth + DEPTH_TOLERANCE_M
        )
    confirmed = _from_two_viewpoints(depth, passed & ~well_registered, agrees, camera, pose, supporting_views, threads)
    passed &= (well_registered | confirmed | ~looking) & ~_crosses_hidden(depth, camera, pose, supporting_views)
    window = (NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX)
    return passed & (cv2.blur(passed.astype(np.float32), window) > MIN_NEIGHBOURS)


_TOLERANCE_RATIO, _TOLERANCE_M = np.float32(DEPTH_TOLERANCE_RATIO), np.float32(DEPTH_TOLERANCE_M)


@compiled
def _project(rx, ry, rz, d, b0, b1, b2, right, bottom):
    """(depth, row, column) in the source of the point at depth d on the line of sight (rx, ry, rz); row -1: outside.

    Takes and returns scalars alone: passing an array would cost more than the computation.
    """
    z = rz * d + b2
    if d <= np.float32(0.0) or z < np.float32(0.05):
        return z, -1, -1
    inverse = np.float32(1.0) / z
    u = (rx * d + b0) * inverse + np.float32(0.5)
    v = (ry * d + b1) * inverse + np.float32(0.5)
    if not (u >= np.float32(0.0) and v >= np.float32(0.0) and u < right and v < bottom):
        return z, -1, -1
    return z, np.int32(v), np.int32(u)


@compiled
def _compare_depth(row0, row1, depth, near, far, A, b, source_depth, measured, relative, absolute, out):
    """Compares rows row0..row1 with one supporting view; `near` and `far` are the extremes of depth around a pixel."""
    bottom, right = np.float32(source_depth.shape[0]), np.float32(source_depth.shape[1])
    b0, b1, b2 = b[0], b[1], b[2]
    for y in range(row0, row1):
        fy = np.float32(y)
        ox = A[0, 1] * fy + A[0, 2]
        oy = A[1, 1] * fy + A[1, 2]
        oz = A[2, 1] * fy + A[2, 2]
        for x in range(depth.shape[1]):
            d = depth[y, x]
            if d <= np.float32(0.0):
                continue
            fx = np.float32(x)
            rx, ry, rz = A[0, 0] * fx + ox, A[1, 0] * fx + oy, A[2, 0] * fx + oz
            z, q, p = _project(rx, ry, rz, d, b0, b1, b2, right, bottom)
            if q < 0:
                out[y, x] = OUTSIDE
                continue
            if measured[q, p] == 0 or abs(source_depth[q, p] - z) > relative * z + absolute:
                out[y, x] = DISAGREES
                continue
            out[y, x] = AGREES
            z, q, p = _project(rx, ry, rz, near[y, x], b0, b1, b2, right, bottom)
            if q < 0 or measured[q, p] == 0 or abs(source_depth[q, p] - z) > relative * z + absolute:
                continue
            z, q, p = _project(rx, ry, rz, far[y, x], b0, b1, b2, right, bottom)
            if q < 0 or measured[q, p] == 0 or abs(source_depth[q, p] - z) > relative * z + absolute:
                continue
            out[y, x] = AGREES_AROUND


def _from_two_viewpoints(
    depth: np.ndarray,
    needed: np.ndarray,
    agrees: np.ndarray,
    camera: Camera,
    pose: np.ndarray,
    supporting_views: list[SupportingView],
    threads: int,
) -> np.ndarray:
    """(H, W) bool: of the pixels `needed`, those where two views agree that are `MIN_BASELINE` apart.

    Args:
        depth: (H, W) float32 metres.
        needed: (H, W) bool.
        agrees: (S, H, W) uint8, 1 where supporting view S measured the depth of the pixel.
        camera, pose: of the view.
        supporting_views: the S views.
        threads: number of threads to use.
    """
    camera_from_world = invert_pose(pose)
    centres = np.stack([support.view.world_from_camera[:3, 3] for support in supporting_views])
    centres = (centres @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]).astype(np.float32)
    out = np.zeros(depth.shape, np.uint8)
    geometry = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy, MIN_BASELINE], np.float32)
    arguments = (depth, needed.astype(np.uint8), agrees, centres, geometry, out)
    run_in_threads(
        _mark_two_viewpoints, [(start, stop, *arguments) for start, stop in split_range(depth.shape[0], threads)]
    )
    return out > 0


@compiled
def _mark_two_viewpoints(row0, row1, depth, needed, agrees, centres, geometry, out):
    """Sets `out` to 1 in rows row0..row1 where two of the agreeing views are far enough apart.

    Args:
        depth, needed, agrees: see `_from_two_viewpoints`; `needed` is uint8.
        centres: (S, 3) float32 camera centres of the supporting views in the axes of the view.
        geometry: (5,) float32: 1 / fx, 1 / fy, cx, cy, and the baseline relative to the distance of the point.
        out: (H, W) uint8.
    """
    count = agrees.shape[0]
    for y in range(row0, row1):
        for x in range(depth.shape[1]):
            if needed[y, x] == 0:
                continue
            d = depth[y, x]
            px = (np.float32(x) - geometry[2]) * geometry[0] * d
            py = (np.float32(y) - geometry[3]) * geometry[1] * d
            for i in range(count):
                if agrees[i, y, x] == 0:
                    continue
                dx, dy, dz = px - centres[i, 0], py - centres[i, 1], d - centres[i, 2]
                least = geometry[4] * geometry[4] * (dx * dx + dy * dy + dz * dz)
                for j in range(count):
                    if agrees[j, y, x] == 0:
                        continue
                    bx = centres[j, 0] - centres[i, 0]
                    by = centres[j, 1] - centres[i, 1]
                    bz = centres[j, 2] - centres[i, 2]
                    if bx * bx + by * by + bz * bz >= least:
                        out[y, x] = 1


def _crosses_hidden(
    depth: np.ndarray, camera: Camera, pose: np.ndarray, supporting_views: list[SupportingView]
) -> np.ndarray:
    """(H, W) bool: the line of sight crosses space that is hidden in every supporting view that looks there."""
    offset = RAY_STRIDE_PX // 2
    coarse = np.ascontiguousarray(depth[offset::RAY_STRIDE_PX, offset::RAY_STRIDE_PX])
    free = np.zeros((*coarse.shape, RAY_STEPS), np.uint8)
    hidden = np.zeros_like(free)
    for support in supporting_views:
        A, b = pixel_transform(camera, pose, support.view.camera, support.view.world_from_camera)
        full_from_coarse = np.array([[RAY_STRIDE_PX, 0, offset], [0, RAY_STRIDE_PX, offset], [0, 0, 1]], np.float32)
        source = (support.view.depth, support.measured, _TOLERANCE_RATIO, _TOLERANCE_M)
        _mark_free_and_hidden(
            coarse, A @ full_from_coarse, b, *source, np.float32(RAY_START_M), RAY_STEPS, free, hidden
        )
    length = (hidden & (1 - free)).sum(axis=2) * np.maximum(coarse - RAY_START_M, 0) / RAY_STEPS
    rejected = (length > MAX_HIDDEN_M).astype(np.uint8)
    return cv2.resize(rejected, depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


@compiled
def _mark_free_and_hidden(
    depth, A, b, source_depth, source_measured, relative, absolute, near, steps, out_free, out_hidden
):
    """Marks which parts of the lines of sight of a target view one source observed as free, and which it saw hidden.

    Args:
        depth: (H, W) float32 target depth, 0 = none.
        A, b: result of `pixel_transform` from target to source.
        source_depth: (h, w) float32. source_measured: (h, w) uint8.
        relative, absolute: depth tolerance, fraction and metres.
        near: where the lines of sight begin, metres.
        steps: samples along each line, even in depth from `near` to the target depth.
        out_free, out_hidden: (H, W, steps) uint8, set to 1; never set to 0.
    """
    height, width = source_depth.shape
    half = np.float32(0.5)
    for y in range(depth.shape[0]):
        for x in range(depth.shape[1]):
            if depth[y, x] <= near:
                continue
            fx, fy = np.float32(x), np.float32(y)
            rx = A[0, 0] * fx + A[0, 1] * fy + A[0, 2]
            ry = A[1, 0] * fx + A[1, 1] * fy + A[1, 2]
            rz = A[2, 0] * fx + A[2, 1] * fy + A[2, 2]
            step = (depth[y, x] - near) / np.float32(steps)
            for k in range(steps):
                d = near + step * (np.float32(k) + half)
                z = rz * d + b[2]
                if z < np.float32(0.05):
                    continue
                inverse = np.float32(1.0) / z
                u = (rx * d + b[0]) * inverse + half
                v = (ry * d + b[1]) * inverse + half
                if not (u >= 0 and v >= 0 and u < width and v < height):
                    continue
                q, p = int(v), int(u)
                if source_measured[q, p] == 0:
                    continue
                s = source_depth[q, p]
                tolerance = relative * s + absolute
                if z < s + np.float32(0.25) * tolerance:
                    out_free[y, x, k] = 1
                elif z > s + tolerance:
                    out_hidden[y, x, k] = 1
