"""Provenance and depth as colour images."""

from __future__ import annotations

import cv2
import numpy as np

OBSERVED_COLOUR, IMAGINED_COLOUR, PATH_COLOUR = (38, 132, 166), (226, 120, 60), (220, 40, 60)  # blue, orange, red
UNKNOWN_GREY = 128
FAR_PERCENTILE = 98


def provenance_overlay(image: np.ndarray, observed: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """Tints an image blue where it was observed and orange where it was imagined.

    Args:
        image: (H, W, 3) uint8.
        observed: (H, W) bool.
        strength: weight of the tint, 0 to 1; the rest is the image in grey.

    Returns:
        (H, W, 3) uint8.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    tint = np.where(observed[..., None], OBSERVED_COLOUR, IMAGINED_COLOUR).astype(np.float32)
    return ((1 - strength) * grey + strength * tint).astype(np.uint8)


def depth_image(depth: np.ndarray, far: float | None = None) -> np.ndarray:
    """Draws a depth map: near is bright, far is dark, unknown is mid-grey.

    Args:
        depth: (H, W) float32 metres, 0 = unknown.
        far: metres drawn darkest; None for the 98th percentile.

    Returns:
        (H, W, 3) uint8.
    """
    valid_mask = depth > 0
    if far is None:
        far = float(np.percentile(depth[valid_mask], FAR_PERCENTILE)) if valid_mask.any() else 1.0
    level = (255 * (1 - np.clip(depth / max(far, 1e-6), 0, 1))).astype(np.uint8)
    image = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)
    image[~valid_mask] = UNKNOWN_GREY
    return image
