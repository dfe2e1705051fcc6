"""The cloud and the path from above."""

import numpy as np
from helpers.textured_wall import textured_wall_views

from worldstereo_ros.geometry.poses import estimate_up_direction
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
