"""Worlds of boxes on a floor, and what a depth camera sees of them."""

from __future__ import annotations

import itertools
import math

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.planning import OccupancyMap
from worldstereo_ros.scenes.paths import camera_pose
from worldstereo_ros.scenes.raytracing.bake import Ambient
from worldstereo_ros.scenes.raytracing.depth import render_depth
from worldstereo_ros.scenes.raytracing.primitives import Builder, Material
from worldstereo_ros.scenes.raytracing.scene import Scene, Sky

CAMERA = Camera.from_fov(96, 72, math.radians(80))
GREY = Material(a=(0.5, 0.5, 0.5), b=(0.4, 0.4, 0.4))
Box = tuple[tuple[float, float, float], tuple[float, float, float]]
# A room of 6.1 x 4.1 m: floor and four walls, as (centre, size). Surfaces lie within cells, not on their borders.
ROOM: tuple[Box, ...] = (
    ((0, 0, -0.1), (6.4, 4.4, 0.2)),
    ((3.15, 0, 1), (0.2, 4.4, 2)),
    ((-3.15, 0, 1), (0.2, 4.4, 2)),
    ((0, 2.15, 1), (6.4, 0.2, 2)),
    ((0, -2.15, 1), (6.4, 0.2, 2)),
)


def boxes(*more: Box) -> Scene:
    """The room with more boxes in it."""
    builder = Builder(0)
    for centre, size in (*ROOM, *more):
        builder.box(centre, size, GREY, name="box")
    return Scene.build(builder, "test", 0, ambient=Ambient((1, 1, 1), (1, 1, 1), 0.3), sky=Sky(),
                       bounds=((-3.0, -2.0, 0.0), (3.0, 2.0, 2.0)))  # fmt: skip


def look(scene: Scene, x: float, y: float, yaw: float, z: float = 0.7, **changes: object) -> View:
    """What a level depth camera sees."""
    pose = camera_pose(np.array([x, y, z]), yaw, -0.2)
    depth = render_depth(scene, CAMERA, pose[None])[0]
    image = np.full((CAMERA.height, CAMERA.width, 3), 128, np.uint8)
    return View(image, CAMERA, pose, depth, **changes)  # type: ignore[arg-type]


def around(scene: Scene, x: float, y: float, views: int = 8) -> list[View]:
    """What it sees when it turns once."""
    return [look(scene, x, y, 2 * math.pi * n / views) for n in range(views)]


def mapped(scene: Scene, *views: View, resolution: float = 0.1) -> OccupancyMap:
    """The map of some views."""
    occupancy = OccupancyMap((-4, -3, -0.55), (4, 3, 2.5), resolution=resolution)
    for view in views:
        occupancy.integrate(view)
    return occupancy


def drive(*corners: tuple[float, float], step: float = 0.2, z: float = 0.7) -> np.ndarray:
    """(N, 4, 4) poses along straight lines between points, looking ahead."""
    poses = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        yaw = math.atan2(y1 - y0, x1 - x0)
        for share in np.linspace(0, 1, max(2, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))):
            poses.append(camera_pose(np.array([x0 + share * (x1 - x0), y0 + share * (y1 - y0), z]), yaw))
    return np.stack(poses)
