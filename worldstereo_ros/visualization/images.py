"""Provenance and depth as colour images."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.view_labels import PROVENANCE_COLOURS

OBSERVED_COLOUR = PROVENANCE_COLOURS[Provenance.OBSERVED]  # blue
ESTIMATED_COLOUR = PROVENANCE_COLOURS[Provenance.ESTIMATED]  # yellow
IMAGINED_COLOUR = PROVENANCE_COLOURS[Provenance.IMAGINED]  # orange
PATH_COLOUR = (220, 40, 60)  # red
UNKNOWN_GREY = 128
FAR_PERCENTILE = 98


def as_classes(provenance: np.ndarray) -> np.ndarray:
    """Returns uint8 values of `Provenance`, unknown included, of an array that may be bool: True = observed."""
    provenance = np.asarray(provenance)
    if provenance.dtype == np.bool_:
        return np.where(provenance, np.uint8(Provenance.OBSERVED), np.uint8(Provenance.IMAGINED))
    return provenance.astype(np.uint8)


def provenance_colours(provenance: np.ndarray) -> np.ndarray:
    """Returns (..., 3) uint8 colours of `Provenance` values (...), or of bools: True = observed, False = imagined."""
    return np.array([PROVENANCE_COLOURS[kind] for kind in Provenance], np.uint8)[as_classes(provenance)]


def provenance_legend(present: Iterable[Provenance]) -> list[tuple[tuple[int, int, int], str]]:
    """Returns (colour, name) of the classes in `present`, the best known first, for legends."""
    return [(PROVENANCE_COLOURS[kind], kind.name.lower()) for kind in sorted(set(present), reverse=True)]


def provenance_overlay(image: np.ndarray, provenance: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """Tints an image by provenance: blue = observed, yellow = estimated, orange = imagined, grey = unknown.

    Args:
        image: (H, W, 3) uint8.
        provenance: (H, W) uint8 values of `Provenance`, or bool with True = observed and False = imagined.
        strength: weight of the tint, 0 to 1; the rest is the image in grey.

    Returns:
        (H, W, 3) uint8.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    return ((1 - strength) * grey + strength * provenance_colours(provenance)).astype(np.uint8)


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
