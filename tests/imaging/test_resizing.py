"""Resizing of images."""

import cv2
import numpy as np

from worldstereo_ros.imaging.resizing import resize_image


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    means = image.reshape(6, 2, 8, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_image(image, 8, 6) - means).max() <= 0.5
    for enlarge in (cv2.INTER_LINEAR, cv2.INTER_CUBIC):
        expected = cv2.resize(image, (32, 24), interpolation=enlarge)
        np.testing.assert_array_equal(resize_image(image, 32, 24, enlarge=enlarge), expected)
    np.testing.assert_array_equal(resize_image(image, 16, 12), image)
