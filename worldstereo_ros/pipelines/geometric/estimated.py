"""Estimated pixels of a warped view: a camera saw their colour, and a model estimated their distance.

A pixel that is not observed is estimated if either of this holds:

- **Memory shows estimated points there**, and the depth of an observation agrees with them, measured or estimated. As
  for observed pixels, the cloud alone decides where no observation looks.
- **An observation saw it with almost no parallax.** If wrong depth moves the look-up by at most `MAX_PARALLAX_PX`, the
  colour is right whatever the distance is, which is then only completed from its surroundings.
"""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.pipelines.geometric.provenance import MIN_NEIGHBOURS, NEIGHBOURHOOD_PX
from worldstereo_ros.pipelines.geometric.references import MAX_PARALLAX_PX
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

LOOKS, AGREES, NO_PARALLAX = 1, 2, 4  # bits: an observation looks there; its depth agrees; its colour is right anyway


def estimated_pixels(
    warped: WarpedView,
    estimated: np.ndarray,
    observed: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    threads: int = 1,
) -> np.ndarray:
    """(H, W) bool, True where a camera saw the colour and the distance is estimated; see the module.

    Args:
        warped: the view.
        estimated: (H, W) bool, True where memory shows estimated points.
        observed: (H, W) bool, the observed pixels.
        camera, world_from_camera: camera and pose of the view.
        threads: number of threads to use.
    """
    bits = np.zeros(warped.depth.shape, np.uint8)
    depth = np.ascontiguousarray(warped.depth, np.float32)
    needs = np.where(observed, np.uint8(0), np.where(estimated, np.uint8(2), np.uint8(1)))
    for reference in warped.references:
        view = reference.view
        if not view.is_observation:
            continue
        A, b = pixel_transform(camera, world_from_camera, view.camera, view.world_from_camera)
        centre = world_from_camera[:3, :3].T @ (view.world_from_camera[:3, 3] - world_from_camera[:3, 3])
        geometry = np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy, *centre], np.float32)
        settings = np.array([DEPTH_TOLERANCE_RATIO, DEPTH_TOLERANCE_M, MAX_PARALLAX_PX], np.float32)
        assert view.depth is not None  # views without depth are no references
        known = np.ascontiguousarray(view.depth > 0, np.uint8)
        arguments = (depth, needs, A, b, reference.depth, known, settings, geometry, bits)
        run_in_threads(_look_up, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)])
    shown = estimated & ((bits & AGREES > 0) | (bits & LOOKS == 0))
    out = ~observed & warped.valid_mask & (shown | (bits & NO_PARALLAX > 0))
    if not out.any():
        return out
    window = (NEIGHBOURHOOD_PX, NEIGHBOURHOOD_PX)
    return out & (cv2.blur((out | observed).astype(np.float32), window) > MIN_NEIGHBOURS)


@compiled
def _look_up(row0, row1, depth, needs, A, b, source_depth, known, settings, geometry, out):
    """Looks up rows row0..row1 in one observation and adds the bits LOOKS, AGREES and NO_PARALLAX to `out`.

    Args:
        depth: (H, W) float32 target depth, 0 = none.
        needs: (H, W) uint8: 0 = nothing, 1 = NO_PARALLAX alone, 2 = all bits.
        A, b: `pixel_transform` from target to source.
        source_depth: (h, w) float32, completed. known: (h, w) uint8, 1 where it is not completed.
        settings: (3,) float32: depth tolerance, fraction and metres; parallax in pixels.
        geometry: (7,) float32: 1 / fx, 1 / fy, cx, cy of the target; source camera centre in target axes.
        out: (H, W) uint8.
    """
    zero, half = np.float32(0.0), np.float32(0.5)
    height, width = source_depth.shape
    bx, by, bz = geometry[4], geometry[5], geometry[6]
    baseline = bx * bx + by * by + bz * bz
    for y in range(row0, row1):
        for x in range(depth.shape[1]):
            d, fx, fy = depth[y, x], np.float32(x), np.float32(y)
            if d <= zero or needs[y, x] == 0:
                continue
            # The angle at the point between the two lines of sight.
            px, py = (fx - geometry[2]) * geometry[0], (fy - geometry[3]) * geometry[1]
            ray = px * px + py * py + np.float32(1.0)
            along = px * bx + py * by + bz
            across = max(baseline - along * along / ray, zero)
            limit = settings[2] * settings[2] * geometry[0] * geometry[0] * ray
            if needs[y, x] == 1 and across > limit * d * d:
                continue
            z = (A[2, 0] * fx + A[2, 1] * fy + A[2, 2]) * d + b[2]
            if z < np.float32(0.05):
                continue
            u = ((A[0, 0] * fx + A[0, 1] * fy + A[0, 2]) * d + b[0]) / z + half
            v = ((A[1, 0] * fx + A[1, 1] * fy + A[1, 2]) * d + b[1]) / z + half
            if not (u >= zero and v >= zero and u < np.float32(width) and v < np.float32(height)):
                continue
            out[y, x] |= LOOKS
            q, p = int(v), int(u)
            s = source_depth[q, p]
            if known[q, p] != 0 and abs(s - z) <= settings[0] * z + settings[1]:
                out[y, x] |= AGREES
            nearest = min(d, max(s - bz, np.float32(0.05)))  # the nearer surface if the source shows another
            if across <= limit * nearest * nearest:
                out[y, x] |= NO_PARALLAX
