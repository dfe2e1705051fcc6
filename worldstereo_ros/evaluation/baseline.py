"""Baselines without a model: projected points with holes inpainted (Telea), a constant colour, fusion by Open3D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from worldstereo_ros.evaluation.hole_metrics import constant_colour
from worldstereo_ros.evaluation.metrics import voxel_downsample
from worldstereo_ros.geometry.cameras import Camera, project, unproject
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View

EMPTY_GREY = 127  # of a view without any point, which cannot be inpainted
TELEA_RADIUS_PX = 3
VOXEL_M, TSDF_TRUNCATION_VOXELS, MAX_DEPTH_M = 0.01, 4.0, 100.0


@dataclass(frozen=True)
class ProjectedView:
    """A view that a baseline renders.

    Attributes:
        image: (H, W, 3) uint8, holes inpainted.
        depth: (H, W) float32 metres, 0 in holes.
    """

    image: np.ndarray
    depth: np.ndarray


class Baseline(Protocol):
    """Renders the fused observed views from any pose."""

    def __call__(self, camera: Camera, world_from_camera: np.ndarray) -> ProjectedView:
        """Renders the view of a camera at `world_from_camera` (4, 4)."""


class Open3DTelea:
    """Open3D's one-pixel projection (`project_to_rgbd_image`) of all observed points, inpainted with Telea."""

    def __init__(self, observed_views: list[View]) -> None:
        import open3d as o3d

        self._o3d = o3d
        points, colours = merge_point_clouds(observed_views)
        self._cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
        self._cloud.point.colors = o3d.core.Tensor(colours.astype(np.float32) / 255)

    def __call__(self, camera: Camera, world_from_camera: np.ndarray) -> ProjectedView:
        """Renders the view of a camera at `world_from_camera` (4, 4)."""
        tensor = self._o3d.core.Tensor
        rgbd = self._cloud.project_to_rgbd_image(
            camera.width,
            camera.height,
            tensor(camera.matrix),
            tensor(invert_pose(world_from_camera)),
            depth_scale=1.0,
            depth_max=MAX_DEPTH_M,
        )
        colour = rgbd.color.as_tensor().numpy()
        depth = rgbd.depth.as_tensor().numpy().reshape(camera.height, camera.width)
        return ProjectedView(telea(np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8), depth <= 0), depth)


class SplatTelea:
    """Splatting with 2x2 pixels a point and a depth buffer, inpainted with Telea."""

    def __init__(self, observed_views: list[View]) -> None:
        self._points, self._colours = merge_point_clouds(observed_views)

    def __call__(self, camera: Camera, world_from_camera: np.ndarray) -> ProjectedView:
        """Renders the view of a camera at `world_from_camera` (4, 4)."""
        uv, z = project(self._points, camera, world_from_camera)
        front = z > 0.05
        corner = np.floor(uv[front]).astype(np.int64)
        z, colours = z[front], self._colours[front]
        order = np.argsort(-z, kind="stable")  # far to near: the nearest is written last
        corner, z, colours = corner[order], z[order], colours[order]
        depth = np.full((camera.height, camera.width), np.inf, np.float32)
        image = np.zeros((camera.height, camera.width, 3), np.uint8)
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            u, v = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (u >= 0) & (v >= 0) & (u < camera.width) & (v < camera.height)
            layer = np.full(depth.shape, -1, np.int64)
            layer[v[inside], u[inside]] = np.flatnonzero(inside)
            rows, columns = np.nonzero(layer >= 0)
            points = layer[rows, columns]
            nearer = z[points] < depth[rows, columns]
            rows, columns, points = rows[nearer], columns[nearer], points[nearer]
            depth[rows, columns], image[rows, columns] = z[points], colours[points]
        depth[np.isinf(depth)] = 0
        return ProjectedView(telea(image, depth <= 0), depth)


class ConstantColour:
    """The mean colour of the observed images, whatever the camera sees: what an imagined picture must beat."""

    def __init__(self, observed_views: list[View]) -> None:
        self._colour = np.rint(constant_colour([view.image for view in observed_views])).astype(np.uint8)

    def __call__(self, camera: Camera, world_from_camera: np.ndarray) -> ProjectedView:
        """Renders the view of a camera at `world_from_camera` (4, 4)."""
        size = (camera.height, camera.width)
        return ProjectedView(np.broadcast_to(self._colour, (*size, 3)).copy(), np.zeros(size, np.float32))


BASELINES: dict[str, Callable[[list[View]], Baseline]] = {
    "open3d+telea": Open3DTelea,
    "splat+telea": SplatTelea,
    "constant": ConstantColour,
}


def merge_point_clouds(views: list[View]) -> tuple[np.ndarray, np.ndarray]:
    """All pixels with depth as one cloud: points (N, 3) float32 in the world frame, colours (N, 3) uint8."""
    points, colours = [np.zeros((0, 3), np.float32)], [np.zeros((0, 3), np.uint8)]
    for view in views:
        if view.depth is not None:
            known = view.depth > 0
            points.append(unproject(view.depth, view.camera, view.world_from_camera)[known])
            colours.append(view.image[known])
    return np.concatenate(points), np.concatenate(colours)


def telea(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Inpaints the pixels of `hole` (H, W) bool in `image` (H, W, 3) uint8 (Telea 2004)."""
    if hole.all():
        return np.full_like(image, EMPTY_GREY)
    return cv2.inpaint(np.ascontiguousarray(image), hole.astype(np.uint8), TELEA_RADIUS_PX, cv2.INPAINT_TELEA)


def fuse_by_voxels(views: list[View], voxel: float = VOXEL_M) -> np.ndarray:
    """(N, 3) points: all pixels with depth, down-sampled to voxels of this edge in metres."""
    return voxel_downsample(merge_point_clouds(views)[0], voxel)


def fuse_by_tsdf(views: list[View]) -> np.ndarray:
    """(N, 3) surface points of Open3D's TSDF (VoxelBlockGrid, 1 cm voxels, 4 cm truncation).

    Voxels of weight 1 count: with five views, most surfaces are observed once.
    """
    import open3d as o3d

    core = o3d.core
    kinds = (core.float32, core.float32, core.float32)
    grid = o3d.t.geometry.VoxelBlockGrid(("tsdf", "weight", "color"), kinds, ((1), (1), (3)), VOXEL_M, 16, 20000)
    for view in views:
        if view.depth is None:
            continue
        K = core.Tensor(view.camera.matrix)
        extrinsic = core.Tensor(np.ascontiguousarray(invert_pose(view.world_from_camera)))
        depth = o3d.t.geometry.Image(core.Tensor(np.ascontiguousarray(view.depth, np.float32)[..., None]))
        colour = o3d.t.geometry.Image(core.Tensor(view.image.astype(np.float32) / 255))
        blocks = grid.compute_unique_block_coordinates(depth, K, extrinsic, 1.0, MAX_DEPTH_M, TSDF_TRUNCATION_VOXELS)
        grid.integrate(blocks, depth, colour, K, K, extrinsic, 1.0, MAX_DEPTH_M, TSDF_TRUNCATION_VOXELS)
    return grid.extract_point_cloud(weight_threshold=0.5).point.positions.numpy()
