"""Camera conditioning of the published weights: normalised cameras, pose vectors and Plücker rays."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.poses import check_poses, invert_pose, quaternion_from_pose


def normalise_cameras(
    world_to_camera: np.ndarray, reference_world_to_camera: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Normalises cameras as for the training of the published weights.

    Poses are expressed relative to the first target. Camera centres are shifted by the mean of the targets' centres
    (of those within 10 times the 97th percentile of the distances to their median), then scaled so that the first
    target is at distance 2 from the origin (by 2 if it is at the mean already). Metric scale is lost.
    Source: SEVA (arXiv 2503.14489), as used by WorldStereo 2.0.

    Args:
        world_to_camera: (F, 4, 4) target cameras, OpenCV axes.
        reference_world_to_camera: (R, 4, 4) reference cameras, transformed in the same way, or None.

    Returns:
        (targets (F, 4, 4) float64, references (R, 4, 4) float64 or None).
    """
    targets = check_poses(world_to_camera, "The camera path")
    first = invert_pose(targets[0])
    count = len(targets)
    poses = targets
    if reference_world_to_camera is not None:
        poses = np.concatenate([targets, np.asarray(reference_world_to_camera, dtype=np.float64)])
    cameras = invert_pose(poses @ first)
    centres = cameras[:count, :3, 3]
    distance = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    inliers = distance <= 10 * np.quantile(distance, 0.97)
    cameras[:, :3, 3] -= centres[inliers].mean(axis=0)
    norm = np.linalg.norm(cameras[0, :3, 3])
    cameras[:, :3, 3] *= 2.0 / norm if norm > 1e-6 else 2.0
    out = invert_pose(cameras)
    return out[:count], out[count:] if reference_world_to_camera is not None else None


def pose_vectors(world_to_camera: np.ndarray) -> np.ndarray:
    """Converts poses to quaternion and translation.

    Args:
        world_to_camera: (N, 4, 4) poses.

    Returns:
        (N, 7) float32: quaternion w, x, y, z with w >= 0, then the translation.
    """
    translation, quaternion = quaternion_from_pose(world_to_camera)
    return np.concatenate([quaternion[:, [3, 0, 1, 2]], translation], axis=1).astype(np.float32)


def plucker_embedding(world_to_camera: np.ndarray, K: np.ndarray, height: int, width: int) -> np.ndarray:
    """Computes the Plücker coordinates of each pixel's ray: unit direction d and moment o x d, in world axes.

    Rays pass through (x - 0.5, y + 0.5). In x this is off by one pixel from the centre of a pixel whose corner is at
    (x, y); the published weights were trained with it.

    Args:
        world_to_camera: (F, 4, 4) normalised cameras (`normalise_cameras`).
        K: (F, 3, 3) or (3, 3) intrinsics in pixels of a `height` x `width` image.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        (6, F, height, width) float32: d in the first three channels, o x d in the others.
    """
    world_to_camera = np.asarray(world_to_camera, dtype=np.float64)
    K = np.broadcast_to(np.asarray(K, dtype=np.float64), (len(world_to_camera), 3, 3))
    cameras = invert_pose(world_to_camera)
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) - 0.5, indexing="ij")
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
    world_from_pixel = cameras[:, :3, :3] @ np.linalg.inv(K)
    directions = (pixels @ world_from_pixel.transpose(0, 2, 1)).reshape(-1, height, width, 3)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    moments = np.cross(np.broadcast_to(cameras[:, None, None, :3, 3], directions.shape), directions)
    return np.concatenate([directions, moments], axis=-1).transpose(3, 0, 1, 2).astype(np.float32)
