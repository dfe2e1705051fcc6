"""What may be called observed in a view that nobody took.

A pixel is claimed when all of this holds:

- **Memory shows observed points there**, not imagined ones.
- **A witness**: some remembered view measured this very point. The one measured pixel that the point falls on must
  agree with its depth (5 % + 2 cm); a hole of the sensor is no witness.
- **Not by a hair**: the nearest and the farthest depth of the 3 x 3 pixels around must agree with a witness too, since
  an edge may lie a pixel beside where it is drawn. Two witnesses that agree make up for this and for the next.
- **Well enough registered**: poses are never exact. How far two remembered views disagree about surfaces they share,
  expressed as an angle, is their registration error; a surface seen at a slant moves in depth by it. Where that move
  is larger than the tolerance, one witness is not enough.
- **Not alone**: half of the 7 x 7 pixels around must pass as well; what is left of a surface in specks is noise.
- **Nothing unseen before it**: the line of sight must not cross space that every view which looks there has seen only
  as hidden behind something.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.overlap import ABSOLUTE, RELATIVE, Overlap, sensitivity
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

# What a remembered view says about a point: it never looked there, it has this point but not its surroundings, it has
# both, it measured something else there or nothing at all.
UNSEEN, AGREES, AGREES_AROUND, DENIES = 0, 1, 2, 3

ASSUMED_ERROR = np.radians(0.5)  # of a view that split_range too little with others to be checked
SPREAD = 1.5  # standard deviations in a median absolute deviation: registration errors are medians
STEPS = 16  # samples along a line of sight
HIDDEN_METRES = 0.3  # a line of sight through more hidden space than this is not trusted
STRIDE = 4  # lines of sight are checked for every fourth pixel and row
COMPANY, COMPANY_SHARE = 7, 0.5  # a claim needs so many of the pixels in the window around it to be claimed, too
NEAR = 0.1  # metres, where lines of sight begin


@dataclass(frozen=True)
class SupportingView:
    """A remembered view with what is needed to ask it.

    Attributes:
        view: the view; depth is not None.
        known: (h, w) uint8, 1 where a sensor measured the depth.
        error: its registration error, radians.
    """

    view: View
    known: np.ndarray
    error: float


def registration_errors(count: int, overlaps: dict[tuple[int, int], Overlap]) -> np.ndarray:
    """(count,) radians: the median misalignment of each view against the others; `ASSUMED_ERROR` where unknown."""
    against: list[list[float]] = [[] for _ in range(count)]
    for (i, j), common in overlaps.items():
        if np.isfinite(common.misalignment):
            against[i].append(common.misalignment)
            against[j].append(common.misalignment)
    return np.array([float(np.median(errors)) if errors else ASSUMED_ERROR for errors in against])


def observed_pixels(
    depth: np.ndarray,
    observed: np.ndarray,
    camera: Camera,
    pose: np.ndarray,
    witnesses: list[SupportingView],
    threads: int = 1,
) -> np.ndarray:
    """(H, W) bool: a sensor saw what is in this pixel (see the module for the rules).

    Where no witness looks at all, memory is believed: it may hold points of views that are no longer kept.

    Args:
        depth: (H, W) float32 rendered from memory, 0 = none.
        observed: (H, W) bool, memory shows observed points.
        camera, pose: of the view; `pose` is world_from_camera.
        witnesses: remembered views that may look there.
        threads: how many threads to use.
    """
    shape = depth.shape
    depth = np.ascontiguousarray(depth, np.float32)
    claimed = observed & (depth > 0)
    if not witnesses or not claimed.any():
        return claimed
    kernel = np.ones((3, 3), np.uint8)
    far = cv2.dilate(depth, kernel)
    near = cv2.erode(np.where(depth > 0, depth, np.float32(1e9)), kernel)
    slant = sensitivity(depth, camera.fx, camera.fy)
    looked, sure = np.zeros(shape, bool), np.zeros(shape, bool)
    count = np.zeros(shape, np.uint8)
    for supporting_view in witnesses:
        A, b = pixel_transform(camera, pose, supporting_view.view.camera, supporting_view.view.world_from_camera)
        says = np.zeros(shape, np.uint8)
        arguments = (
            depth,
            near,
            far,
            A,
            b,
            supporting_view.view.depth,
            supporting_view.known,
            RELATIVE_,
            ABSOLUTE_,
            says,
        )
        run_in_threads(_ask, [(start, stop, *arguments) for start, stop in split_range(shape[0], threads)])
        looked |= says != UNSEEN
        count += (says == AGREES) | (says == AGREES_AROUND)
        sure |= (says == AGREES_AROUND) & (
            slant * SPREAD * supporting_view.error * depth <= RELATIVE * depth + ABSOLUTE
        )
    claimed &= (sure | (count > 1) | ~looked) & ~_behind_hidden(depth, camera, pose, witnesses)
    return claimed & (cv2.blur(claimed.astype(np.float32), (COMPANY, COMPANY)) > COMPANY_SHARE)


RELATIVE_, ABSOLUTE_ = np.float32(RELATIVE), np.float32(ABSOLUTE)


@compiled
def _lands(rx, ry, rz, d, b0, b1, b2, right, bottom):
    """(depth, row, column) in the source of the point at depth d on the line of sight (rx, ry, rz); row -1: outside.

    Numbers only: an array that is handed on costs more than all that is worked out here.
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
def _ask(row0, row1, depth, near, far, A, b, source_depth, known, relative, absolute, out):
    """What one view says about rows row0..row1; `near` and `far` are the extremes of depth around each pixel."""
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
            z, q, p = _lands(rx, ry, rz, d, b0, b1, b2, right, bottom)
            if q < 0:
                out[y, x] = UNSEEN
                continue
            if known[q, p] == 0 or abs(source_depth[q, p] - z) > relative * z + absolute:
                out[y, x] = DENIES
                continue
            out[y, x] = AGREES
            z, q, p = _lands(rx, ry, rz, near[y, x], b0, b1, b2, right, bottom)
            if q < 0 or known[q, p] == 0 or abs(source_depth[q, p] - z) > relative * z + absolute:
                continue
            z, q, p = _lands(rx, ry, rz, far[y, x], b0, b1, b2, right, bottom)
            if q < 0 or known[q, p] == 0 or abs(source_depth[q, p] - z) > relative * z + absolute:
                continue
            out[y, x] = AGREES_AROUND


