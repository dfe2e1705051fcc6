"""Depth of a rendered cloud, made exact from the views whose depth it is.

The cloud is rendered as discs of one depth each. Where a surface is seen from closer than its depth was taken, or at a
grazing angle, a disc covers many pixels, and depth is a staircase. Here the line of sight of each pixel is intersected
with the plane through the four pixels with depth around its look-up in a view: planes are linear in the inverse depth
of any view, so that the result is exact on planes, and no worse than linear interpolation elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.nearest_known import nearest_known
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_RATIO
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

MAX_STEP_RATIO = 1.2  # between the depths of neighbouring pixels of one surface
MAX_CHANGE_RATIO = 0.4  # of depth
MAX_SHIFT_PX = 1.0  # of the look-up in the last step, in pixels of the view
STEPS = 3
MAX_REACH_PX = 8.0  # of a point's disc, in pixels of a view that shows its surface


class DepthSource(NamedTuple):
    """A view with depth.

    Attributes:
        depth: (h, w) float32 metres.
        valid: (h, w) uint8, 1 = `depth` was measured or estimated there, not filled.
        camera, world_from_camera: camera and (4, 4) pose.
    """

    depth: np.ndarray
    valid: np.ndarray
    camera: Camera
    world_from_camera: np.ndarray


def refine_depth(
    depth: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    sources: Sequence[DepthSource],
    *,
    gap: float = 0.0,
    threads: int = 1,
) -> np.ndarray:
    """The depth of a rendered cloud, interpolated in the views whose depth it is.

    Several views count by their resolution on the surface. A pixel for which no view has depth keeps its own. Very
    close to a surface, discs leave gaps: a pixel without depth gets that of a surface which passes between neighbours.

    Args:
        depth: (H, W) float32 metres, 0 = none.
        camera, world_from_camera: camera and (4, 4) pose of the view that was rendered.
        sources: views that may show the same.
        gap: how far from a pixel with depth, in pixels, one without may get one.
        threads: number of threads to use.

    Returns:
        (H, W) float32 metres.
    """
    covered = depth > 0
    if not sources or not covered.any():
        return depth
    sums = np.zeros((*depth.shape, 2), np.float32)
    near = np.ascontiguousarray(depth if gap <= 0 or covered.all() else _extend(depth, covered, gap), np.float32)
    limits = (
        MAX_STEP_RATIO,
        1 - MAX_CHANGE_RATIO,
        1 + MAX_CHANGE_RATIO,
        MAX_SHIFT_PX,
        DEPTH_TOLERANCE_RATIO,
        MAX_REACH_PX,
    )
    settings = np.array(limits, np.float32)
    for source in sources:
        A, b = pixel_transform(camera, world_from_camera, source.camera, source.world_from_camera)
        arguments = (near, A, b, source.depth, source.valid, settings, np.float32(source.camera.fx), sums)
        run_in_threads(
            _intersect_rows, [(start, stop, *arguments) for start, stop in split_range(depth.shape[0], threads)]
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 1] / sums[..., 0], depth)


def _extend(depth: np.ndarray, covered: np.ndarray, reach: float) -> np.ndarray:
    """(H, W) float32: pixels without depth, up to `reach` pixels from one with depth, get that of the nearest one."""
    nearest, distance = nearest_known(depth, covered)
    return np.where(distance <= reach, nearest, np.float32(0))


@compiled
def _intersect_rows(row0, row1, depth, A, b, source_depth, is_valid, settings, focal_length, sums):
    """Adds the inverse depths at which lines of sight meet a surface of one source, and their weights.

    Args:
        row0, row1: first row and end of the rows to process.
        depth: (H, W) float32 target depth, 0 = none.
        A, b: `pixel_transform` from target to source.
        source_depth: (h, w) float32. is_valid: (h, w) uint8.
        settings: `MAX_STEP_RATIO`, smallest and largest change, `MAX_SHIFT_PX`, relative difference of depths of one
            surface, `MAX_REACH_PX`.
        focal_length: of the source, pixels.
        sums: (H, W, 2) float32, updated.
    """
    one, zero, half, quarter = np.float32(1), np.float32(0), np.float32(0.5), np.float32(0.25)
    height, width = source_depth.shape
    for y in range(row0, row1):
        at_y = np.float32(y)
        for x in range(depth.shape[1]):
            d = depth[y, x]
            if d <= zero:
                continue
            at_x = np.float32(x)
            ru = A[0, 0] * at_x + A[0, 1] * at_y + A[0, 2]
            rv = A[1, 0] * at_x + A[1, 1] * at_y + A[1, 2]
            rz = A[2, 0] * at_x + A[2, 1] * at_y + A[2, 2]
            met = d
            for step in range(STEPS):
                z = rz * met + b[2]
                if z < np.float32(0.05):
                    break
                u, v = (ru * met + b[0]) / z, (rv * met + b[1]) / z
                if not (u >= zero and v >= zero and u < width - 1 and v < height - 1):
                    break
                p, q = int(u), int(v)
                if not (is_valid[q, p] and is_valid[q, p + 1] and is_valid[q + 1, p] and is_valid[q + 1, p + 1]):
                    break
                s00, s01 = source_depth[q, p], source_depth[q, p + 1]
                s10, s11 = source_depth[q + 1, p], source_depth[q + 1, p + 1]
                if max(max(s00, s01), max(s10, s11)) > settings[0] * min(min(s00, s01), min(s10, s11)):
                    break
                i00, i01, i10, i11 = one / s00, one / s01, one / s10, one / s11
                slope_u = half * (i01 - i00 + i11 - i10)
                slope_v = half * (i10 - i00 + i11 - i01)
                level = quarter * (i00 + i01 + i10 + i11)
                level -= slope_u * (np.float32(p) + half) + slope_v * (np.float32(q) + half)
                # The plane is slope_u * u + slope_v * v + level = 1 / z in the source. What is farther from it than a
                # disc on this surface reaches is another surface, such as a thing that came after the view was taken.
                if step == 0:
                    slack = settings[4] / z + settings[5] * (abs(slope_u) + abs(slope_v))
                    if abs(one / z - (slope_u * u + slope_v * v + level)) > slack:
                        break
                below = one - (slope_u * b[0] + slope_v * b[1] + level * b[2])
                above = slope_u * ru + slope_v * rv + level * rz
                if below * above <= zero:
                    break
                met = below / above
                if not (settings[1] * d < met < settings[2] * d):
                    break
                z = rz * met + b[2]
                if z < np.float32(0.05):
                    break
                shift = max(abs((ru * met + b[0]) / z - u), abs((rv * met + b[1]) / z - v))
                if shift < settings[3]:  # else the plane is that of other pixels: again, from where it was met
                    weight = (focal_length / z) * (focal_length / z)
                    sums[y, x, 0] += weight / met
                    sums[y, x, 1] += weight
                    break
