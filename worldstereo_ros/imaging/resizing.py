"""Resizing of images: area averaging when they shrink, which avoids aliasing, and interpolation when they grow."""

from __future__ import annotations

import cv2
import numpy as np


def resize_image(image: np.ndarray, width: int, height: int, *, enlarge: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Resizes an image: area averaging if it becomes narrower, else interpolation.

    Args:
        image: (H, W) or (H, W, C), a dtype that OpenCV supports.
        width, height: new size in pixels.
        enlarge: interpolation of OpenCV for an image that becomes wider.

    Returns:
        (height, width) or (height, width, C), of the dtype of `image`.
    """
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else enlarge)
