"""Views of a textured wall, observed and imagined."""

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import ImaginedView, View

CAMERA = Camera.from_fov(80, 60, 1.2)


def textured_wall_views():
    """Four views of a textured wall 3 m ahead, from a camera that moves to the right."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)
    poses = trajectory("right", np.eye(4), 4, distance=0.3)
    depth = np.full((60, 80), 3, np.float32)
    return [View(texture, CAMERA, pose, depth, stamp_ns=i) for i, pose in enumerate(poses)]


def half_imagined(views):
    """The views as imagined ones whose left half was observed."""
    observed = np.zeros((60, 80), bool)
    observed[:, :40] = True
    return [
        ImaginedView(
            view.image,
            CAMERA,
            view.world_from_camera,
            view.depth,
            observed,
            conditioning=view.image,
            covered=observed,
            index=index,
            count=len(views),
        )
        for index, view in enumerate(views)
    ]
