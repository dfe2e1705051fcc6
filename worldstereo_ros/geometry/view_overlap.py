"""How much two cameras see of the same space: frustum overlap and retrieval scores."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose


def frustum_corners(
    world_to_camera: np.ndarray, K: np.ndarray, width: int, height: int, near: float = 0.1, far: float = 10.0
) -> np.ndarray:
    """(N, 8, 3) world corners of frusta: unit rays through the image corners, times near and far (metres)."""
    cameras = invert_pose(np.asarray(world_to_camera, dtype=np.float64))
    K = np.broadcast_to(np.asarray(K, dtype=np.float64), (len(cameras), 3, 3))
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    rays = np.einsum("nij,kj->nki", np.linalg.inv(K), corners)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    points = np.concatenate([rays * near, rays * far], axis=1)
    return np.einsum("nij,nkj->nki", cameras[:, :3, :3], points) + cameras[:, None, :3, 3]


def retrieval_scores(
    target_world_to_camera: np.ndarray,
    memory_world_to_camera: np.ndarray,
    target_K: np.ndarray,
    memory_K: np.ndarray,
    width: int,
    height: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How well each remembered view serves each target view (WorldStereo 2.0).

    The intersection over union of the world-axis-aligned boxes around both frusta (0.1 to 10 m; both with the
    target's image size), times `clip(exp(5 (90 - angle) / 180), 0, 1)` of the angle between the optical axes.

    Args:
        target_world_to_camera: (F, 4, 4). memory_world_to_camera: (M, 4, 4).
        target_K: (F, 3, 3) or (3, 3). memory_K: (M, 3, 3) or (3, 3). In pixels of `width` x `height`.

    Returns:
        (scores (F, M) in 0..1, angles (F, M) in degrees).
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
    # The third row of world_to_camera is the optical axis in the world.
    cosine = np.asarray(target_world_to_camera)[:, 2, :3] @ np.asarray(memory_world_to_camera)[:, 2, :3].T
    angles = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return iou * np.clip(np.exp(5 * (90 - angles) / 180), 0, 1), angles
