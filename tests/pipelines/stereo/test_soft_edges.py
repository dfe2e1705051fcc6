"""Edges: how much of a pixel each surface covers, before and after it moves to the other eye."""

import cv2
import numpy as np
import pytest
from helpers.stereo_scene import CAMERA, pose_at, view_from

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.pipelines.stereo.pipeline import SEEN, GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.pipelines.stereo.soft_edges import find_edges, split_edges
from worldstereo_ros.pipelines.stereo.warp import HOLE

BASE = 0.1
FINER = 8


def mixed_view(x: float) -> tuple[np.ndarray, np.ndarray]:
    """`view_from` as a camera takes it: pixels are means over their area; depth is that of their middle."""
    fine = CAMERA.resized(FINER * CAMERA.width, FINER * CAMERA.height)
    image = view_from(x, camera=fine)[0].astype(np.float32)
    image = image.reshape(CAMERA.height, FINER, CAMERA.width, FINER, 3).mean((1, 3))
    return np.rint(image).astype(np.uint8), view_from(x)[1]


@pytest.mark.parametrize("eye", ["right", "left"])
def test_edges_are_nearer_to_the_truth_than_whole_pixels(eye):
    image, depth = mixed_view(0.0)
    truth = mixed_view(BASE if eye == "right" else -BASE)[0]
    found = {}
    for soft in (False, True):
        settings = StereoSettings(base=BASE, eye=eye, steady=False, soft_edges=soft)
        frame = GeometricStereo(CAMERA, settings).make(image, depth)
        edge = find_edges(frame.disparity)
        edge = cv2.dilate(edge.view(np.uint8), np.ones((3, 3), np.uint8)) > 0
        found[soft] = psnr(frame.image, truth, edge & (frame.source == SEEN)), psnr(frame.image, truth, ~edge)
    assert found[True][0] > found[False][0] + 2
    assert found[True][1] > found[False][1] - 0.5


def test_coverage_of_a_half_covered_column_is_found():
    image, disparity = np.full((9, 20, 3), 50, np.uint8), np.full((9, 20), 2, np.float32)
    image[:, 10:], disparity[:, 10:] = 210, 8
    image[:, 9] = 90  # a quarter of it is of the nearer surface
    layers = split_edges(image, disparity)
    np.testing.assert_allclose(layers.coverage[:, 9], 0.25, atol=0.01)
    assert (layers.coverage[:, 10] == 1).all()
    assert (layers.image[:, 9] == 50).all()
    assert (layers.front[:, 9] == 210).all()
    assert (layers.disparity[:, 10] == 2).all()
    assert (layers.front_disparity[:, :9] == HOLE).all()
    np.testing.assert_array_equal(layers.image[:, :9], image[:, :9])


def test_a_slope_seen_at_a_grazing_angle_is_no_edge_and_a_step_is():
    slope = np.repeat(np.linspace(5, 45, 21, dtype=np.float32)[:, None], 8, axis=1)
    assert not find_edges(slope).any()
    slope[10:] += 12
    assert find_edges(slope)[9:11].all()


def test_equal_colours_on_both_sides_change_nothing():
    image, depth = view_from(0.0)
    image[:] = 120
    frame = GeometricStereo(CAMERA, StereoSettings(base=BASE)).make(image, depth, pose_at(0.0))
    assert (frame.image == 120).all()
