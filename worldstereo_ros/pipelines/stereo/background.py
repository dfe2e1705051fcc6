"""Fills holes of a warped eye from the side of the background: what opens beside a thing is what lies behind it.

Lines that end at the hole continue into it: the skirting of a wall, a stripe on the floor, the outline of a thing that
is cut off by the side of the camera's image. Column by column, each pixel takes the colour of the column before, along
the slope of the lines there (coherence transport, Bornemann and März 2007, with one front in each direction).
"""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO, WarpedEye
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

SMOOTHED_SHARE, MAX_RADIUS_PX = 0.25, 12  # of the distance from the background, over which columns are smoothed
SLOPE_SIDE_PX = 13  # of the window whose gradients tell the slope of lines, and the height of that of a hole's pixel
SLOPE_RIDGE = 0.5  # squared grey levels a pixel: gradients that are weaker are noise, and lines there are level
MAX_SLOPE = 3.0  # rows a column
# How a hole's pixel is filled: not at all, from the left, from the right; more if its row's hole ends at the image's
# side, where what is nearer continues as well.
_EMPTY, _LEFT, _RIGHT, _AT_SIDE = 0, 1, 2, 2


def fill_background(warped: WarpedEye, *, threads: int = 2) -> WarpedEye:
    """Fills holes from the background beside them.

    In each row, a hole continues the pixel on that side where the disparity is smaller; then lines are continued, and
    streaks are smoothed along the columns, the more the farther from the side.

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
    reach, source = np.zeros(disparity.shape, np.uint16), np.zeros(disparity.shape, np.uint8)
    marked = hole.view(np.uint8)
    parts = [rows[start:stop] for start, stop in split_range(len(rows), threads)]
    run_in_threads(_fill_rows, [(part, marked, image, disparity, reach, source) for part in parts])
    _continue_lines(image, disparity, line_moments(warped.image, ~hole), source)
    smoothed = image.copy()
    settings = np.array([JUMP_PX, JUMP_RATIO, SMOOTHED_SHARE, MAX_RADIUS_PX], np.float32)
    run_in_threads(_smooth_columns, [(part, marked, image, disparity, reach, settings, smoothed) for part in parts])
    return WarpedEye(smoothed, disparity)


def line_moments(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Products of the gradients of an image, which tell the slope of its lines.

    Args:
        image: (H, W, 3) uint8.
        known: (H, W) bool; gradients beside other pixels do not count.

    Returns:
        (H, W, 3) float32, means over windows of `SLOPE_SIDE_PX`: of the product of the gradients along a row and down a
        column, of the latter squared, and of the share of pixels that count.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    inside = cv2.erode(known.view(np.uint8), np.ones((3, 3), np.uint8), borderValue=1).astype(np.float32)
    along, down = (cv2.Sobel(grey, cv2.CV_32F, *axis, scale=1 / 8) for axis in ((1, 0), (0, 1)))
    products = cv2.merge([along * down * inside, down * down * inside, inside])
    return cv2.blur(products, (SLOPE_SIDE_PX, SLOPE_SIDE_PX), borderType=cv2.BORDER_CONSTANT)


def _continue_lines(image: np.ndarray, disparity: np.ndarray, moments: np.ndarray, source: np.ndarray) -> None:
    """Continues lines into holes, which `_fill_rows` has filled; changes image, disparity and moments there."""
    settings = np.array([JUMP_PX, JUMP_RATIO, SLOPE_RIDGE, MAX_SLOPE], np.float32)
    exact, beside = image.astype(np.float32), disparity.copy()
    for step, side in ((-1, _RIGHT), (1, _LEFT)):
        columns, rows = np.nonzero(((source == side) | (source == side + _AT_SIDE)).T)  # column by column
        order = slice(None, None, step)
        _transport(
            np.ascontiguousarray(rows[order]), np.ascontiguousarray(columns[order]), step, source, beside, settings,
            exact, disparity, moments,
        )  # fmt: skip
    filled = source != _EMPTY
    image[filled] = np.rint(exact[filled]).astype(np.uint8)


@compiled
def _fill_rows(rows, hole, image, disparity, reach, source):
    """Fills the holes of rows.

    Args:
        rows: (R,) numbers of the rows.
        hole: (H, W) uint8, 1 = fill.
        image: (H, W, 3) uint8, updated in holes.
        disparity: (H, W) float32, updated in holes.
        reach: (H, W) uint16, set in holes to the distance from the side that is continued, pixels.
        source: (H, W) uint8, set in holes to `_LEFT` or `_RIGHT`, and `_AT_SIDE` added.
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
            kind = _RIGHT if from_right else _LEFT
            if left < 0 or right >= width:
                kind += _AT_SIDE
            for k in range(start, right):
                disparity[y, k] = disparity[y, edge]
                for c in range(3):
                    image[y, k, c] = image[y, edge, c]
                reach[y, k] = min(right - k if from_right else k - left, 65535)
                source[y, k] = kind


@compiled
def _transport(rows, columns, step, source, beside, settings, image, disparity, moments):
    """Takes colours, disparities and moments from the column before, along the lines there.

    Args:
        rows, columns: (N,) int64, pixels to fill, in the order of columns.
        step: to the next column, 1 or -1.
        source: of `_fill_rows`.
        beside: (H, W) float32, disparity of the background beside each pixel's hole.
        settings: (4,) float32: `JUMP_PX`, `JUMP_RATIO`, `SLOPE_RIDGE`, `MAX_SLOPE`.
        image: (H, W, 3) float32, updated.
        disparity: (H, W) float32, updated.
        moments: (H, W, 3) float32, see `line_moments`, updated.
    """
    height = disparity.shape[0]
    radius = SLOPE_SIDE_PX // 2
    for i in range(len(rows)):
        y, x = rows[i], columns[i]
        p = x - step
        mixed, squared = np.float32(0.0), np.float32(1e-6)
        for q in range(max(0, y - radius), min(height - 1, y + radius) + 1):
            mixed += moments[q, p, 0]
            squared += moments[q, p, 1] + settings[2] * moments[q, p, 2]
        slope = -mixed / squared
        slope = min(max(slope, -settings[3]), settings[3])
        place = min(max(np.float32(y) - slope * np.float32(step), np.float32(0.0)), np.float32(height - 1))
        upper = int(place)
        lower = min(upper + 1, height - 1)
        share = place - np.float32(upper)
        above, below = np.float32(1.0) - share, share
        if source[y, x] <= _AT_SIDE:  # what hides the background does not continue
            limit = beside[y, x] + max(settings[0], settings[1] * beside[y, x])
            if disparity[upper, p] > limit:
                above = np.float32(0.0)
            if disparity[lower, p] > limit:
                below = np.float32(0.0)
            if above + below <= np.float32(0.0):
                upper, lower, above, below = y, y, np.float32(1.0), np.float32(0.0)
        total = above + below
        above, below = above / total, below / total
        for c in range(3):
            image[y, x, c] = above * image[upper, p, c] + below * image[lower, p, c]
            moments[y, x, c] = above * moments[upper, p, c] + below * moments[lower, p, c]
        disparity[y, x] = disparity[upper, p] if above >= below else disparity[lower, p]


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
