"""Overlap of camera frusta, the retrieval scores of WorldStereo's view memory, and views from nearly the same pose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View

# Views closer than this show the same: a parked robot whose pose is known to a few millimetres takes such views.
SAME_POSE_M, SAME_POSE_RAD = 0.01, np.radians(0.5)
SAME_FOCAL_RATIO = 0.02  # relative difference of focal lengths, at one image size


def frustum_corners(
    world_to_camera: np.ndarray, K: np.ndarray, width: int, height: int, near: float = 0.1, far: float = 10.0
) -> np.ndarray:
    """Computes the corners of camera frusta.

    Args:
        world_to_camera: (N, 4, 4), OpenCV axes.
        K: (N, 3, 3) or (3, 3) intrinsics in pixels of `width` x `height`.
        width, height: image size in pixels.
        near, far: distances along the corner rays, metres.

    Returns:
        (N, 8, 3) float64 world points: the four near corners, then the four far corners.
    """
    world_from_camera = invert_pose(np.asarray(world_to_camera, dtype=np.float64))
    K = np.broadcast_to(np.asarray(K, dtype=np.float64), (len(world_from_camera), 3, 3))
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    rays = np.einsum("nij,kj->nki", np.linalg.inv(K), corners)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    points = np.concatenate([rays * near, rays * far], axis=1)
    return np.einsum("nij,nkj->nki", world_from_camera[:, :3, :3], points) + world_from_camera[:, None, :3, 3]


def retrieval_scores(
    target_world_to_camera: np.ndarray,
    memory_world_to_camera: np.ndarray,
    target_K: np.ndarray,
    memory_K: np.ndarray,
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores every memory view as a reference for every target view (WorldStereo 2.0).

    The score is the intersection over union of the axis-aligned bounding boxes of both frusta (0.1 to 10 m; both with
    the target's image size), times `clip(exp(5 (90 - angle) / 180), 0, 1)` of the angle between the optical axes.

    Args:
        target_world_to_camera: (F, 4, 4) poses of the views to generate.
        memory_world_to_camera: (M, 4, 4) poses of the views in memory.
        target_K: (F, 3, 3) or (3, 3) intrinsics in pixels of `width` x `height`.
        memory_K: (M, 3, 3) or (3, 3) intrinsics in pixels of `width` x `height`.
        width, height: image size in pixels.

    Returns:
        (scores (F, M) float64 in 0..1, angles (F, M) in degrees).
    """
    boxes = []
    for poses, K in ((target_world_to_camera, target_K), (memory_world_to_camera, memory_K)):
        corners = frustum_corners(poses, K, width, height)
        boxes.append((corners.min(axis=1), corners.max(axis=1)))
    (t_low, t_high), (m_low, m_high) = boxes
    overlap = np.minimum(t_high[:, None], m_high[None]) - np.maximum(t_low[:, None], m_low[None])
    intersection = np.clip(overlap, 0, None).prod(axis=-1)
    volume = (t_high - t_low).prod(axis=-1)[:, None] + (m_high - m_low).prod(axis=-1)[None]
    iou = intersection / (volume - intersection)
    # The third row of world_to_camera is the optical axis in world coordinates.
    cosine = np.asarray(target_world_to_camera)[:, 2, :3] @ np.asarray(memory_world_to_camera)[:, 2, :3].T
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return iou * np.clip(np.exp(5 * (90 - angles) / 180), 0, 1), angles


def near_identical(view: View, others: Sequence[View]) -> np.ndarray:
    """Which views show what a view shows, from nearly the same pose: such views are one piece of evidence, not several.

    Poses are nearly the same within `SAME_POSE_M` and `SAME_POSE_RAD`. Views of another kind (observed, imagined) or
    with another field of view are never near-identical.

    Args:
        view: the view.
        others: M views.

    Returns:
        (M,) bool.
    """
    if not others:
        return np.zeros(0, bool)
    pose = view.world_from_camera
    poses = np.stack([other.world_from_camera for other in others])
    near = np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=1) <= SAME_POSE_M
    # |R1 - R2| = 2 sqrt(2) sin(angle / 2) (Frobenius) is precise for small angles, where the trace is not.
    difference = np.linalg.norm(poses[:, :3, :3] - pose[:3, :3], axis=(1, 2))
    near &= difference <= 2 * np.sqrt(2) * np.sin(SAME_POSE_RAD / 2)
    for index in np.flatnonzero(near):
        near[index] = _same_kind(view, others[int(index)])
    return near


def _same_kind(one: View, other: View) -> bool:
    if one.is_observation != other.is_observation:
        return False
    a, b = one.camera, other.camera.resized(one.camera.width, one.camera.height)
    offset = max(abs(a.cx - b.cx), abs(a.cy - b.cy)) / a.fx
    return max(abs(a.fx / b.fx - 1), abs(a.fy / b.fy - 1), offset) <= SAME_FOCAL_RATIO


def newest_view(views: Sequence[View]) -> int:
    """Index of the view with the newest stamp, the last of equal ones."""
    return max(range(len(views)), key=lambda index: (views[index].stamp_ns, index))


def distinct_viewpoints(views: Sequence[View], limit: int | None = None) -> list[View]:
    """The newest view of each group of near-identical ones, so that a view that was taken twice counts once.

    Args:
        views: views in order of preference; each group has the place of its first.
        limit: maximum number of views to return; None: all.
    """
    remaining = list(views)
    distinct: list[View] = []
    while remaining and (limit is None or len(distinct) < limit):
        group = near_identical(remaining[0], remaining)
        group[0] = True
        newest = [view for view, same in zip(remaining, group, strict=True) if same]
        distinct.append(newest[newest_view(newest)])
        group |= near_identical(distinct[-1], remaining)
        remaining = [view for view, same in zip(remaining, group, strict=True) if not same]
    return distinct
