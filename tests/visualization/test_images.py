"""Provenance and depth as colour images."""

import numpy as np

from worldstereo_ros.visualization.images import IMAGINED_COLOUR, OBSERVED_COLOUR, depth_image, provenance_overlay


def test_provenance_overlay_tints_by_the_mask():
    observed = np.zeros((4, 4), bool)
    observed[0] = True
    overlay = provenance_overlay(np.zeros((4, 4, 3), np.uint8), observed, strength=1.0)
    assert (overlay[0] == OBSERVED_COLOUR).all()
    assert (overlay[1:] == IMAGINED_COLOUR).all()


def test_depth_image_is_grey_where_unknown_and_brighter_where_near():
    depth = np.array([[0.0, 1.0, 4.0]], np.float32)
    image = depth_image(depth, far=5.0).astype(int)
    assert (image[0, 0] == 128).all()
    assert image[0, 1].sum() > image[0, 2].sum()
