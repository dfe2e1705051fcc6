"""Narrow gaps of measured depth, filled by the image."""

import cv2
import numpy as np
from helpers.stereo_scene import BOARD_M, CAMERA, WALL_M, view_from

from worldstereo_ros.pipelines.stereo.narrow_gaps import PASSES, fill_narrow_gaps
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings


def test_a_gap_along_an_edge_takes_the_surface_of_its_colour():
    image, depth = view_from(0.0)
    image[depth == WALL_M], image[depth == BOARD_M] = (30, 60, 90), (200, 180, 40)
    board = (depth == BOARD_M).astype(np.uint8)
    square = np.ones((5, 5), np.uint8)
    known = cv2.dilate(board, square) == cv2.erode(board, square)  # two pixels on both sides are unknown
    pipeline = GeometricStereo(CAMERA, StereoSettings(base=0.1))
    true, _ = pipeline.disparity_of(depth)
    found, _ = pipeline.disparity_of(np.where(known, depth, 0), image)
    np.testing.assert_allclose(found, true, rtol=1e-3)
    without, _ = pipeline.disparity_of(np.where(known, depth, 0))
    assert np.abs(without - true).max() > 1


def test_wide_gaps_stay_unknown_in_the_middle_and_sky_is_a_surface():
    disparity, known = np.zeros((40, 40), np.float32), np.ones((40, 40), bool)
    known[10:30, 10:30] = False
    image = np.full((40, 40, 3), 100, np.uint8)
    found, filled = fill_narrow_gaps(disparity, known, image)
    assert filled.sum() == 40 * 40 - (20 - 2 * PASSES) ** 2
    assert not filled[15:25, 15:25].any()
    assert (found == 0).all()
