"""Noise of a depth image, estimated from the image itself."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.imaging.overlap import DEPTH_TOLERANCE_M, DEPTH_TOLERANCE_RATIO
from worldstereo_ros.utils.jit import compiled

REACH_PX = 5  # distance of the pixels that a pixel is compared with; the noise of closer ones is correlated
WINDOW_PX = 9  # over which the noise is averaged
MAX_RESIDUAL = 2.0  # larger residuals, in tolerances, are depth edges
MEAN_PER_MINIMUM = 1.71  # of the absolute values of two normal variables
MIN_SUPPORT = 0.05  # fraction of the pixels of the window with neighbours


def depth_noise(depth: np.ndarray) -> np.ndarray:
    """How far depths are from the line through their neighbours on both sides, relative to the depth tolerance.

    The mean over a window of second differences. A plane is nearly straight in depth, so what is left is noise or
    quantisation. Edges and ledges bend depth in one direction, noise in both: of the second differences along rows and
    columns, the smaller one counts.

    Args:
        depth: (H, W) metres, 0 = unknown.

    Returns:
        (H, W) float32 in 0..1, in tolerances (5 % + 2 cm); 1 where too few pixels have neighbours.
    """
    depth = np.ascontiguousarray(depth, np.float32)
    total, count = np.zeros_like(depth), np.zeros_like(depth)
    _second_differences(depth, np.float32(DEPTH_TOLERANCE_RATIO), np.float32(DEPTH_TOLERANCE_M), total, count)
    window = (WINDOW_PX, WINDOW_PX)
    total, count = cv2.blur(total, window), cv2.blur(count, window)
    return np.where(count > MIN_SUPPORT, total / np.maximum(count, 1e-6), 1).astype(np.float32)


@compiled
def _second_differences(depth, relative, absolute, total, count):
    """Sets `total` to |a - 2 b + c| in tolerances and `count` to 1, for pixels b between two others a and c.

    Of rows and columns the smaller difference counts, scaled to the mean of both for independent noise.
    """
    height, width = depth.shape
    one, two = np.float32(1), np.float32(2)
    for y in range(height):
        for x in range(width):
            b = depth[y, x]
            if b <= 0:
                continue
            smallest, found = np.float32(MAX_RESIDUAL), 0
            for axis in range(2):
                dy, dx = (0, REACH_PX) if axis == 0 else (REACH_PX, 0)
                if y < dy or x < dx or y + dy >= height or x + dx >= width:
                    continue
                a, c = depth[y - dy, x - dx], depth[y + dy, x + dx]
                if a <= 0 or c <= 0:
                    continue
                residual = abs(a - two * b + c) / (relative * b + absolute)
                if residual < MAX_RESIDUAL:
                    smallest = min(smallest, residual)
                    found += 1
            if found > 0:
                scale = np.float32(MEAN_PER_MINIMUM) if found == 2 else one
                total[y, x] = min(scale * smallest, one)
                count[y, x] = one
