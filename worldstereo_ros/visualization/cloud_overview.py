"""The cloud and the path, seen from above and behind, as one image."""

from __future__ import annotations

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.poses import heading
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.rendering.splatting import render
from worldstereo_ros.visualization.images import PATH_COLOUR, as_classes, provenance_colours
from worldstereo_ros.visualization.text import PAPER
from worldstereo_ros.visualization.unsure_points import unsure_points

CEILING_CLEARANCE_M = 0.35  # above the highest camera; points above it would hide what is below
FRUSTUM_LENGTH_M = 0.35
FRUSTUM_CORNERS = np.array([[-0.6, -0.4, 1], [0.6, -0.4, 1], [0.6, 0.4, 1], [-0.6, 0.4, 1]])  # of unit length
FRUSTUM_STEP = 3  # draw every third camera
FOV_RAD, PITCH_RAD = np.radians(50), np.radians(50)


def cloud_overview(
    points: np.ndarray,
    colours: np.ndarray,
    provenance: np.ndarray,
    spacing: np.ndarray,
    path: np.ndarray,
    *,
    up: np.ndarray,
    depth_confidence: np.ndarray | None = None,
    size: tuple[int, int] = (960, 640),
    tint: float = 0.35,
) -> np.ndarray:
    """Draws the cloud from behind and above the path, without the ceiling.

    Imagined points are tinted orange, estimated ones yellow.

    Args:
        points: (N, 3) world points, metres.
        colours: (N, 3) uint8.
        provenance: (N,) uint8 values of `Provenance`, or bool with True = observed and False = imagined.
        spacing: (N,) distance between neighbours, metres.
        path: (F, 4, 4) world_from_camera, drawn as a line with frusta.
        up: (3,) unit vector, up in the world.
        depth_confidence: (N,) float32 in 0..1; if given, `unsure_points` are left out.
        size: width and height in pixels.
        tint: weight of the tint of points that are not observed, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    up = np.asarray(up, dtype=np.float64)
    heights = points @ up
    path_heights = path[:, :3, 3] @ up
    keep = heights < path_heights.max() + CEILING_CLEARANCE_M
    if depth_confidence is not None:
        keep &= ~unsure_points(points, provenance, depth_confidence)
    points, colours, provenance, spacing = points[keep], colours[keep], as_classes(provenance[keep]), spacing[keep]
    tinted = (1 - tint) * colours + tint * provenance_colours(provenance)
    colours = np.where((provenance == Provenance.OBSERVED)[:, None], colours, tinted).astype(np.uint8)

    camera = Camera.from_fov(*size, FOV_RAD)
    world_from_camera = _pose_above(points, path, up, camera)
    rendering = render(points.astype(np.float32), colours, provenance, spacing, camera, world_from_camera[None])
    covered = rendering.covered[0].cpu().numpy()
    image = np.where(covered[..., None], rendering.colour[0].cpu().numpy(), np.array(PAPER)).astype(np.uint8)
    _draw_path(image, path, camera, world_from_camera)
    return image


def _pose_above(points: np.ndarray, path: np.ndarray, up: np.ndarray, camera: Camera) -> np.ndarray:
    """(4, 4) world_from_camera that looks down on the middle of the cloud from behind the first view of the path."""
    centre = np.median(points, axis=0) if len(points) else path[:, :3, 3].mean(axis=0)
    extent = float(np.percentile(np.linalg.norm(points - centre, axis=1), 95)) if len(points) else 2.0
    forward = heading(path[0], up) * np.cos(PITCH_RAD) - up * np.sin(PITCH_RAD)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = centre - forward * extent * 1.25 * camera.fx / (0.5 * camera.width)
    return pose


def _draw_path(image: np.ndarray, path: np.ndarray, camera: Camera, world_from_camera: np.ndarray) -> None:
    """Draws the polyline of the path and small frusta, in place."""
    uv, z = project(path[:, :3, 3], camera, world_from_camera)
    pixels = uv.round().astype(int)
    for a, b in zip(range(len(path) - 1), range(1, len(path)), strict=True):
        if z[a] > 0 and z[b] > 0:
            cv2.line(image, tuple(pixels[a].tolist()), tuple(pixels[b].tolist()), PATH_COLOUR, 3, cv2.LINE_AA)
    corners = FRUSTUM_LENGTH_M * FRUSTUM_CORNERS
    for pose in path[::FRUSTUM_STEP]:
        frustum = np.concatenate([pose[None, :3, 3], corners @ pose[:3, :3].T + pose[:3, 3]])
        uv, z = project(frustum, camera, world_from_camera)
        if (z <= 0).any():
            continue
        vertices = [tuple(p) for p in uv.round().astype(int).tolist()]
        for corner in range(1, 5):
            cv2.line(image, vertices[0], vertices[corner], PATH_COLOUR, 1, cv2.LINE_AA)
            cv2.line(image, vertices[corner], vertices[1 + corner % 4], PATH_COLOUR, 1, cv2.LINE_AA)
