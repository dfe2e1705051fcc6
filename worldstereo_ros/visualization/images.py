"""Pictures for people: contact sheets, videos, and the cloud seen from above with the path."""

from __future__ import annotations

import cv2
import numpy as np

OBSERVED_COLOUR, IMAGINED_COLOUR = (38, 132, 166), (226, 120, 60)


def provenance_overlay(image: np.ndarray, observed: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """(H, W, 3) uint8: the image greyed and tinted, blue where observed, orange where imagined."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    tint = np.where(observed[..., None], OBSERVED_COLOUR, IMAGINED_COLOUR).astype(np.float32)
    return ((1 - strength) * grey + strength * tint).astype(np.uint8)


def depth_image(depth: np.ndarray, far: float | None = None) -> np.ndarray:
    """(H, W, 3) uint8: near is bright, far is dark, unknown is mid-grey."""
    known = depth > 0
    if far is None:
        far = float(np.percentile(depth[known], 98)) if known.any() else 1.0
    level = (255 * (1 - np.clip(depth / max(far, 1e-6), 0, 1))).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)
    picture[~known] = 128
    return picture
