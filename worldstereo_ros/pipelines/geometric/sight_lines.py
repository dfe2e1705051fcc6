"""Lines of sight: how much of the space before a surface no remembered view saw to be free."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.utils.jit import compiled

STEPS = 16  # samples along each line, one bit each
STRIDE_PX = 4  # of every fourth row and column
START_M = 0.1
_BIT_COUNT = np.array([bin(value).count("1") for value in range(1 << STEPS)], np.float32)


def unknown_lengths(
    depth: np.ndarray, camera: Camera, world_from_camera: np.ndarray, views: Sequence[tuple[View, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each line of sight is not known to be free.

    Args:
        depth: (H, W) float32 metres at which the lines of sight end, 0 = none.
        camera, world_from_camera: camera and (4, 4) pose of the view.
        views: remembered views, each with its measured pixels (h, w) uint8.

    Returns:
        Two float32 arrays with every `STRIDE_PX`-th row and column, lengths in metres: of space that views saw only as
        hidden behind a surface, and of space that none of them saw to be free, which includes the first.
    """
    offset = STRIDE_PX // 2
    coarse = np.ascontiguousarray(depth[offset::STRIDE_PX, offset::STRIDE_PX])
    free, hidden = np.zeros((2, *coarse.shape), np.uint16)
    full_from_coarse = np.array([[STRIDE_PX, 0, offset], [0, STRIDE_PX, offset], [0, 0, 1]], np.float32)
    tolerance = np.float32(DEPTH_TOLERANCE_RATIO), np.float32(DEPTH_TOLERANCE_M)
    for view, measured in views:
        A, b = pixel_transform(camera, world_from_camera, view.camera, view.world_from_camera)
        source = (view.depth, measured, *tolerance)
        _mark_free_and_hidden(coarse, A @ full_from_coarse, b, *source, np.float32(START_M), free, hidden)
    x = (np.arange(offset, camera.width, STRIDE_PX, dtype=np.float32) - np.float32(camera.cx)) / np.float32(camera.fx)
    y = (np.arange(offset, camera.height, STRIDE_PX, dtype=np.float32) - np.float32(camera.cy)) / np.float32(camera.fy)
    step = np.maximum(coarse - np.float32(START_M), 0) * (np.sqrt(x * x + (y * y + 1)[:, None]) / np.float32(STEPS))
    return _BIT_COUNT[hidden & ~free] * step, _BIT_COUNT[~free] * step


@compiled
def _mark_free_and_hidden(depth, A, b, source_depth, source_measured, relative, absolute, near, out_free, out_hidden):
    """Marks which parts of the lines of sight of a target view one source observed as free, and which it saw hidden.

    Args:
        depth: (H, W) float32 target depth, 0 = none.
        A, b: result of `pixel_transform` from target to source.
        source_depth: (h, w) float32. source_measured: (h, w) uint8.
        relative, absolute: depth tolerance, fraction and metres.
        near: where the lines of sight begin, metres.
        out_free, out_hidden: (H, W) uint16, bit k for sample k of `STEPS`, even in depth from `near` to the target
            depth; bits are set, never cleared.
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
            free, hidden = 0, 0
            step = (depth[y, x] - near) / np.float32(STEPS)
            for k in range(STEPS):
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
                    free |= 1 << k
                elif z > s + tolerance:
                    hidden |= 1 << k
            out_free[y, x] |= np.uint16(free)
            out_hidden[y, x] |= np.uint16(hidden)
