"""A synthetic panorama inside a box, with exact colours and distances."""

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.panorama.perspective_views import pose_from_angles, rings, stitching_camera


def sphere_directions(height: int) -> np.ndarray:
    """(H, 2 H, 3) unit vectors of the pixels of a panorama: x right, y down, z ahead (the image centre)."""
    longitude = (np.arange(2 * height) + 0.5) / (2 * height) * 2 * np.pi - np.pi
    latitude = np.pi / 2 - (np.arange(height) + 0.5) / height * np.pi
    longitude, latitude = np.meshgrid(longitude, latitude)
    return np.stack(
        [np.cos(latitude) * np.sin(longitude), -np.sin(latitude), np.cos(latitude) * np.cos(longitude)], axis=-1
    )


def box_panorama(height: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours and distances inside a box of 6 x 3 x 4 metres with soft stripes on its walls."""
    directions = sphere_directions(height)
    half = np.array([3.0, 1.5, 2.0])
    with np.errstate(divide="ignore"):
        distance = (half / np.abs(directions)).min(axis=-1)
    return box_colour(directions * distance[..., None]), distance.astype(np.float32)


def box_colour(points: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours of points (..., 3) on the walls."""
    stripes = 30 * np.sin(3 * points[..., :1]) * np.cos(2.5 * points[..., 2:])
    return np.clip(np.rint(128 + 20 * points + stripes), 0, 255).astype(np.uint8)


def all_round(camera: Camera) -> np.ndarray:
    """(N, 4, 4) panorama_from_camera of views that cover the sphere."""
    return np.stack([pose_from_angles(*angles) for ring in rings(camera) for angles in ring])


ROUND = stitching_camera(128)
