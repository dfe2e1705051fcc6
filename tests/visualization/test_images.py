"""Provenance and depth as colour images."""

import numpy as np

from worldstereo_ros.visualization.images import (
    ESTIMATED_COLOUR,
    IMAGINED_COLOUR,
    OBSERVED_COLOUR,
    depth_image,
    provenance_overlay,
)


def test_provenance_overlay_tints_by_the_mask():
    observed = np.zeros((4, 4), bool)
    observed[0] = True
    overlay = provenance_overlay(np.zeros((4, 4, 3), np.uint8), observed, strength=1.0)
    assert (overlay[0] == OBSERVED_COLOUR).all()
    assert (overlay[1:] == IMAGINED_COLOUR).all()


def test_provenance_overlay_has_a_colour_for_each_class():
    provenance = np.array([[0, 1, 2, 3]], np.uint8)
    overlay = provenance_overlay(np.zeros((1, 4, 3), np.uint8), provenance, strength=1.0)
    assert len(np.unique(overlay[0], axis=0)) == 4
    assert np.ptp(overlay[0, 0]) == 0  # unknown is grey
    np.testing.assert_array_equal(overlay[0, 1:], [IMAGINED_COLOUR, ESTIMATED_COLOUR, OBSERVED_COLOUR])


def test_depth_image_is_grey_where_unknown_and_brighter_where_near():
    depth = np.array([[0.0, 1.0, 4.0]], np.float32)
    image = depth_image(depth, far=5.0).astype(int)
    assert (image[0, 0] == 128).all()
    assert image[0, 1].sum() > image[0, 2].sum()