def _behind_hidden(depth: np.ndarray, camera: Camera, pose: np.ndarray, witnesses: list[SupportingView]) -> np.ndarray:
    """(H, W) bool: the line of sight crosses space that is hidden in every witness that looks there."""
    offset = STRIDE // 2
    small = np.ascontiguousarray(depth[offset::STRIDE, offset::STRIDE])
    free = np.zeros((*small.shape, STEPS), np.uint8)
    hidden = np.zeros_like(free)
    for supporting_view in witnesses:
        A, b = pixel_transform(camera, pose, supporting_view.view.camera, supporting_view.view.world_from_camera)
        coarse = np.array([[STRIDE, 0, offset], [0, STRIDE, offset], [0, 0, 1]], np.float32)
        arguments = (
            small,
            A @ coarse,
            b,
            supporting_view.view.depth,
            supporting_view.known,
            RELATIVE_,
            ABSOLUTE_,
            np.float32(NEAR),
        )
        _cross(*arguments, STEPS, free, hidden)
    length = (hidden & (1 - free)).sum(axis=2) * np.maximum(small - NEAR, 0) / STEPS
    doubtful = (length > HIDDEN_METRES).astype(np.uint8)
    return cv2.resize(doubtful, depth.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0


@compiled
def _cross(depth, A, b, source_depth, source_known, relative, absolute, near, steps, out_free, out_hidden):
    """Which parts of the lines of sight of a target view one source saw to be free, and which lie behind a surface.

    Args:
        depth: (H, W) float32 target depth, 0 = none.
        A, b: of `pixel_transform` from target to source.
        source_depth: (h, w) float32. source_known: (h, w) uint8.
        relative, absolute: how far before or behind a surface counts, fraction and metres.
        near: where the lines begin, metres.
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
                if source_known[q, p] == 0:
                    continue
                s = source_depth[q, p]
                tolerance = relative * s + absolute
                if z < s + np.float32(0.25) * tolerance:
                    out_free[y, x, k] = 1
                elif z > s + tolerance:
                    out_hidden[y, x, k] = 1
