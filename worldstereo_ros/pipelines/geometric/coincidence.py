"""Coincidence: a camera that stands where an observation was taken sees the image of that observation.

No depth is needed for that, and no other view can add to it: what the camera saw from there is known. A view that was
imagined and remembered is seen again from its pose, too, as long as no more of it has been observed since.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.view_overlap import newest_view
from worldstereo_ros.geometry.views import View

MAX_DISPLACEMENT_PX = 0.25  # of any pixel of the view between an observation and the view that shows it
# The nearest depth of a view: this quantile of it, since single pixels are noise, or a bound if it has none.
NEAREST_QUANTILE, DEFAULT_NEAREST_M = 0.01, 0.3
# A smaller image than this share of the camera's size in either axis is no image of what the camera would see.
MIN_SIZE_RATIO = 0.5
MAX_ANGLE_PX = 4.0  # rotations beyond are told apart without looking at depth
# Of a view's pixels, those that were imagined when it was remembered and that a camera has seen since.
MAX_NEWLY_SEEN_FRACTION = 0.1


def coincident_observation(views: Sequence[View], camera: Camera, world_from_camera: np.ndarray) -> View | None:
    """The observation that was taken where a camera stands, at the size of that camera.

    A view coincides with the camera if no pixel moves by more than `MAX_DISPLACEMENT_PX` from one to the other, at the
    nearest depth of the view or at infinity. Their fields of view are then the same; their sizes may differ, but a view
    of less than `MIN_SIZE_RATIO` of the size of the camera is ignored. Of several, the sharpest count (all that are at
    least as large as the camera are equally sharp), and of these the newest.

    Args:
        views: all views of memory; imagined ones are ignored, views without depth are not.
        camera: intrinsics and size of the camera.
        world_from_camera: (4, 4) pose of the camera.

    Returns:
        The observation, resized to `camera`; None if none coincides.
    """
    observations = [view for view in views if view.is_observation and size_ratio(view, camera) >= MIN_SIZE_RATIO]
    found = _coincident(observations, camera, world_from_camera)
    if not found:
        return None
    largest_ratio = max(size_ratio(view, camera) for view in found)
    sharpest = [view for view in found if size_ratio(view, camera) == largest_ratio]
    return sharpest[newest_view(sharpest)].resized(camera.width, camera.height)


def coincident_imagination(
    views: Sequence[View], camera: Camera, world_from_camera: np.ndarray, seen: np.ndarray
) -> View | None:
    """The view that was imagined where a camera stands, at the size of that camera.

    It is the first that was remembered, so that a place does not change from visit to visit. A view of which more than
    `MAX_NEWLY_SEEN_FRACTION` has been observed since is imagined anew, from what is known by then.

    Args:
        views: all views of memory; observations are ignored, and views smaller than the camera's.
        camera: intrinsics and size of the camera.
        world_from_camera: (4, 4) pose of the camera.
        seen: (H, W) bool, pixels that a camera has seen by now.

    Returns:
        The imagined view, resized to `camera`; None if none coincides.
    """
    imagined = [view for view in views if not view.is_observation and size_ratio(view, camera) == 1]
    for view in _coincident(imagined, camera, world_from_camera):
        resized = view.resized(camera.width, camera.height)
        newly_seen = seen & (resized.provenance == Provenance.IMAGINED)
        if newly_seen.mean() <= MAX_NEWLY_SEEN_FRACTION:
            return resized
    return None


def _coincident(views: Sequence[View], camera: Camera, world_from_camera: np.ndarray) -> list[View]:
    axis = world_from_camera[:3, 2]
    largest = 2 * np.sin(MAX_ANGLE_PX / camera.fx / 2)
    return [
        view
        for view in views
        if np.linalg.norm(view.world_from_camera[:3, 2] - axis) < largest
        and displacement(view, camera, world_from_camera) <= MAX_DISPLACEMENT_PX
    ]


def size_ratio(view: View, camera: Camera) -> float:
    """Size of a view as a fraction of the size of a camera, of the axis where it is smaller; 1 at most."""
    return min(view.camera.width / camera.width, view.camera.height / camera.height, 1.0)


def displacement(view: View, camera: Camera, world_from_camera: np.ndarray) -> float:
    """How far pixels of a camera lie from the same pixels of a view, at most, in pixels of the camera.

    Both images are compared at the size of the camera, at the nearest depth of the view and at infinity.

    Args:
        view: the view.
        camera, world_from_camera: intrinsics and (4, 4) pose of the camera.
    """
    columns, rows = np.meshgrid(np.linspace(0, camera.width - 1, 5), np.linspace(0, camera.height - 1, 5))
    rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones_like(rows)], axis=-1)
    view_from_camera = invert_pose(view.world_from_camera) @ world_from_camera
    source = view.camera.resized(camera.width, camera.height)
    largest = 0.0
    for inverse_depth in (0.0, 1 / nearest_depth(view)):
        points = rays @ view_from_camera[:3, :3].T + view_from_camera[:3, 3] * inverse_depth
        if points[..., 2].min() <= 1e-6:
            return float("inf")
        x = source.fx * points[..., 0] / points[..., 2] + source.cx
        y = source.fy * points[..., 1] / points[..., 2] + source.cy
        largest = max(largest, float(np.hypot(x - columns, y - rows).max()))
    return largest


def nearest_depth(view: View) -> float:
    """Nearest depth of a view in metres, without outliers; `DEFAULT_NEAREST_M` if it has no depth."""
    known = view.depth[::4, ::4] if view.depth is not None else np.zeros(0)
    known = known[known > 0]
    return float(np.quantile(known, NEAREST_QUANTILE)) if len(known) else DEFAULT_NEAREST_M
