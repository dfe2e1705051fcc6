"""Fills holes of a warped eye from the side of the background: what opens beside a thing is what lies behind it."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO, WarpedEye
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

SMOOTHED_SHARE, MAX_RADIUS_PX = 0.5, 12  # of the distance from the background, over which columns are smoothed


def fill_background(warped: WarpedEye, *, threads: int = 2) -> WarpedEye:
    """Fills holes from the background beside them.

    In each row, a hole takes the pixel on that side where the disparity is smaller. Streaks, which rows that know
    nothing of each other would leave, are smoothed along the columns, the more the farther from the side.

    Args:
        warped: image and disparity with holes.
        threads: number of threads.

    Returns:
        The eye without holes; black with disparity 0 where a whole row shows nothing.
    """
    hole = warped.hole
    if not hole.any():
        return warped
    image, disparity = warped.image.copy(), warped.disparity.copy()
    rows = np.flatnonzero(hole.any(axis=1))
    reach = np.zeros(disparity.shape, np.uint16)
    marked = hole.view(np.uint8)
    parts = [rows[start:stop] for start, stop in split_range(len(rows), threads)]
    run_in_threads(_fill_rows, [(part, marked, image, disparity, reach) for part in parts])
    smoothed = image.copy()
    settings = np.array([JUMP_PX, JUMP_RATIO, SMOOTHED_SHARE, MAX_RADIUS_PX], np.float32)
    run_in_threads(_smooth_columns, [(part, marked, image, disparity, reach, settings, smoothed) for part in parts])
    return WarpedEye(smoothed, disparity)


@compiled
def _fill_rows(rows, hole, image, disparity, reach):
    """Fills the holes of rows.

    Args:
        rows: (R,) numbers of the rows.
        hole: (H, W) uint8, 1 = fill.
        image: (H, W, 3) uint8, updated in holes.
        disparity: (H, W) float32, updated in holes.
        reach: (H, W) uint16, set in holes to the distance from the side that is continued, pixels.
    """
    width = disparity.shape[1]
    for y in rows:
        x = 0
        while x < width:
            if hole[y, x] == 0:
                x += 1
                continue
            start = x
            while x < width and hole[y, x] != 0:
                x += 1
            left, right = start - 1, x
            if left < 0 and right >= width:
                for k in range(width):
                    disparity[y, k] = np.float32(0.0)
                    for c in range(3):
                        image[y, k, c] = 0
                continue
            from_right = left < 0 or (right < width and disparity[y, right] <= disparity[y, left])
            edge = right if from_right else left
            for k in range(start, right):
                disparity[y, k] = disparity[y, edge]
                for c in range(3):
                    image[y, k, c] = image[y, edge, c]
                reach[y, k] = min(right - k if from_right else k - left, 65535)


@compiled
def _smooth_columns(rows, hole, image, disparity, reach, settings, out):
    """Means of filled pixels of one background along a column.

    Args:
        rows, hole, image, disparity, reach: of `_fill_rows`, read.
        settings: (4,) float32: `JUMP_PX`, `JUMP_RATIO`, `SMOOTHED_SHARE`, `MAX_RADIUS_PX`.
        out: (H, W, 3) uint8, written in holes.
    """
    height, width = disparity.shape
    for y in rows:
        for x in range(width):
            radius = int(min(np.float32(reach[y, x]) * settings[2], settings[3]))
            if hole[y, x] == 0 or radius == 0:
                continue
            value = disparity[y, x]
            limit = max(settings[0], settings[1] * value)
            red, green, blue, count = 0, 0, 0, 0
            for q in range(max(0, y - radius), min(height - 1, y + radius) + 1):
                if hole[q, x] == 0 or abs(disparity[q, x] - value) > limit:
                    continue
                red += int(image[q, x, 0])
                green += int(image[q, x, 1])
                blue += int(image[q, x, 2])
                count += 1
            out[y, x, 0] = np.uint8((red + count // 2) // count)
            out[y, x, 1] = np.uint8((green + count // 2) // count)
            out[y, x, 2] = np.uint8((blue + count // 2) // count)
