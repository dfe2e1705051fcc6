"""The cloud and the path from above."""

import numpy as np
from helpers.textured_wall import textured_wall_views

from worldstereo_ros.geometry.poses import estimate_up_direction
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.view_labels import PROVENANCE_COLOURS
from worldstereo_ros.visualization.cloud_overview import cloud_overview


def test_cloud_overview_shows_points_and_path():
    points = np.stack([np.linspace(-2, 2, 500), np.full(500, 1.0), np.linspace(1, 4, 500)], axis=1).astype(np.float32)
    colours = np.full((500, 3), (0, 200, 0), np.uint8)
    path = np.stack([view.world_from_camera for view in textured_wall_views()])
    up = estimate_up_direction(path)
    np.testing.assert_array_equal(up, [0, -1, 0])
    image = cloud_overview(points, colours, np.ones(500, bool), np.full(500, 0.05, np.float32), path, up=up)
    assert ((image[..., 1] > 150) & (image[..., 0] < 60)).sum() > 100  # the green points
    assert ((image[..., 0] > 180) & (image[..., 1] < 90)).sum() > 20  # the red path


def test_cloud_overview_tints_what_is_not_observed():
    points = np.stack([np.linspace(-2, 2, 500), np.full(500, 1.0), np.linspace(1, 4, 500)], axis=1).astype(np.float32)
    colours, spacing = np.full((500, 3), 128, np.uint8), np.full(500, 0.05, np.float32)
    path = np.stack([view.world_from_camera for view in textured_wall_views()])
    images = {
        kind: cloud_overview(points, colours, np.full(500, kind, np.uint8), spacing, path, up=[0, -1, 0], tint=1.0)
        for kind in (Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED)
    }
    for kind, image in images.items():
        expected = (128, 128, 128) if kind == Provenance.OBSERVED else PROVENANCE_COLOURS[kind]
        assert (np.abs(image.astype(int) - expected).max(axis=-1) <= 2).sum() > 100, kind


def test_cloud_overview_of_a_path_that_looks_straight_down():
    points = np.random.default_rng(0).uniform([-2, -2, 0], [2, 2, 0.1], (2000, 3)).astype(np.float32)
    colours, spacing = np.full((2000, 3), (0, 200, 0), np.uint8), np.full(2000, 0.05, np.float32)
    path = np.tile(np.eye(4), (3, 1, 1))
    path[:, :3, :3] = [[0, -1, 0], [-1, 0, 0], [0, 0, -1]]
    path[:, :3, 3] = [[0.2 * index, 0, 1.5] for index in range(3)]
    image = cloud_overview(points, colours, np.ones(2000, bool), spacing, path, up=[0, 0, 1])
    assert ((image[..., 1] > 150) & (image[..., 0] < 60)).sum() > 1000


def test_cloud_overview_leaves_out_imagined_points_of_unsure_distance():
    x, z = np.meshgrid(np.linspace(-2, 2, 80), np.linspace(1, 4, 60))
    floor = np.stack([x.ravel(), np.ones(x.size), z.ravel()], axis=1).astype(np.float32)
    curtain = floor[:, [0, 2, 1]] * np.float32([1, -0.3, 3])
    points, count = np.concatenate([floor, curtain]), len(floor)
    colours = np.repeat(np.array([[0, 200, 0], [0, 0, 200]], np.uint8), count, axis=0)
    provenance = np.repeat(np.array([Provenance.OBSERVED, Provenance.IMAGINED], np.uint8), count)
    spacing, path = np.full(2 * count, 0.06, np.float32), np.stack([v.world_from_camera for v in textured_wall_views()])

    def blue(depth_confidence):
        arguments = {"up": [0, -1, 0], "tint": 0.0, "depth_confidence": depth_confidence}
        image = cloud_overview(points, colours, provenance, spacing, path, **arguments).astype(int)
        return ((image[..., 2] > 150) & (image[..., 0] < 60) & (image[..., 1] < 60)).sum()

    confidence = np.repeat(np.float32([1, 0.3]), count)
    assert blue(None) > 100
    assert blue(np.maximum(confidence, 0.9)) > 100
    assert blue(confidence) == 0
