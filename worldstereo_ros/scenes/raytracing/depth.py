"""Depth alone, without textures and light: what a simulated robot's depth camera measures at every step."""

from __future__ import annotations

import numpy as np
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.scenes.raytracing.geometry import Geometry, RayFrames, Tiles, cast_rays
from worldstereo_ros.scenes.raytracing.scene import Scene

TILE_ROWS, TILE_COLUMNS = 8, 16


def render_depth(scene: Scene, camera: Camera, world_from_camera: np.ndarray) -> np.ndarray:
    """Renders exact depth, the same as that of `render_scene`, without moving objects.

    Args:
        scene: the world.
        camera: intrinsics and size of the images.
        world_from_camera: (F, 4, 4), OpenCV axes.

    Returns:
        (F, H, W) float32 metres along the optical axis; 0 = no surface (sky).

    Raises:
        InputError: the poses are not finite rigid transforms.
    """
    poses = torch.from_numpy(check_poses(world_from_camera))
    geometry = _geometry(scene)
    tiles = Tiles.from_camera(camera, geometry.device, TILE_ROWS, TILE_COLUMNS)
    frames = RayFrames.from_cameras(geometry, torch.zeros(len(poses), dtype=torch.int64), poses)
    depth = cast_rays(geometry, frames, tiles).depth.reshape(
        len(poses), tiles.rows, tiles.columns, TILE_ROWS, TILE_COLUMNS
    )
    image = depth.permute(0, 1, 3, 2, 4).reshape(len(poses), tiles.rows * TILE_ROWS, tiles.columns * TILE_COLUMNS)
    image = image[:, : camera.height, : camera.width]
    return torch.where(torch.isfinite(image), image, 0.0).numpy()


def _geometry(scene: Scene) -> Geometry:
    primitives = scene.primitives
    return Geometry(
        kind=primitives.kind.to(torch.int64)[None],
        centre=primitives.centre.double()[None],
        half=primitives.half.double()[None],
        rotation=primitives.rotation.double()[None],
        casts=primitives.casts.bool()[None],
    )
