"""The nearest known pixel of each pixel."""

from __future__ import annotations

import cv2
import numpy as np


def nearest_known(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value of the nearest known pixel.

    Args:
        values: (H, W) of any type.
        known: (H, W) bool, true for at least one pixel.

    Returns:
        (H, W) values, those of known pixels their own; and (H, W) float32, the distance in pixels, 0 where known.
    """
    distance, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(int(labels.max()) + 1, values.dtype)
    of_label[labels[known]] = values[known]
    return of_label[labels], distance
