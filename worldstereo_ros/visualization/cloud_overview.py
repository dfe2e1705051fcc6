"""The cloud and the path seen from above and behind, as one image."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.rendering.splatting import render
from worldstereo_ros.visualization.contact_sheet import PAPER
from worldstereo_ros.visualization.images import IMAGINED_COLOUR


def cloud_overview(
    points: np.ndarray,
    colours: np.ndarray,
    observed: np.ndarray,
    spacing: np.ndarray,
    path: np.ndarray,
    *,
    up: np.ndarray,
    size: tuple[int, int] = (960, 640),
    tint: float = 0.35,
) -> np.ndarray:
    """The cloud seen from behind and above the path, ceiling cut away, imagined points tinted orange.

    Args:
        points: (N, 3) world points. colours: (N, 3) uint8. observed: (N,) bool. spacing: (N,) metres.
        path: (F, 4, 4) world_from_camera, drawn with the frusta of its cameras.
        up: (3,) unit vector, which way is up in the world.
        size: width and height in pixels.
        tint: how strongly imagined points are coloured.

    Returns:
        (H, W, 3) uint8.
    """
    up = np.asarray(up, dtype=np.float64)
    heights = points @ up
    path_height = path[:, :3, 3] @ up
    keep = heights < path_height.max() + 0.35  # a ceiling would hide everything below it
    points, colours, observed, spacing = points[keep], colours[keep], observed[keep], spacing[keep]
    colours = np.where(observed[:, None], colours, (1 - tint) * colours + tint * np.array(IMAGINED_COLOUR)).astype(
        np.uint8
    )

    camera = Camera.from_fov(*size, np.radians(50))
    view = _view_from_above(points, path, up, camera)
    rendering = render(points.astype(np.float32), colours, observed, spacing, camera, view[None])
    covered = rendering.covered[0].cpu().numpy()
    picture = np.where(covered[..., None], rendering.colour[0].cpu().numpy(), np.array(PAPER)).astype(np.uint8)
    _draw_path(picture, path, camera, view)
    return picture


def _view_from_above(points: np.ndarray, path: np.ndarray, up: np.ndarray, camera: Camera) -> np.ndarray:
    """(4, 4) a camera that looks down on the middle of the cloud from behind the path's first view."""
    centre = np.median(points, axis=0) if len(points) else path[:, :3, 3].mean(axis=0)
    extent = float(np.percentile(np.linalg.norm(points - centre, axis=1), 95)) if len(points) else 2.0
    ahead = path[0, :3, 2] - up * (path[0, :3, 2] @ up)
    ahead /= max(float(np.linalg.norm(ahead)), 1e-9)
    forward = ahead * np.cos(np.radians(50)) - up * np.sin(np.radians(50))
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    view = np.eye(4)
    view[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    view[:3, 3] = centre - forward * extent * 1.25 * camera.fx / (0.5 * camera.width)
    return view


def _draw_path(picture: np.ndarray, path: np.ndarray, camera: Camera, view: np.ndarray) -> None:
    """Draws the polyline of the path and a small frustum at every third camera."""
    uv, z = project(path[:, :3, 3], camera, view)
    pixels = uv.round().astype(int)
    for a, b in zip(range(len(path) - 1), range(1, len(path)), strict=True):
        if z[a] > 0 and z[b] > 0:
            cv2.line(picture, tuple(pixels[a].tolist()), tuple(pixels[b].tolist()), (220, 40, 60), 3, cv2.LINE_AA)
    reach = 0.35
    corners = reach * np.array([[-0.6, -0.4, 1], [0.6, -0.4, 1], [0.6, 0.4, 1], [-0.6, 0.4, 1]])
    for index in range(0, len(path), 3):
        ends = np.concatenate([path[index, None, :3, 3], corners @ path[index, :3, :3].T + path[index, :3, 3]])
        uv, z = project(ends, camera, view)
        if (z <= 0).any():
            continue
        points = [tuple(p) for p in uv.round().astype(int).tolist()]
        for corner in range(1, 5):
            cv2.line(picture, points[0], points[corner], (220, 40, 60), 1, cv2.LINE_AA)
            cv2.line(picture, points[corner], points[1 + corner % 4], (220, 40, 60), 1, cv2.LINE_AA)
