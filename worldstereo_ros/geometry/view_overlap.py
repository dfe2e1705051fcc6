"""Overlap of camera frusta, and the retrieval scores of WorldStereo's view memory."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose


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
