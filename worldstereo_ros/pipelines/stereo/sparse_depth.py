"""Depth that is known at scattered pixels alone: of a lidar, or of a depth camera registered to a larger image."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO

MIN_COMPANY = 0.6  # share of known pixels beside which another one is known; surfaces with holes have more
SMOOTH_PX = 15  # side of the square over which disparity is smoothed where it has no jump


def is_sparse(known: np.ndarray) -> bool:
    """Whether known pixels (H, W) bool are scattered, or lines, and are no surfaces with holes."""
    count = int(known.sum())
    if count in (0, known.size):
        return False
    beside, below = (known[:, 1:] & known[:, :-1]).sum(), (known[1:] & known[:-1]).sum()
    return bool(min(beside, below) < MIN_COMPANY * count)


def spread_disparity(disparity: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Disparity of all pixels, from scattered ones.

    Each pixel takes the nearest known one's, which keeps the jumps between surfaces; elsewhere the steps between the
    pixels that share one are smoothed. Filling from the background side (`fill_depth`) is for holes beside a surface:
    around single points it leaves spikes.

    Args:
        disparity: (H, W) float32 pixels.
        known: (H, W) bool, at least one is.

    Returns:
        (H, W) float32.
    """
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(labels.max()) + 1, np.float32)
    of_label[labels[known]] = disparity[known]
    nearest = of_label[labels]
    around = np.ones((SMOOTH_PX, SMOOTH_PX), np.uint8)
    largest = cv2.dilate(nearest, around)
    # A slope may rise by more than a step over the square.
    even = largest - cv2.erode(nearest, around) <= np.maximum(2 * JUMP_PX, 2 * JUMP_RATIO * largest)
    return np.where(even, cv2.blur(nearest, (SMOOTH_PX, SMOOTH_PX)), nearest)
