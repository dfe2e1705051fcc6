"""Continues an image into its holes along its lines (coherence transport, Bornemann and März 2007).

Holes are filled from their border inwards. Each pixel takes the mean of the pixels that are filled already around it,
weighted towards those that lie along the lines of the image there, so that edges that end at a hole continue into it.
"""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.utils.jit import compiled

RADIUS_PX = 5  # of the window from which a pixel is filled
SHARPNESS = 50.0  # of the weight along strong lines; 0 would be a mean of the window
WEAK_LINE = 40.0  # squared grey levels a pixel; where lines are weaker, the window counts more
FULL_SHARE = 0.99  # of a reduced pixel that must be known for its gradients to count
GRADIENT_SIGMA_PX, LINE_SIGMA_PX = 0.7, 4.0  # of the filters before the gradients and after their products


def continue_image(
    image: np.ndarray,
    known: np.ndarray,
    distance: np.ndarray,
    reach: float,
    depth: np.ndarray,
    min_depth: np.ndarray,
    *,
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the part of the holes that is near to known pixels.

    Args:
        image: (H, W, 3) uint8; what it shows in holes is not used.
        known: (H, W) bool, pixels that are no hole.
        distance: (H, W) float32 pixels to the nearest known pixel.
        reach: pixels up to which holes are filled.
        depth: (H, W) float32 of the known pixels, in any unit. It continues with the colours.
        min_depth: (H, W) float32; a pixel of a hole continues no pixel whose depth is less.
        scale: how many pixels count as one where lines are found, for large images.

    Returns:
        (H, W, 3) float32 grey levels, those of `image` where nothing was filled; and (H, W) bool, filled pixels.
    """
    out = image.astype(np.float32)
    inside = np.flatnonzero((distance > 0) & (distance <= reach) & ~known)
    if not len(inside) or not known.any():
        return out, np.zeros(known.shape, bool)
    order = inside[np.argsort(distance.reshape(-1)[inside], kind="stable")]
    lines = _line_moments(out, known, scale)
    filled = known.astype(np.uint8)
    depth = np.where(known, depth, np.float32(0)).astype(np.float32, copy=False)
    settings = np.array([SHARPNESS, WEAK_LINE], np.float32)
    _transport(order, RADIUS_PX, settings, np.ascontiguousarray(min_depth, np.float32), out, filled, depth, lines)
    return out, (filled > 0) & ~known


def _line_moments(image: np.ndarray, known: np.ndarray, scale: float) -> np.ndarray:
    """(H, W, 3) float32 means of the products of gradients (xx, xy, yy) around known pixels; 0 in holes."""
    size = known.shape[::-1]
    weight = known.astype(np.float32)
    values = cv2.merge([*cv2.split(image), np.ones_like(weight)]) * weight[..., None]
    if scale > 1:
        reduced = max(1, round(size[0] / scale)), max(1, round(size[1] / scale))
        values = cv2.resize(values, reduced, interpolation=cv2.INTER_AREA)
    inner = cv2.erode((values[..., 3] > FULL_SHARE).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
    smooth = cv2.GaussianBlur(values, (0, 0), GRADIENT_SIGMA_PX)
    smooth = smooth[..., :3] / np.maximum(smooth[..., 3:], 1e-3)
    x, y = (cv2.Sobel(smooth, cv2.CV_32F, i, 1 - i, ksize=3, scale=1 / 8) for i in (1, 0))
    channels = np.ones((1, 3), np.float32)
    products = [cv2.transform(product, channels) * inner for product in (x * x, x * y, y * y)]
    moments = cv2.merge([*products, inner])
    moments = cv2.GaussianBlur(moments, (0, 0), LINE_SIGMA_PX)
    moments = moments[..., :3] / np.maximum(moments[..., 3:], 1e-3)
    if scale > 1:
        moments = cv2.resize(moments, size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(moments * weight[..., None])


@compiled
def _transport(order, radius, settings, min_depth, image, filled, depth, lines):
    """Fills pixels in place.

    Args:
        order: (N,) int64 flat indices, from the border inwards.
        radius: of the window, pixels.
        settings: `SHARPNESS`, `WEAK_LINE`.
        min_depth: (H, W) float32.
        image: (H, W, 3) float32. filled: (H, W) uint8. depth: (H, W) float32. lines: (H, W, 3) float32; all are
            extended.
    """
    height, width = filled.shape
    for index in order:
        i, j = index // width, index % width
        top, bottom = max(0, i - radius), min(height, i + radius + 1)
        left, right = max(0, j - radius), min(width, j + radius + 1)
        least = min_depth[i, j]
        xx, xy, yy, total = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for y in range(top, bottom):
            for x in range(left, right):
                square = (y - i) * (y - i) + (x - j) * (x - j)
                if square > radius * radius or filled[y, x] == 0 or depth[y, x] < least:
                    continue
                weight = np.float32(1) / np.float32(square)
                xx += weight * lines[y, x, 0]
                xy += weight * lines[y, x, 1]
                yy += weight * lines[y, x, 2]
                total += weight
        if total == 0:
            continue
        xx, xy, yy = xx / total, xy / total, yy / total
        lines[i, j, 0], lines[i, j, 1], lines[i, j, 2] = xx, xy, yy
        # Across the line: the eigenvector of the larger eigenvalue.
        strength = np.sqrt((xx - yy) * (xx - yy) + np.float32(4) * xy * xy)
        angle = np.float32(0.5) * np.arctan2(np.float32(2) * xy, xx - yy)
        across_x, across_y = np.cos(angle), np.sin(angle)
        sharpness = np.float32(1)
        if strength > np.float32(1e-6):
            sharpness += settings[0] * np.exp(-settings[1] / strength)
        falloff = sharpness * sharpness / np.float32(2 * radius * radius)
        red, green, blue, total, best = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for y in range(top, bottom):
            for x in range(left, right):
                square = (y - i) * (y - i) + (x - j) * (x - j)
                if square > radius * radius or filled[y, x] == 0 or depth[y, x] < least:
                    continue
                beside = across_x * np.float32(x - j) + across_y * np.float32(y - i)
                weight = np.exp(-falloff * beside * beside) / np.sqrt(np.float32(square))
                total += weight
                red += weight * image[y, x, 0]
                green += weight * image[y, x, 1]
                blue += weight * image[y, x, 2]
                if weight > best:
                    best = weight
                    depth[i, j] = depth[y, x]
        if total > np.float32(1e-12):
            image[i, j, 0], image[i, j, 1], image[i, j, 2] = red / total, green / total, blue / total
            filled[i, j] = 1
