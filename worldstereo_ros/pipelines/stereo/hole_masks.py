"""Which filled pixels a network repaints, and how much of it shows at their rim."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO

MIN_HOLE_PX = 16  # connected parts of fewer pixels keep the fill
MIN_WIDTH_PX, MIN_WIDTH = 3, 1 / 128  # narrower parts do, too; in pixels, and of the image's width
FEATHER_PX = (2, 16)  # over which the network's colours take the place of the fill, in narrow and in wide holes
FEATHER = 0.5  # of the largest distance within as many pixels around, from where the fill continues


def wide_parts(painted: np.ndarray) -> np.ndarray:
    """What a network repaints of (H, W) bool: between known pixels a few apart, the fill is as good.

    Returns:
        (H, W) bool: `painted` without parts narrower than `MIN_WIDTH_PX` or `MIN_WIDTH`, and without those of fewer
        than `MIN_HOLE_PX` pixels.
    """
    if not painted.any():
        return painted
    side = max(MIN_WIDTH_PX, int(MIN_WIDTH * painted.shape[1]))
    padded = np.pad(painted.view(np.uint8), side, mode="edge")  # beyond the image, holes continue
    wide = cv2.morphologyEx(padded, cv2.MORPH_OPEN, np.ones((side, side), np.uint8))
    wide = np.ascontiguousarray(wide[side:-side, side:-side])
    _, labels, stats, _ = cv2.connectedComponentsWithStats(wide, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= MIN_HOLE_PX
    large[0] = False
    return large[labels]


def in_view(disparity: np.ndarray, offset: float, *, left: bool = False) -> np.ndarray:
    """Where a made eye sees what lies inside the camera's image, hidden or not.

    A strip at the side of the made eye lies beyond it. The camera's image says nothing about it, and the network is not
    trained on it.

    Args:
        disparity: (H, W) float32 of the filled eye.
        offset: of converged eyes, see `warp.warp_to_eye`.
        left: the made eye is the left one.

    Returns:
        (H, W) bool.
    """
    width = disparity.shape[1]
    columns = np.arange(width, dtype=np.float32)
    column = (columns[::-1] if left else columns) + disparity - np.float32(offset)
    return (column >= 0) & (column <= width - 1)


def network_share(painted: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """How much of the network's colours shows, so that no seam does.

    The fill continues the surface behind: at that side of a hole it has the colours beside it, and the network takes
    its place over some pixels, the more the wider the hole. At the other side, where a nearer surface begins, an edge
    belongs.

    Args:
        painted: (H, W) bool, pixels that the network paints.
        disparity: (H, W) float32 of the filled eye.

    Returns:
        (H, W) float32: 0 outside `painted`, up to 1 inside.
    """
    inside = np.where(painted, disparity, np.float32(-1))
    beside = cv2.dilate(inside, np.ones((3, 3), np.uint8))
    limit = np.maximum(np.float32(JUMP_PX), np.float32(JUMP_RATIO) * beside)
    continued = ~painted & (beside >= 0) & (disparity <= beside + limit)
    if not continued.any():
        return painted.astype(np.float32)
    distance = cv2.distanceTransform((~continued).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    distance[~painted] = 0
    around = 2 * FEATHER_PX[1] + 1
    width = np.clip(FEATHER * cv2.dilate(distance, np.ones((around, around), np.uint8)), *FEATHER_PX)
    return np.minimum(distance / (width + 1), np.float32(1))


def blend(fill: np.ndarray, image: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mixes an image (H, W, 3) uint8 into the fill by (H, W) shares; where the share is 0 nothing changes."""
    some = share > 0
    out = fill.copy()
    weight = share[some][:, None]
    out[some] = np.rint((1 - weight) * fill[some] + weight * image[some]).astype(np.uint8)
    return out
