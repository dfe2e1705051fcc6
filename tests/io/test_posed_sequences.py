"""Posed sequences: what is written is read back."""

import cv2
import numpy as np
import pytest
from helpers.textured_wall import CAMERA, half_imagined, textured_wall_views

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence


def test_written_sequence_is_read_back(tmp_path):
    views = half_imagined(textured_wall_views())
    write_sequence(tmp_path, views)
    sequence = open_sequence(tmp_path)
    assert sequence.camera == CAMERA
    for view, read in zip(views, sequence, strict=True):
        np.testing.assert_array_equal(read.image, view.image)
        np.testing.assert_allclose(read.depth, view.depth, atol=5e-4)
        np.testing.assert_allclose(read.world_from_camera, view.world_from_camera, atol=1e-7)
    mask = cv2.imread(str(tmp_path / "observed" / "000001.png"), cv2.IMREAD_UNCHANGED)
    assert (mask[:, :40] == 255).all()
    assert (mask[:, 40:] == 0).all()


def test_coverage_is_nan_without_a_coverage_mask():
    view = textured_wall_views()[0]
    assert np.isnan(ImaginedView(view.image, CAMERA, view.world_from_camera).coverage)
    assert half_imagined([view])[0].coverage == 0.5


def test_write_sequence_rejects_views_of_different_cameras(tmp_path):
    views = textured_wall_views()
    with pytest.raises(ValueError, match="different cameras"):
        write_sequence(tmp_path, [views[0], views[1].resized(40, 30)])
