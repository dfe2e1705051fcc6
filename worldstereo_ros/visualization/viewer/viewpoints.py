"""Where the browser looks from, which cameras are drawn, and in the colour of which class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.poses import heading
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.visualization.viewer.loading import Viewable
from worldstereo_ros.visualization.viewer.points import camera_distance

MAX_FRUSTA = 48  # of the path, and as many of the observed views; more hide the cloud


@dataclass(frozen=True)
class Viewpoint:
    """Where the browser looks from.

    Attributes:
        position: (3,) world point.
        look_at: (3,) world point in the middle of the page.
        fov: vertical field of view, radians.
    """

    position: np.ndarray
    look_at: np.ndarray
    fov: float


def overview(viewable: Viewable, *, pitch: float = np.radians(42), fov: float = np.radians(50)) -> Viewpoint:
    """A viewpoint behind and above the first camera, from which the cloud and the path fill the page.

    Args:
        viewable: what the page shows.
        pitch: radians below the horizon.
        fov: vertical field of view, radians.
    """
    up, cameras = viewable.up, camera_poses(viewable)
    points = viewable.points[:: max(1, len(viewable.points) // 50_000)].astype(np.float64)
    points = points[points @ up < ceiling_height(viewable)] if len(points) else points
    if len(points) and len(cameras):
        # Points behind a window are far away; with them the room would be small on the page.
        from_camera = camera_distance(points, cameras)
        points = points[from_camera <= 1.8 * np.median(from_camera)]
    if len(points) == 0:
        points = cameras[:, :3, 3] if len(cameras) else np.zeros((1, 3))
    low, high = np.percentile(points, 3, axis=0), np.percentile(points, 97, axis=0)
    points = points[((points >= low) & (points <= high)).all(axis=1)] if len(points) > 100 else points
    forward = np.cos(pitch) * _heading(cameras, up) - np.sin(pitch) * up
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    in_view = np.concatenate([points, cameras[:, :3, 3]]) @ axes
    # The panels cover the right and the lower edge of the page; the rest is about square.
    half_width = 0.74 * np.tan(0.5 * fov)
    middle = 0.5 * (in_view.min(axis=0) + in_view.max(axis=0))
    offset = np.abs(in_view - middle)[:, :2].max(axis=1)
    distance = max(
        float((offset / half_width - (in_view - middle)[:, 2]).max()), 0.5 * float(np.ptp(in_view[:, 2])), 1e-2
    )
    middle[1] += 0.2 * distance * np.tan(0.5 * fov)
    look_at = axes @ middle
    return Viewpoint(look_at - distance * forward, look_at, fov)


def from_above(viewable: Viewable) -> Viewpoint:
    """A viewpoint that looks straight down, with the heading of the first camera up on the page."""
    return overview(viewable, pitch=np.radians(89.5))


def ceiling_height(viewable: Viewable) -> float:
    """Height along `up` above which points hide the scene from above; infinity without cameras or points."""
    cameras = camera_poses(viewable)
    if len(cameras) == 0 or len(viewable.points) == 0:
        return float("inf")
    heights = cameras[:, :3, 3] @ viewable.up
    floor = float(np.percentile(viewable.points @ viewable.up, 1))
    return float(heights.max() + max(0.35 * (np.median(heights) - floor), 0.05 * (heights.max() - floor)))


def camera_class(view: View) -> Provenance:
    """The class in whose colour the camera of a remembered view is drawn: that of most pixels of an observation."""
    if not view.is_observation:  # the bank of a saved map also holds imagined views
        return Provenance.IMAGINED
    return Provenance.ESTIMATED if view.estimated_mask.mean() > 0.5 else Provenance.OBSERVED


def select_frusta(poses: np.ndarray, distance: float, angle: float = np.radians(15)) -> list[int]:
    """Selects cameras whose frusta do not hide each other.

    A camera is selected if its position or its direction differs enough from those of the last selected one.

    Args:
        poses: (N, 4, 4) world_from_camera, in order.
        distance: minimum distance between positions.
        angle: minimum angle between directions, radians. Both grow until at most `MAX_FRUSTA` are selected.

    Returns:
        Indices, in order.
    """
    while True:
        selected: list[int] = []
        for index, pose in enumerate(poses):
            if selected:
                last = poses[selected[-1]]
                turn = float(np.arccos(np.clip(pose[:3, 2] @ last[:3, 2], -1, 1)))
                if np.linalg.norm(pose[:3, 3] - last[:3, 3]) < distance and turn < angle:
                    continue
            selected.append(index)
        if len(selected) <= MAX_FRUSTA:
            return selected
        distance, angle = 1.3 * distance, 1.3 * angle


def camera_poses(viewable: Viewable) -> np.ndarray:
    """(N, 4, 4) world_from_camera of the path, else of the observed views."""
    if len(viewable.path):
        return viewable.path
    return np.array([view.world_from_camera for view in viewable.observed_views]).reshape(-1, 4, 4)


def _heading(cameras: np.ndarray, up: np.ndarray) -> np.ndarray:
    """(3,) horizontal unit vector: that of the first camera, turned a little so that walls do not line up."""
    if len(cameras):
        ahead = heading(cameras[0], up)
    else:  # any: the world axis that is least vertical
        axis = np.eye(3)[np.abs(up).argmin()]
        ahead = axis - up * (axis @ up)
        ahead = ahead / np.linalg.norm(ahead)
    turn = np.radians(25)
    return np.cos(turn) * ahead + np.sin(turn) * np.cross(up, ahead)
