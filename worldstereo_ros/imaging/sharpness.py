"""How sharp a photograph is, whatever it shows."""

from __future__ import annotations

import cv2
import numpy as np

SHARPNESS_SIDE_PX = 640  # longer side at which sharpness is measured; blur of a pixel of a large photograph is none
COARSE_SIGMA_PX = 2.0
_ACROSS, _ALONG = np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float32)
_ACROSS[1], _ALONG[[0, 1, 2], [0, 1, 2]] = (1, -2, 1), (1, -2, 1)
_SECOND_DERIVATIVES = (_ACROSS, _ACROSS.T, _ALONG, _ALONG[::-1])  # in four directions


def sharpness(image: np.ndarray) -> float:
    """Strength of fine detail relative to coarse detail, at 640 pixels along the longer side.

    The ratio of the standard deviations of the second derivative of the image and of the image after a blur of two
    pixels, in the least sharp of four directions, since a camera that moves blurs along its motion only. Contrast and
    the amount of texture cancel out; noise counts as detail. Sharp photographs have 4 to 20, blurred ones (by two
    pixels and more) less than 3.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) uint8.

    Returns:
        The ratio, 0 for an image of one colour.
    """
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    factor = SHARPNESS_SIDE_PX / max(grey.shape)
    if factor < 1:
        size = max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    grey = grey.astype(np.float32)
    coarse = cv2.GaussianBlur(grey, (0, 0), COARSE_SIGMA_PX)
    ratios = []
    for kernel in _SECOND_DERIVATIVES:
        strength = float(cv2.filter2D(coarse, cv2.CV_32F, kernel).std())
        ratios.append(float(cv2.filter2D(grey, cv2.CV_32F, kernel).std()) / strength if strength > 1e-3 else 0.0)
    return min(ratios)
