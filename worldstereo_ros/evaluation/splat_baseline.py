"""Gaussian splats as a baseline: made of the observed geometry, without a model, holes inpainted with Telea."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.evaluation.baseline import ProjectedView, telea
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.reconstruction.fusion import fuse
from worldstereo_ros.reconstruction.splats import splats_from_cloud

NAME = "splats"
MIN_ALPHA = 0.5  # less is a hole


class PlainSplats:
    """Splats of the fused cloud, as `worldstereo reconstruct` starts with, without optimisation."""

    def __init__(self, observed_views: list[View]) -> None:
        cloud, bank = fuse(observed_views)
        self._splats = splats_from_cloud(cloud, metric=bank.metric is not False)

    def __call__(self, camera: Camera, world_from_camera: np.ndarray) -> ProjectedView:
        """Renders the view of a camera at `world_from_camera` (4, 4)."""
        rendering = self._splats.render(camera, world_from_camera)
        alpha = rendering.alpha.numpy()
        colour = rendering.colour.numpy() / np.maximum(alpha, 1e-6)[..., None]
        hole = alpha < MIN_ALPHA
        image = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
        depth = np.where(hole, 0, rendering.depth.numpy()).astype(np.float32)
        return ProjectedView(telea(np.where(hole[..., None], np.uint8(0), image), hole), depth)
